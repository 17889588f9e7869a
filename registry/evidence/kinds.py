"""Measures how much each kind of output loses in lower precision, compared with the original's answers.

Each kind has its own measure: a lost share with a 95 % confidence interval. An output exceeds a limit if the whole
interval is above it. Samples are the unit of independence: the pixels of one image, or the steps of one sequence, are
not independent of each other.

- scores: the share of positions whose largest score is at another index. A changed answer does not count if the
  original hardly prefers its own answer to the new one (NEAR_SCORES). If there are too few samples for a narrow
  interval, or if nearly all samples have the same answer, the scores are also judged as values.
- probabilities with a class axis: the same with NEAR_PROBABILITY, plus the distance between the distributions.
- values, states, and probabilities without a class axis: the error of the worst channel, relative to how much that
  channel varies (the square root of noise power over signal power).
- embedding: the distance 1 - cosine of the worst samples, and the share of samples with another nearest neighbour.
- indices: the share of entries that differ. For a ranking: the share of entries that are no longer in it.

docs/measurement.md says where the limits come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from onward.registry.evidence import similarity
from onward.registry.evidence.records import OutputFidelity, OutputKind
from onward.registry.evidence.similarity import Array, Arrays

# The main measure of an output with classes.
ANSWERS = "share of changed answers"

# The 97.5 % quantile of the normal distribution, for 95 % intervals.
Z = 1.959964

# A changed answer does not count if the original's own answer leads by no more than this margin. The units: a share of
# the standard deviation of the scores at that position, a probability, and a share of the standard deviation of the
# similarities between samples.
NEAR_SCORES = 0.01
NEAR_PROBABILITY = 0.01
NEAR_SIMILARITY = 0.1

# The share of one class's positions that may change. A limit over all positions is not enough: a class of 0.3 % of all
# pixels can be lost completely while 99.7 % of the pixels agree. The value is int8's `tolerance.agreement`, applied to
# each class separately.
CLASS_LIMIT = 0.1

# Noise power over signal power, for scores that are also judged as values. A tenth (10 dB) is far more noise than
# working quantisation leaves (24 to 36 dB for a ResNet-18).
NOISE_LIMIT = 0.1

# The error of the worst channel of values, relative to its variation: a signal-to-noise ratio of 26 dB. It is judged
# per channel because a detector with 29 dB over the whole tensor lost 9 of 32 objects: its score channel was far worse.
ERROR_LIMIT = 0.05

# The mean total variation distance between probabilities, whether or not the answer changes.
DISTANCE_LIMIT = 0.05

# The limit of 1 - cosine. The worst 1 % of the samples are left out.
COSINE_LIMIT = 0.05
COSINE_SHARE = 0.01

# A channel that varies by less than 1 % of its mean is constant: any noise exceeds its variation. Its error is relative
# to 1 % of the mean instead. The error of a probability that hardly varies is relative to a deviation of 0.05.
CONSTANT = 0.01
PROBABILITY_DEVIATION = 0.05

# The tolerance for "sums to 1", about the resolution of float16.
NEARLY = 2e-3

# If a sample has at most this many entries, each entry is a channel.
FEW_ENTRIES = 64

# The number of vectors above which pairwise comparison uses a subset, and the number of elements in one block of work.
MOST_VECTORS = 2000
BLOCK = 1 << 22


class Share(NamedTuple):
    """A share with its 95 % confidence interval: 0 to 1, or more if the noise exceeds the signal."""

    value: float
    low: float
    high: float


def interval(value: float, error: float, samples: int, z: float = Z) -> Share:
    """Compute the confidence interval of a share, 95 % by default.

    This is Wilson's score interval with continuity correction (Newcombe 1998, method 4), which is close to the exact
    interval of Clopper and Pearson. It uses the effective sample size (Korn and Graubard 1998): the number of
    independent answers that would have this standard error.

    Args:
        value: The share.
        error: The share's standard error over the samples.
        samples: The number of samples.
        z: The quantile of the normal distribution for the confidence level.

    Returns:
        The share with its interval. All three numbers equal `value` if that is not finite.
    """
    if not np.isfinite(value):
        return Share(value, value, value)
    if value > 1.0:  # noise larger than the signal
        return Share(value, max(interval(1.0, 0.0, samples, z).low, value - z * error), value + z * error)
    size = float(samples)  # the effective sample size
    if value > 0.0 and error > 1e-9:
        size = max(size, value * (1 - value) / error**2)
    middle, divisor = 2 * size * value + z**2, 2 * (size + z**2)
    low = middle - 1 - z * np.sqrt(max(0.0, z**2 - 2 - 1 / size + 4 * value * (size * (1 - value) + 1)))
    high = middle + 1 + z * np.sqrt(max(0.0, z**2 + 2 - 1 / size + 4 * value * (size * (1 - value) - 1)))
    return Share(value, min(value, max(0.0, low / divisor)) if value else 0.0, max(value, min(1.0, high / divisor)))


def share(lost: Array, of: Array, z: float = Z) -> Share:
    """Estimate one share over all samples: the sum of `lost` over the sum of `of` (a ratio estimate).

    Args:
        lost: What each sample lost, [samples].
        of: What each sample could lose, [samples].
        z: The quantile of the normal distribution for the confidence level.

    Returns:
        The share with its interval; 0 with the interval 0 to 1 if there is nothing to lose.
    """
    samples, total = len(lost), float(of.sum())
    if samples == 0 or total == 0.0:
        return Share(0.0, 0.0, 1.0)
    value = float(lost.sum()) / total
    return interval(value, _error(lost, of, value, total), samples, z)


def judge(kind: OutputKind, wanted: Arrays, got: Arrays, changed: float) -> list[OutputFidelity]:
    """Judge one output by every measure of its kind.

    Samples are on the first axis. If the batch size is fixed, `got` may lack the samples of an incomplete last batch;
    these samples are ignored.

    Args:
        kind: The kind of the output.
        wanted: All outputs of the original, by name, [samples, ...] each.
        got: All outputs of the graph under judgement, by name, [samples, ...] each.
        changed: The share of answers that may change if the kind has no limit of its own.

    Returns:
        One result per measure. The first is the kind's main measure, compared with the kind's own `limit`. The list is
        empty if there are no samples.
    """
    name = kind.output
    limit = changed if kind.limit is None else kind.limit
    if name not in got or got[name].shape[1:] != wanted[name].shape[1:]:
        return [_broken(kind, limit, "is missing or has another shape")]
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
        return [_broken(kind, limit, "has NaN or infinity where the original has a number")]
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
    """Compute the share of positions whose largest entry along the class axis is the original's.

    Args:
        kind: The kind of the output.
        reference: The original's answers, [samples, ...].
        got: The answers under judgement, [samples, ...]; it may lack samples of an incomplete last batch.

    Returns:
        The share, or None if the output has no class axis.
    """
    if kind.kind not in ("scores", "probabilities") or kind.axis is None:
        return None
    return similarity.agreement(reference[: len(got)], got, kind.axis)


def _counted(kind: OutputKind, measure: str, lost: Array, of: Array, limit: float) -> OutputFidelity:
    """Judge a share of changed answers: the share itself, not the end of its interval, must be within the limit.

    A team counts the same answers, so a share above its limit is a broken promise, even if chance could explain it. One
    changed answer is always accepted, because a smaller share than that cannot be seen.

    Args:
        kind: The kind of the output.
        measure: What is counted.
        lost: The changed answers of each sample, [samples].
        of: All answers of each sample, [samples].
        limit: The largest acceptable share.
    """
    found = share(lost, of)
    verdict = _verdict(kind, measure, found, limit)
    return verdict.model_copy(update={"holds": bool(found.value <= limit or lost.sum() <= 1)})


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
    """Judge the largest entry along a class axis, and the distributions or the noise behind it."""
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
            distance = np.abs(actual - wanted).sum(-1, dtype=np.float64) / 2
            distances[rows] = distance.reshape(len(own), -1).mean(1)
    is_changed, answer = np.concatenate(changed), np.concatenate(answers)
    lost = is_changed.sum(1).astype(float)
    counted = _counted(kind, ANSWERS, lost, np.full(samples, float(is_changed.shape[1])), limit)
    yield counted
    worst = _worst_class(is_changed, answer)
    if worst is not None:
        yield _verdict(kind, "share of one class lost", worst[1], max(CLASS_LIMIT, limit), f"class {worst[0]}")
    if is_probability:
        moved = share(distances, np.ones(samples))
        yield _verdict(kind, "distance between distributions", moved, max(DISTANCE_LIMIT, limit))
    constant = float(np.bincount(answer.ravel()).max()) / answer.size >= 1 - limit
    if constant or counted.high > limit:
        why = "nearly all answers are the same" if constant else f"only {samples} samples"
        noise = _noise(reference, got, axis, is_probability)
        yield _verdict(kind, "noise power over signal power", noise, max(NOISE_LIMIT, limit), why)


def _noise(reference: Array, got: Array, axis: int, is_probability: bool) -> Share:
    """Noise power over signal power of all classes together.

    A constant added to all scores of a position changes no answer, so it is subtracted first.
    """
    noise_power, signal_power = np.zeros(len(reference)), np.zeros(len(reference))
    other_axes = tuple(other for other in range(reference.ndim) if other != axis)
    known = np.isfinite(reference)
    sums = np.where(known, reference, 0.0).sum(other_axes, keepdims=True, dtype=np.float64)
    mean = sums / np.maximum(1, known.sum(other_axes, keepdims=True))
    for rows in _blocks(reference):
        finite = np.isfinite(reference[rows])
        wanted = np.where(finite, reference[rows], 0.0)
        error, signal = np.where(finite, got[rows] - wanted, 0.0), np.where(finite, wanted - mean, 0.0)
        if not is_probability:
            count = np.maximum(1, finite.sum(axis, keepdims=True))
            error = error - error.sum(axis, keepdims=True) / count
            signal = signal - signal.sum(axis, keepdims=True) / count
        noise_power[rows], signal_power[rows] = (
            np.square(values).reshape(len(values), -1).sum(1, dtype=np.float64) for values in (error, signal)
        )
    total = float(np.square(np.where(known, reference, 0.0)).sum(dtype=np.float64))
    if signal_power.sum() <= 1e-12 * total:
        return Share(0.0, 0.0, 0.0)  # all samples are equal: there is no signal to compare the noise with
    return share(noise_power, signal_power)


def _worst_class(changed: Array, answers: Array) -> tuple[int, Share] | None:
    """The class whose loss is most certain, with its lost share; None if the original gives only one answer.

    Args:
        changed: Whether the answer changed, [samples, positions].
        answers: The original's answers, [samples, positions].
    """
    classes, index = np.unique(answers, return_inverse=True)
    if len(classes) < 2:
        return None
    index = index.reshape(answers.shape)
    rows = np.repeat(np.arange(len(answers)), answers.shape[1])
    cell = rows * len(classes) + index.ravel()  # of the table [samples, classes]
    size = len(answers) * len(classes)
    total = np.bincount(cell, minlength=size).reshape(len(answers), -1).astype(float)
    lost = np.bincount(cell, weights=changed.ravel().astype(float), minlength=size).reshape(total.shape)
    found = []
    # With a hundred classes, one looks lost by chance. So the 5 % are divided by their number (Bonferroni).
    z = NormalDist().inv_cdf(1 - 0.025 / len(classes))
    for column in np.flatnonzero(lost.any(0)):
        has_class = total[:, column] > 0
        # Each sample has the same weight: one image full of a class is one piece of evidence.
        shares = lost[has_class, column] / total[has_class, column]
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
    noise, signal = np.zeros((samples, channels)), np.zeros((samples, channels))
    for rows in _blocks(wanted):
        mean += np.where(finite[rows], wanted[rows], 0.0).sum((0, 2), dtype=np.float64)
    mean /= count
    for rows in _blocks(wanted):
        known = np.where(finite[rows], wanted[rows], mean[:, None])
        noise[rows] = np.square(np.where(finite[rows], actual[rows] - known, 0.0)).sum(2, dtype=np.float64)
        signal[rows] = np.square(known - mean[:, None]).sum(2, dtype=np.float64)
    # A channel with less power than this minimum gets the minimum instead, in equal parts per sample.
    minimum = count * np.square(np.maximum(CONSTANT * np.abs(mean), floor))
    constant = signal.sum(0) < minimum
    signal[:, constant] = minimum[constant] / samples
    power = signal.sum(0)
    silent = power <= np.square(1e-7) * power.max(initial=0.0)
    if silent.any():  # a channel of zeros only gets the power of a typical channel
        power_of_others = float(np.median(power[~silent])) if (~silent).any() else float(count.max())
        signal[:, silent] = power_of_others / samples
        power = signal.sum(0)
    found = []
    for channel in np.flatnonzero(noise.any(0)):
        value = float(noise[:, channel].sum() / power[channel])
        error = _error(noise[:, channel], signal[:, channel], value, float(power[channel]))
        found.append((int(channel), interval(value, error, samples)))
    if not found:
        return _verdict(kind, "relative error", Share(0.0, 0.0, 0.0), limit)
    index, worst = max(found, key=lambda item: (item[1].low, item[1].value))
    where = f"{names} {index}" if channels > 1 else ""
    return _verdict(kind, "relative error", Share(*np.sqrt(worst)), limit, where)


def _channels(values: Array, axis: int | None, like: Array | None = None) -> tuple[Array, str]:
    """Reshape `values` to [samples, channels, entries per channel]; also return what messages call a channel.

    The channels are along `axis` if it is given. Otherwise each entry of a small sample is a channel. In a larger
    sample the channels are along the axis whose slices differ most in magnitude.
    """
    like = values if like is None else like
    if like.ndim == 1:
        return values.reshape(len(values), 1, 1), ""
    if axis is None and like[0].size <= FEW_ENTRIES:
        return values.reshape(len(values), -1, 1), "entry"
    if axis is None or axis == 0:
        axis = max(range(1, like.ndim), key=lambda candidate: _separates(like, candidate))
    return np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1), f"channel of axis {axis}:"


def _separates(values: Array, axis: int) -> float:
    """How much slices along an axis differ in magnitude: the standard deviation of the logarithm of their power."""
    some = values[: max(1, BLOCK // max(1, values[0].size))]
    other_axes = tuple(other for other in range(values.ndim) if other != axis)
    power = np.square(np.where(np.isfinite(some), some, 0.0)).mean(other_axes, dtype=np.float64)
    power = power[power > 0]
    return float(np.std(np.log(power))) if power.size > 1 else 0.0


def _embedding(
    kind: OutputKind, reference: Array, got: Array, axis: int | None, limit: float
) -> Iterator[OutputFidelity]:
    """Judge vectors by their nearest neighbours among the samples, and by their angle to the original's vectors."""
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
    for similarities in (near, new):
        np.fill_diagonal(similarities, -np.inf)
    own, found = near.argmax(1), new.argmax(1)
    ahead = _at(near, own) - _at(near, found)
    spread = float(near[~np.eye(len(near), dtype=bool)].std())
    changed = (own != found) & (ahead > NEAR_SIMILARITY * spread)
    lost, total = np.bincount(owner, changed, samples), np.bincount(owner, minlength=samples).astype(float)
    used = total > 0
    yield _counted(kind, "share of changed nearest neighbours", lost[used], total[used], limit)


