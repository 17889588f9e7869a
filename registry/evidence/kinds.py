"""How much an output of each kind lost in lower precision, against the original's answers to the same samples.

Each kind has its own measure, a share that is lost, and every share has a 95 % confidence interval. An output breaks a
limit where the whole interval lies above it. Samples are the unit of independence: the pixels of one image, or the
steps of one sequence, are not independent of each other.

- scores: the share of positions whose largest score is another one. An answer over which the original itself hardly
  prefers the new one is no other answer (NEAR_SCORES). Where the samples are too few for the interval, or where they
  all have the same answer, the scores are judged as values, too.
- probabilities with a class axis: the same, with NEAR_PROBABILITY, and the distance between the distributions.
- values, states, and probabilities without a class axis: the error of the worst channel, relative to how much that
  channel varies (the square root of the noise's power over the signal's).
- embedding: the distance 1 - cosine of the worst samples, and the share of samples with another nearest neighbour.
- indices: the share of entries that differ; of a ranking, the share of entries that are not in it any more.

docs/measurement.md says where the limits come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onward.registry.evidence import similarity as fidelity
from onward.registry.evidence.records import OutputFidelity, OutputKind

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# The measure of an output with classes.
ANSWERS = "share of other answers"

# The normal distribution's 97.5 % point, for 95 % intervals.
Z = 1.959964

# The original hardly prefers its own answer where that is ahead by no more than this: a share of the deviation of the
# scores at that position, a probability, and a share of the deviation of the similarities between samples.
NEAR_SCORES = 0.01
NEAR_PROBABILITY = 0.01
NEAR_SIMILARITY = 0.3

# Of the positions where the original gives one certain answer, so many may have another one: a class of 0.3 % of all
# pixels can be lost while 99.7 % of them agree. It is `tolerance.agreement` of int8, for each answer alone.
CLASS_LIMIT = 0.1

# Scores are judged as values, too, where the top-1 tells too little. Noise of a tenth of the signal's power (10 dB)
# is far more than quantisation that works leaves (24 to 36 dB for a ResNet-18).
NOISE_LIMIT = 0.1

# The error of the worst channel of values, relative to its variation: 26 dB of signal to noise. At 29 dB over a whole
# tensor a detector lost 9 of 32 objects, for its channel of scores was far worse than that.
ERROR_LIMIT = 0.05

# Probabilities may move so far on average (total variation distance), whatever the answer.
DISTANCE_LIMIT = 0.05

# 1 - cosine of the samples that are worse than all but 1 % of them.
COSINE_LIMIT = 0.05
COSINE_SHARE = 0.01

# A channel that varies by less than 1 % of its own size is held to that size: it is constant, and all noise is larger
# than its variation. A probability that hardly varies is held to a deviation of 0.05.
CONSTANT = 0.01
PROBABILITY_DEVIATION = 0.05

# Sums are 1 within this, which is about the resolution of float16.
NEARLY = 2e-3

# Up to so many entries a sample, each entry is a channel of its own.
FEW_ENTRIES = 64

# More vectors than these are thinned out before each is compared with each; elements that are worked on at once.
MOST_VECTORS = 2000
BLOCK = 1 << 22


class Share(NamedTuple):
    """A share between 0 and 1 (or more, for noise larger than the signal) with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def interval(value: float, error: float, samples: int, z: float = Z) -> Share:
    """The interval of a share, of 95 % by default.

    Wilson's score interval with continuity correction (Newcombe 1998, method 4), which is near the exact one of Clopper
    and Pearson, over the effective number of samples (Korn and Graubard 1998): as many independent answers as would
    have this standard error.

    Args:
        value: the share.
        error: its standard error over the samples.
        samples: how many samples there are.
        z: the point of the normal distribution that belongs to the confidence.
    """
    if not np.isfinite(value):
        return Share(value, value, value)
    if value > 1.0:  # noise larger than the signal
        return Share(value, max(interval(1.0, 0.0, samples, z).low, value - z * error), value + z * error)
    n = float(samples)
    if value > 0.0 and error > 1e-9:
        n = max(n, value * (1 - value) / error**2)
    middle, below = 2 * n * value + z**2, 2 * (n + z**2)
    low = middle - 1 - z * np.sqrt(max(0.0, z**2 - 2 - 1 / n + 4 * value * (n * (1 - value) + 1)))
    high = middle + 1 + z * np.sqrt(max(0.0, z**2 + 2 - 1 / n + 4 * value * (n * (1 - value) - 1)))
    return Share(value, min(value, max(0.0, low / below)) if value else 0.0, max(value, min(1.0, high / below)))


