"""Judges whether recent traffic differs from a version's reference.

An alarm needs an effect that matters (a floor), a distance that chance rarely reaches at the same sample size (a block
bootstrap of the window and of the reference), Benjamini-Hochberg over all features, and 3 of the last 5 windows.
docs/decisions/0083-drift-that-matters.md gives the reasons.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from onward.registry.monitoring import statistics
from onward.registry.monitoring.features import features, pieces
from onward.registry.monitoring.reference import Feature, Reference
from onward.registry.monitoring.statistics import DRAWS, Levels, Tail

Array = npt.NDArray[Any]
# An alarm needs this many of the last windows.
LAST = 5
NEEDED = 3
# The accepted share of windows with a finding by chance, over all features.
LEVEL = 0.001
# A window with fewer samples of a feature is not judged.
FEWEST_SAMPLES = 20

WASSERSTEIN = "Wasserstein / standard deviation"
PSI = "PSI"
JENSEN_SHANNON = "Jensen-Shannon distance"
MMD = "MMD"
# The smallest effects that matter. A shift of 0.1 standard deviations; the usual limit of a moderate PSI; a share that
# moves from 50 % to 62 %, or a new category with 2 %; a shift of all projections by 0.17 standard deviations.
FLOORS: Mapping[str, float] = {WASSERSTEIN: 0.1, PSI: 0.1, JENSEN_SHANNON: 0.1, MMD: 0.1}


@dataclass(frozen=True)
class Window:
    """The requests of one period.

    Attributes:
        inputs: Each recorded input, samples on the first axis, in the order of arrival. A list of arrays (one per
            request) where other dimensions differ between requests. Inputs that were dropped or hashed are left out.
        outputs: Each recorded output, in the same form.
        start: When the period began, as time.time().
        end: When it ended.
    """

    inputs: Mapping[str, Array | Sequence[Array]]
    outputs: Mapping[str, Array | Sequence[Array]]
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Summary:
    """What is kept of a window: sums over at most 64 blocks of samples, for each feature of a reference.

    Attributes:
        sums: By place of the feature: sums over blocks, [blocks, size], and the number of samples.
        start: When the period began, as time.time().
        end: When it ended.
    """

    sums: Mapping[int, tuple[Array, int]] = field(default_factory=dict)
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class FeatureResult:
    """One measure of one feature.

    Attributes:
        feature: What was measured, such as "input image: mean" or "output logits: class".
        kind: Whether it is a feature of the inputs or of the outputs.
        measure: "Wasserstein / standard deviation", "PSI", "Jensen-Shannon distance" or "MMD".
        effect: The measure of the last window that has enough samples; 0 is no difference from the reference.
        floor: The smallest effect that matters.
        threshold: The effect that chance alone rarely reaches at that window's sample size.
        alarm: Whether at least 3 of the last 5 windows exceed both.
        windows: Which of the last 5 windows exceed both, oldest first.
    """

    feature: str
    kind: Literal["input", "output"]
    measure: str
    effect: float
    floor: float
    threshold: float
    alarm: bool
    windows: tuple[bool, ...]


class _Outcome(NamedTuple):
    """One measure of one feature in one window."""

    effect: float
    probability: float
    tail: Tail


class _Distribution:
    """A feature's distribution at publication, and what its sampling error looks like."""

    def __init__(self, feature: Feature, title: str, kind: Literal["input", "output"]) -> None:
        self.feature, self.title, self.kind = feature, title, kind
        self.measures: dict[str, Callable[[Array, Array, int], Array]] = {}
        # Two draws: the error of the reference, and that of a window of independent samples.
        seed = zlib.crc32(title.encode("utf-8", "surrogatepass"))
        if feature.blocks:
            means, sizes = np.asarray(feature.blocks), statistics.lengths(feature.samples)[:, None]
            self.mean = (means * sizes).sum(0) / feature.samples
            deviations = (means - self.mean) * np.sqrt(sizes)
            free = max(1, len(means) - 1)
            deviations *= np.sqrt(len(means) / free)
            self.variance = float(np.square(deviations).sum() / len(means))
            draws = [statistics.resampled(deviations, free, len(means), seed + number) for number in (0, 1)]
        else:
            counts = np.asarray(feature.counts, np.float64)
            self.mean = counts / counts.sum()
            draws = _posterior(counts, feature.family == "categories", np.random.default_rng(seed))
            self.variance = 0.0
        self.errors, self.independent = (draw / np.sqrt(feature.samples) for draw in draws)
        self._weigh: Callable[[Array], Array] = _same
        if feature.family == "bins":
            gaps, deciles = np.diff(feature.points), statistics.decile_of(np.asarray(feature.counts))
            self._weigh = partial(_cumulative, gaps=gaps)
            self.measures[WASSERSTEIN] = lambda first, second, _: statistics.wasserstein(first, second, gaps)
            self.measures[PSI] = lambda first, second, count: statistics.psi(
                first @ deciles, second @ deciles, count, feature.samples
            )
        elif feature.family == "vectors":
            self.measures[MMD] = lambda first, second, _: statistics.mmd(first, second)
        else:
            self.measures[JENSEN_SHANNON] = lambda first, second, _: statistics.jensen_shannon(first, second)
        if not feature.blocks:
            self.variance = float(np.square(self._weigh(draws[1])).sum() / DRAWS)

    def sums(self, parts: Sequence[Array]) -> tuple[Array, int]:
        """Sums over blocks of a window's samples, and the number of samples."""
        values = np.concatenate(parts)
        if self.feature.blocks:
            vectors = self.feature.vectors(values)
            return statistics.block_sums(vectors), len(vectors)
        codes = self.feature.codes(values)
        return statistics.block_counts(codes, len(self.mean)), len(codes)

    def outcomes(self, windows: Sequence[tuple[Array, int] | None]) -> list[dict[str, _Outcome]]:
        """Measure windows, and compare with chance; nothing for a window that cannot be judged."""
        usable = [window for window in windows if window is not None]
        widest = Levels(usable).widest(self._weigh, self.variance)
        if widest is None:
            noise = self.independent * np.sqrt(self.feature.samples)
        else:
            noise = statistics.resampled(*widest, max(1, round(len(widest[0]) / len(usable))))
        tails: dict[tuple[str, int], Tail] = {}
        found: list[dict[str, _Outcome]] = []
        for window in windows:
            found.append({})
            if window is None:
                continue
            sums, count = window
            for name, measure in self.measures.items():
                if (name, count) not in tails:
                    chance = measure(self.mean + noise / np.sqrt(count), self.mean + self.errors, count)
                    tails[name, count] = Tail(chance)
                tail = tails[name, count]
                effect = float(measure(sums.sum(0) / count, self.mean, count))
                found[-1][name] = _Outcome(effect, tail.probability(effect), tail)
        return found