def _indices(
    kind: OutputKind, reference: Array, got: Array, scores: Array | None, limit: float
) -> Iterator[OutputFidelity]:
    samples = len(reference)
    if scores is None or scores.shape != reference.shape or reference.ndim < 2:
        lost = (reference != got).reshape(samples, -1).sum(1).astype(float)
        yield _verdict(kind, "share of changed entries", share(lost, np.full(samples, reference[0].size or 1.0)), limit)
        return
    width = reference.shape[-1]
    wanted, actual, ranked = (values.reshape(samples, -1, width) for values in (reference, got, _as_float(scores)))
    near = NEAR_SCORES * float(ranked.std())
    in_it = (wanted[..., :, None] == actual[..., None, :]).any(-1)
    missing = ~in_it & (ranked - ranked[..., -1:] > near)
    lost = missing.reshape(samples, -1).sum(1).astype(float)
    yield _verdict(kind, "share of entries lost", share(lost, np.full(samples, float(missing[0].size))), limit)
    # The original's score of the new first entry; the lowest score if that entry is not in the original's ranking.
    known = np.where(wanted == actual[..., :1], ranked, -np.inf).max(-1)
    known = np.where(np.isfinite(known), known, ranked[..., -1])
    changed = (wanted[..., 0] != actual[..., 0]) & (ranked[..., 0] - known > near)
    firsts = changed.sum(1).astype(float)
    yield _counted(kind, "share of changed first entries", firsts, np.full(samples, float(changed.shape[1])), limit)