def share(lost: Array, of: Array, z: float = Z) -> Share:
    """`lost` over `of`, each one figure a sample, as one share of all samples (a ratio estimate)."""
    samples, total = len(lost), float(of.sum())
    if samples == 0 or total == 0.0:
        return Share(0.0, 0.0, 1.0)
    value = float(lost.sum()) / total
    return interval(value, _error(lost, of, value, total), samples, z)


def judge(kind: OutputKind, wanted: Arrays, got: Arrays, changed: float) -> list[OutputFidelity]:
    """Judge one output by every measure of its kind; the first one is the kind's own, held to the kind's `limit`.

    Samples are on the first axis. Where the batch is fixed, `got` may lack the samples of a last batch that was not
    full; they are left out.

    Args:
        kind: what the output is.
        wanted: all outputs of the original.
        got: all outputs of the graph that is judged.
        changed: the share of answers that may change, where the kind has no limit of its own.
    """
    name = kind.output
    limit = changed if kind.limit is None else kind.limit
    if name not in got or got[name].shape[1:] != wanted[name].shape[1:]:
        return [_broken(kind, limit, "is missing, or has another shape")]
    answer = got[name]
    reference = wanted[name][: len(answer)]
    if reference.size == 0:
        return []
    if kind.kind == "indices":
        beside = wanted[kind.beside][: len(answer)] if kind.beside in wanted else None
        return list(_indices(kind, reference, answer, beside, limit))
    reference, answer = _as_float(reference), _as_float(answer)
    finite = np.isfinite(reference)
    if not np.isfinite(answer[finite]).all():
        return [_broken(kind, limit, "NaN or infinity where the original has a number")]
    axis = None if kind.axis is None else kind.axis % reference.ndim
    classes = axis is not None and axis > 0 and reference.shape[axis] > 1
    if kind.kind == "probabilities" and classes:
        classes = sums_to_one(reference, axis or 0)
    if kind.kind in ("scores", "probabilities") and classes:
        return list(_answers(kind, reference, answer, axis or 0, limit))
    if kind.kind == "embedding":
        return list(_embedding(kind, reference, answer, axis, limit))
    floor = PROBABILITY_DEVIATION if kind.kind == "probabilities" else 0.0
    return [_values(kind, reference, answer, axis, floor, ERROR_LIMIT if kind.limit is None else kind.limit)]


def agreement(kind: OutputKind, reference: Array, got: Array) -> float | None:
    """The share of positions with the original's largest entry along the class axis; null where there is none."""
    if kind.kind not in ("scores", "probabilities") or kind.axis is None:
        return None
    return fidelity.agreement(reference[: len(got)], got, kind.axis)


def _verdict(kind: OutputKind, measure: str, found: Share, limit: float, reason: str = "") -> OutputFidelity:
    return OutputFidelity(
        output=kind.output,
        kind=kind.kind,
        measure=measure,
        value=found.value,
        low=found.low,
        high=found.high,
        limit=limit,
        holds=bool(found.low <= limit),
        reason=reason,
    )


def _broken(kind: OutputKind, limit: float, reason: str) -> OutputFidelity:
    worst = Share(float("inf"), float("inf"), float("inf"))
    return _verdict(kind, "answers lost", worst, limit, reason)


