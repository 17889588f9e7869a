"""Judges whether recent traffic differs from a version's reference.

An alarm needs an effect that matters (a floor), a distance that chance rarely reaches at the same sample size (a block
bootstrap of the window and of the reference), Benjamini-Hochberg over all features, and 3 of the last 5 windows.
docs/decisions/0083-drift-that-matters.md gives the reasons.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    """One measure of one feature in one window.

    Attributes:
        effect: The measure.
        probability: That chance gives at least this effect; 1 for an effect up to its floor, which is not tested.
        tail: The distribution of the effect by chance; None if it was not needed.
    """

    effect: float
    probability: float
    tail: Tail | None


class _Measure(NamedTuple):
    """A distance between the mean vectors of two periods.

    Attributes:
        name: Its name in results.
        project: The linear map of vectors that the distance is computed from.
        distance: The distance of projected means of a window and of the reference, and the samples of the window.
    """

    name: str
    project: Callable[[Array], Array]
    distance: Callable[[Array, Array, int], Array]


def _measures(feature: Feature) -> list[_Measure]:
    if feature.family == "vectors":
        return [_Measure(MMD, _same, lambda first, second, _: statistics.mmd(first, second))]
    if feature.family != "bins":
        return [_Measure(JENSEN_SHANNON, _same, lambda first, second, _: statistics.jensen_shannon(first, second))]
    gaps, deciles = np.diff(feature.points), statistics.decile_of(np.asarray(feature.counts))
    return [
        _Measure(
            WASSERSTEIN, statistics.cumulative, lambda first, second, _: statistics.wasserstein(first, second, gaps)
        ),
        _Measure(
            PSI,
            lambda shares: shares @ deciles,
            lambda first, second, count: statistics.psi(first, second, count, feature.samples),
        ),
    ]


def _same(vectors: Array) -> Array:
    return vectors


class _Distribution:
    """A feature's distribution at publication, and what its sampling error looks like."""

    def __init__(self, feature: Feature, title: str, kind: Literal["input", "output"]) -> None:
        self.feature, self.title, self.kind = feature, title, kind
        self.measures = _measures(feature)
        # Two draws: the error of the reference, and that of a window of independent samples.
        seed = zlib.crc32(title.encode("utf-8", "surrogatepass"))
        if feature.blocks:
            means, sizes = np.asarray(feature.blocks), statistics.lengths(feature.samples)[:, None]
            self.mean = (means * sizes).sum(0) / feature.samples
            free = max(1, len(means) - 1)
            deviations = (means - self.mean) * np.sqrt(sizes * len(means) / free)
            draws = [statistics.resampled(deviations, free, len(means), seed + number) for number in (0, 1)]
        else:
            counts = np.asarray(feature.counts, np.float64)
            self.mean = counts / counts.sum()
            draws = _posterior(counts, feature.family == "categories", np.random.default_rng(seed))
        gaps = np.sqrt(np.diff(feature.points)) if feature.family == "bins" else 1.0
        self._weigh: Callable[[Array], Array] = lambda deviations: self.measures[0].project(deviations) * gaps
        self._variance = float(np.square(self._weigh(draws[1])).sum() / DRAWS)
        errors = self.mean + draws[0] / np.sqrt(feature.samples)
        self._reference = [(one.project(self.mean), one.project(errors)) for one in self.measures]
        self._independent = [one.project(draws[1]) for one in self.measures]

    def sums(self, parts: Sequence[Array]) -> tuple[Array, int]:
        """Sums over blocks of a window's samples, and the number of samples."""
        values = np.concatenate(parts)
        if self.feature.blocks:
            vectors = self.feature.vectors(values)
            return statistics.block_sums(vectors), len(vectors)
        codes = self.feature.codes(values)
        return statistics.block_counts(codes, len(self.mean)), len(codes)

    def outcomes(
        self, windows: Sequence[tuple[Array, int] | None], thresholds: bool
    ) -> Iterator[list[_Outcome | None]]:
        """Measure windows and compare with chance, per measure; None for a window that cannot be judged."""
        usable = [window for window in windows if window is not None]
        widest: tuple[Array, int] | Literal["unknown"] | None = "unknown"
        for number, measure in enumerate(self.measures):
            mean, errors = self._reference[number]
            effects = [
                None if one is None else float(measure.distance(measure.project(one[0].sum(0) / one[1]), mean, one[1]))
                for one in windows
            ]
            floor = FLOORS[measure.name]
            if not thresholds and all(effect is None or effect <= floor for effect in effects):
                yield [None if effect is None else _Outcome(effect, 1.0, None) for effect in effects]
                continue
            if isinstance(widest, str):
                widest = Levels(usable).widest(self._weigh, self._variance)
            if widest is None:
                noise = self._independent[number]
            else:
                pooled, free = widest
                noise = statistics.resampled(measure.project(pooled), free, max(1, round(len(pooled) / len(usable))))
            tails = {
                count: Tail(measure.distance(mean + noise / np.sqrt(count), errors, count))
                for count in {count for _, count in usable}
            }
            found: list[_Outcome | None] = []
            for window, effect in zip(windows, effects, strict=True):
                if window is None or effect is None:
                    found.append(None)
                    continue
                tail = tails[window[1]]
                found.append(_Outcome(effect, tail.probability(effect) if effect > floor else 1.0, tail))
            yield found


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
        thresholds: Whether to compute the thresholds of effects up to their floors, too. They decide nothing; without
            them, they are NaN, and traffic without drift is judged faster.
    """

    def __init__(self, reference: Reference | None, thresholds: bool = True) -> None:
        self._thresholds = thresholds
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
            for measure, outcomes in zip(
                distribution.measures, distribution.outcomes(enough, self._thresholds), strict=True
            ):
                measured.append((distribution, measure.name, outcomes))
        limits = []
        for place in range(len(last)):
            judged = [row[place] for _, _, row in measured]
            limits.append(statistics.critical([one.probability for one in judged if one is not None], LEVEL))
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
        threshold=last.tail.threshold(limit) if last.tail is not None else float("nan"),
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
        return "the version has no reference of its inputs and outputs; versions published from now on have one"
    return "" if reference.features else "the version's reference has no feature: too few evaluation samples"