def _same(deviations: Array) -> Array:
    return deviations


def _cumulative(deviations: Array, gaps: Array) -> Array:
    return np.cumsum(deviations, axis=-1)[..., :-1] * np.sqrt(gaps)


def _posterior(counts: Array, has_unseen: bool, rng: np.random.Generator) -> list[Array]:
    """Two sets of deviations of the shares, times the root of the number of samples (Rubin's Bayesian bootstrap).

    Categories that the reference has not seen together count as half a sample (Jeffreys).
    """
    weights, unseen = counts.copy(), int((counts == 0).sum())
    if has_unseen and unseen:
        weights[counts == 0] = 0.5 / unseen
    found = []
    for _ in range(2):
        drawn = rng.standard_gamma(weights, size=(DRAWS, len(weights)))
        shares = drawn / np.maximum(drawn.sum(1, keepdims=True), 1e-300)
        found.append((shares - counts / counts.sum()) * np.sqrt(counts.sum()))
    return found


class Judge:
    """Judges traffic against one reference. Keeps the draws of the bootstrap between calls.

    Args:
        reference: The version's reference; None if it has none.
    """

    def __init__(self, reference: Reference | None) -> None:
        self._reference = reference or Reference()
        self._distributions = [
            _Distribution(feature, self._reference.title(feature), self._reference.tensors[feature.tensor].kind)
            for feature in self._reference.features
        ]

    def summarise(self, window: Window) -> Summary:
        """Reduce a window to what is judged, so that its samples need not be kept.

        Args:
            window: The window. Tensors that the reference does not know, and samples of another type or shape, are
                left out.
        """
        found: dict[tuple[int, str], list[Array]] = {}
        for place, tensor in enumerate(self._reference.tensors):
            values = (window.inputs if tensor.kind == "input" else window.outputs).get(tensor.name)
            for piece in pieces(values) if values is not None else ():
                for raw in features(tensor, piece):
                    found.setdefault((place, raw.label), []).append(raw.values)
        sums = {}
        for number, distribution in enumerate(self._distributions):
            parts = found.get((distribution.feature.tensor, distribution.feature.label))
            if parts:
                sums[number] = distribution.sums(parts)
        return Summary(sums, window.start, window.end)

    def judge(self, windows: Sequence[Window | Summary]) -> list[FeatureResult]:
        """As the function `judge`; windows may be summaries of this judge."""
        last = [self.summarise(one) if isinstance(one, Window) else one for one in windows[-LAST:]]
        measured: list[tuple[_Distribution, str, list[_Outcome | None]]] = []
        for number, distribution in enumerate(self._distributions):
            sums = [one.sums.get(number) for one in last]
            enough = [one if one is not None and one[1] >= FEWEST_SAMPLES else None for one in sums]
            if not any(enough):
                continue
            outcomes = distribution.outcomes(enough)
            for measure in distribution.measures:
                measured.append((distribution, measure, [one.get(measure) for one in outcomes]))
        limits = []
        for place in range(len(last)):
            found = [row[place].probability for _, _, row in measured if (row[place]) is not None]
            limits.append(statistics.critical(found, LEVEL))
        return [_result(*entry, limits) for entry in measured]


def _result(
    distribution: _Distribution, measure: str, outcomes: Sequence[_Outcome | None], limits: Sequence[float]
) -> FeatureResult:
    floor = FLOORS[measure]
    exceeded = tuple(
        one is not None and one.effect > floor and one.probability <= limit
        for one, limit in zip(outcomes, limits, strict=True)
    )
    last, limit = next((one, limit) for one, limit in zip(outcomes[::-1], limits[::-1], strict=True) if one is not None)
    return FeatureResult(
        feature=distribution.title,
        kind=distribution.kind,
        measure=measure,
        effect=last.effect,
        floor=floor,
        threshold=last.tail.threshold(limit),
        alarm=sum(exceeded) >= NEEDED,
        windows=exceeded,
    )


def judge(reference: Reference | None, windows: Sequence[Window]) -> list[FeatureResult]:
    """Judge the last windows of traffic against a version's reference.

    Args:
        reference: The version's reference (`reference.read`); None if it has none.
        windows: The windows, oldest first. The last 5 are judged.

    Returns:
        One result per measure and feature that was recorded; empty without a reference or without windows.
    """
    return Judge(reference).judge(windows)


def explain(reference: Reference | None) -> str:
    """Say why nothing can be judged; empty if something can."""
    if reference is None:
        return "the version was published without a reference of its inputs and outputs: publish it again"
    return "" if reference.features else "the version's reference has no feature: too few evaluation samples"