def _answers(kind: OutputKind, reference: Array, got: Array, axis: int, limit: float) -> Iterator[OutputFidelity]:
    """Judge the largest entry along a class axis, and what stands behind it."""
    is_probability = kind.kind == "probabilities"
    samples = len(reference)
    changed, answers, distances = [], [], np.zeros(samples)
    for rows in _blocks(reference):
        wanted, actual = (np.moveaxis(values[rows], axis, -1) for values in (reference, got))
        own, new = wanted.argmax(-1), actual.argmax(-1)
        ahead = _at(wanted, own) - _at(wanted, new)
        near = NEAR_PROBABILITY if is_probability else NEAR_SCORES * _deviation(wanted)
        changed.append(((own != new) & ~(ahead <= near)).reshape(len(own), -1))
        answers.append(own.reshape(len(own), -1))
        if is_probability:
            apart = np.abs(actual - wanted).sum(-1, dtype=np.float64) / 2
            distances[rows] = apart.reshape(len(own), -1).mean(1)
    other, answer = np.concatenate(changed), np.concatenate(answers)
    found = share(other.sum(1).astype(float), np.full(samples, float(other.shape[1])))
    yield _verdict(kind, ANSWERS, found, limit)
    worst = _worst_class(other, answer)
    if worst is not None:
        yield _verdict(kind, "share of one answer lost", worst[1], max(CLASS_LIMIT, limit), f"class {worst[0]}")
    if is_probability:
        moved = share(distances, np.ones(samples))
        yield _verdict(kind, "distance between distributions", moved, max(DISTANCE_LIMIT, limit))
    constant = float(np.bincount(answer.ravel()).max()) / answer.size >= 1 - limit
    if constant or found.high > limit:
        why = "nearly all answers are the same" if constant else f"{samples} samples are few"
        noise = _noise(reference, got, axis, is_probability)
        yield _verdict(kind, "share of noise in its power", noise, max(NOISE_LIMIT, limit), why)


def _noise(reference: Array, got: Array, axis: int, is_probability: bool) -> Share:
    """The noise's power over the signal's, of all classes together. What is added to all scores alike changes no
    answer, and is taken off."""
    lost, of = np.zeros(len(reference)), np.zeros(len(reference))
    where = tuple(at for at in range(reference.ndim) if at != axis)
    known = np.isfinite(reference)
    sums = np.where(known, reference, 0.0).sum(where, keepdims=True, dtype=np.float64)
    mean = sums / np.maximum(1, known.sum(where, keepdims=True))
    for rows in _blocks(reference):
        finite = np.isfinite(reference[rows])
        wanted = np.where(finite, reference[rows], 0.0)
        error, signal = np.where(finite, got[rows] - wanted, 0.0), np.where(finite, wanted - mean, 0.0)
        if not is_probability:
            count = np.maximum(1, finite.sum(axis, keepdims=True))
            error = error - error.sum(axis, keepdims=True) / count
            signal = signal - signal.sum(axis, keepdims=True) / count
        lost[rows], of[rows] = (np.square(v).reshape(len(v), -1).sum(1, dtype=np.float64) for v in (error, signal))
    if of.sum() <= 1e-12 * float(np.square(np.where(np.isfinite(reference), reference, 0.0)).sum(dtype=np.float64)):
        return Share(0.0, 0.0, 0.0)  # all samples are one and the same: nothing to compare the noise with
    return share(lost, of)


def _worst_class(changed: Array, answers: Array) -> tuple[int, Share] | None:
    """Of the answers that the original gives, the one that is lost most surely; none where there is one alone.

    Args:
        changed: whether the answer is another one, of shape [samples, positions].
        answers: the original's answers, of the same shape.
    """
    classes, index = np.unique(answers, return_inverse=True)
    if len(classes) < 2:
        return None
    index = index.reshape(answers.shape)
    rows = np.repeat(np.arange(len(answers)), answers.shape[1])
    at = rows * len(classes) + index.ravel()
    size = len(answers) * len(classes)
    of = np.bincount(at, minlength=size).reshape(len(answers), -1).astype(float)
    lost = np.bincount(at, weights=changed.ravel().astype(float), minlength=size).reshape(of.shape)
    found = []
    # With a hundred classes, chance makes one of them look lost: the 5 % are shared out among them (Bonferroni).
    z = NormalDist().inv_cdf(1 - 0.025 / len(classes))
    for column in np.flatnonzero(lost.any(0)):
        held = of[:, column] > 0
        # Each sample counts alike: one image full of a class is one piece of evidence.
        shares = lost[held, column] / of[held, column]
        found.append((int(classes[column]), share(shares, np.ones(len(shares)), z)))
    return max(found, key=lambda item: (item[1].low, item[1].value), default=None)