def sums_to_one(values: Array, axis: int) -> bool:
    """Tell whether probabilities along an axis sum to 1, so that each position has one answer.

    Independent probabilities (of labels that do not exclude each other) can have any sum. They are judged channel by
    channel.

    Args:
        values: Probabilities, [samples, ...].
        axis: The axis of the classes.

    Returns:
        Whether the sums of a first block of samples are 1 within NEARLY.
    """
    some = values[next(_blocks(values))]
    return bool(np.allclose(some.sum(axis, dtype=np.float64), 1, atol=NEARLY))


def _error(lost: Array, of: Array, value: float, total: float) -> float:
    """The standard error of a ratio of two sums over the samples (linearised)."""
    samples = len(lost)
    if samples < 2 or not total:
        return 0.0
    return float(np.sqrt(samples / (samples - 1) * np.square(lost - value * of).sum())) / total


def _blocks(values: Array) -> Iterator[slice]:
    """Slices of samples with a few million elements each."""
    step = max(1, BLOCK // max(1, values[0].size))
    for start in range(0, len(values), step):
        yield slice(start, start + step)


def _at(values: Array, index: Array) -> Array:
    found: Array = np.take_along_axis(values, index[..., None], -1)[..., 0]
    return found


def _deviation(values: Array) -> Array:
    """The standard deviation of the finite entries along the last axis."""
    finite = np.isfinite(values)
    if finite.all():
        return np.asarray(values.std(-1))
    return np.asarray(np.std(values, axis=-1, where=finite))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30))


def _as_float(values: Array) -> Array:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