def _values(
    kind: OutputKind, reference: Array, got: Array, axis: int | None, floor: float, limit: float
) -> OutputFidelity:
    """Judge the worst channel by its error, relative to its variation."""
    wanted, names = _channels(reference, axis)
    actual, _ = _channels(got, axis, like=reference)
    samples, channels = wanted.shape[:2]
    finite = np.isfinite(wanted)
    count = np.maximum(1, finite.sum((0, 2)))
    mean = np.zeros(channels)
    lost, of = np.zeros((samples, channels)), np.zeros((samples, channels))
    for rows in _blocks(wanted):
        mean += np.where(finite[rows], wanted[rows], 0.0).sum((0, 2), dtype=np.float64)
    mean /= count
    for rows in _blocks(wanted):
        known = np.where(finite[rows], wanted[rows], mean[:, None])
        lost[rows] = np.square(np.where(finite[rows], actual[rows] - known, 0.0)).sum(2, dtype=np.float64)
        of[rows] = np.square(known - mean[:, None]).sum(2, dtype=np.float64)
    # Each channel's variance, or what it is held to instead, in equal parts to the samples.
    held = count * np.square(np.maximum(CONSTANT * np.abs(mean), floor))
    whole = of.sum(0)
    constant = whole < held
    of[:, constant] = held[constant] / samples
    power = of.sum(0)
    silent = power <= np.square(1e-7) * power.max(initial=0.0)
    if silent.any():  # a channel of zeros alone: held to a typical channel
        power_of_others = float(np.median(power[~silent])) if (~silent).any() else float(count.max())
        of[:, silent] = power_of_others / samples
        power = of.sum(0)
    found = []
    for channel in np.flatnonzero(lost.any(0)):
        value = float(lost[:, channel].sum() / power[channel])
        error = _error(lost[:, channel], of[:, channel], value, float(power[channel]))
        found.append((int(channel), interval(value, error, samples)))
    if not found:
        return _verdict(kind, "relative error", Share(0.0, 0.0, 0.0), limit)
    at, worst = max(found, key=lambda item: (item[1].low, item[1].value))
    where = f"{names} {at}" if channels > 1 else ""
    return _verdict(kind, "relative error", Share(*np.sqrt(worst)), limit, where)


def _channels(values: Array, axis: int | None, like: Array | None = None) -> tuple[Array, str]:
    """`values` as [samples, channels, entries of a channel], and what a channel is called.

    Along `axis` where that is given. Otherwise each entry of a sample is a channel, where a sample has few; where it
    has many, the channels are along the axis whose slices differ most in magnitude.
    """
    like = values if like is None else like
    if like.ndim == 1:
        return values.reshape(len(values), 1, 1), ""
    if axis is None and like[0].size <= FEW_ENTRIES:
        return values.reshape(len(values), -1, 1), "entry"
    if axis is None or axis == 0:
        axis = max(range(1, like.ndim), key=lambda at: _separates(like, at))
    return np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1), f"channel of axis {axis}:"


def _separates(values: Array, axis: int) -> float:
    """How much slices along an axis differ in magnitude: the deviation of the logarithm of their power."""
    some = values[: max(1, BLOCK // max(1, values[0].size))]
    others = tuple(at for at in range(values.ndim) if at != axis)
    power = np.square(np.where(np.isfinite(some), some, 0.0)).mean(others, dtype=np.float64)
    power = power[power > 0]
    return float(np.std(np.log(power))) if power.size > 1 else 0.0


def _embedding(
    kind: OutputKind, reference: Array, got: Array, axis: int | None, limit: float
) -> Iterator[OutputFidelity]:
    """Judge vectors by their nearest neighbours among the samples, and by the angle between the two."""
    along = reference.ndim - 1 if axis is None or axis == 0 else axis
    wanted, actual = (np.moveaxis(values, along, -1).astype(np.float64) for values in (reference, got))
    size, samples = wanted.shape[-1], len(wanted)
    wanted, actual = _unit(wanted.reshape(samples, -1, size)), _unit(actual.reshape(samples, -1, size))
    yield from _neighbours(kind, wanted, actual, limit)
    angles = 1 - np.sum(wanted * actual, axis=-1).clip(-1, 1).min(axis=1)
    worst = float(np.quantile(angles, 1 - COSINE_SHARE, method="lower"))
    found = Share(worst, worst, float(angles.max()))
    yield _verdict(kind, "1 - cosine of the worst samples", found, max(COSINE_LIMIT, limit))


def _neighbours(kind: OutputKind, wanted: Array, actual: Array, limit: float) -> Iterator[OutputFidelity]:
    samples, positions, size = wanted.shape
    step = -(-samples * positions // MOST_VECTORS)
    one, other = wanted.reshape(-1, size)[::step], actual.reshape(-1, size)[::step]
    owner = np.repeat(np.arange(samples), positions)[::step]
    if len(one) < 3:
        return
    near, new = one @ one.T, other @ other.T
    for similarity in (near, new):
        np.fill_diagonal(similarity, -np.inf)
    own, found = near.argmax(1), new.argmax(1)
    ahead = _at(near, own) - _at(near, found)
    spread = float(near[~np.eye(len(near), dtype=bool)].std())
    changed = (own != found) & (ahead > NEAR_SIMILARITY * spread)
    lost, of = np.bincount(owner, changed, samples), np.bincount(owner, minlength=samples).astype(float)
    yield _verdict(kind, "share of other nearest neighbours", share(lost[of > 0], of[of > 0]), limit)


def _indices(
    kind: OutputKind, reference: Array, got: Array, scores: Array | None, limit: float
) -> Iterator[OutputFidelity]:
    samples = len(reference)
    if scores is None or scores.shape != reference.shape or reference.ndim < 2:
        lost = (reference != got).reshape(samples, -1).sum(1).astype(float)
        yield _verdict(kind, "share of other entries", share(lost, np.full(samples, reference[0].size or 1.0)), limit)
        return
    width = reference.shape[-1]
    wanted, actual, ahead = (v.reshape(samples, -1, width) for v in (reference, got, _as_float(scores)))
    near = NEAR_SCORES * float(ahead.std())
    in_it = (wanted[..., :, None] == actual[..., None, :]).any(-1)
    missing = ~in_it & (ahead - ahead[..., -1:] > near)
    lost = missing.reshape(samples, -1).sum(1).astype(float)
    yield _verdict(kind, "share of entries lost", share(lost, np.full(samples, float(missing[0].size))), limit)
    # The score that the original gives the new first entry, or, where that is not in its ranking, the lowest one.
    known = np.where(wanted == actual[..., :1], ahead, -np.inf).max(-1)
    known = np.where(np.isfinite(known), known, ahead[..., -1])
    changed = (wanted[..., 0] != actual[..., 0]) & (ahead[..., 0] - known > near)
    first = share(changed.sum(1).astype(float), np.full(samples, float(changed.shape[1])))
    yield _verdict(kind, "share of other first entries", first, limit)


def sums_to_one(values: Array, axis: int) -> bool:
    """Whether there is one answer a position. Certainties that are independent of each other sum to anything: these are
    judged channel by channel."""
    some = values[next(_blocks(values))]
    return bool(np.allclose(some.sum(axis, dtype=np.float64), 1, atol=NEARLY))


def _error(lost: Array, of: Array, value: float, total: float) -> float:
    """The standard error of a ratio of two sums over the samples (linearised)."""
    n = len(lost)
    if n < 2 or not total:
        return 0.0
    return float(np.sqrt(n / (n - 1) * np.square(lost - value * of).sum())) / total


def _blocks(values: Array) -> Iterator[slice]:
    """Slices of samples that hold a few million elements each."""
    step = max(1, BLOCK // max(1, values[0].size))
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _at(values: Array, index: Array) -> Array:
    found: Array = np.take_along_axis(values, index[..., None], -1)[..., 0]
    return found


def _deviation(values: Array) -> Array:
    """The standard deviation along the last axis, of what is finite."""
    finite = np.isfinite(values)
    if finite.all():
        return np.asarray(values.std(-1))
    return np.asarray(np.std(values, axis=-1, where=finite))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30))


def _as_float(values: Array) -> Array:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
