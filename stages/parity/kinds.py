"""What an output is, and what an answer of lower precision may cost it: one measure a kind.

Every function here is pure: arrays in, figures out. Samples stand on the first axis of every output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from registry.vocabulary import Kind, OutputFidelity, OutputKind
from stages.settings import Input, Output

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# The share of answers (classes, neighbours, indices) that may change: what a task loses at most. 1 % is the accuracy
# that MLPerf Inference allows a quantised submission to lose (its 99 % targets).
CHANGED = 0.01
# How much more probability the reference must give its own answer than another one, for the other to be a change: under
# that, the reference itself hardly chooses. Pitch trackers, for one, spread a peak over neighbouring bins.
HARDLY = 0.05
# The largest root mean square of what a probability may be off by, at the reference's own answers.
PROBABILITY = 0.05
# The largest error of values, relative to how much their channel varies over the samples: 26 dB of signal to noise.
# At 29 dB over a whole tensor, a detector lost 9 of 32 objects (its channel of scores was far worse than that).
VALUES = 0.05
# The largest 1 - cosine of an embedding's worst sample. Sentence embeddings at a cosine of 0.983 kept their neighbours.
EMBEDDING = 0.05
# How much nearer the reference must find its own neighbour than another one, for the other to be a change.
NEAR_TIE = 0.02

# Under a thousandth of the median channel's deviation, a channel does not vary on these samples.
STILL = 1e-3
# Confidence of an interval, two-sided.
CONFIDENCE = 0.90

# Names that say what an output is, by their parts.
_NAMES: dict[str, Kind] = {
    "logits": "scores", "logit": "scores", "scores": "scores", "score": "scores", "classes": "scores",
    "probs": "probabilities", "prob": "probabilities", "probabilities": "probabilities",
    "boxes": "values", "box": "values", "bbox": "values", "bboxes": "values", "coords": "values",
    "embedding": "embedding", "embeddings": "embedding", "embed": "embedding",
}  # fmt: skip


def kinds_of(
    outputs: Mapping[str, Output], inputs: Mapping[str, Input], answers: Arrays, labels: Array | None = None
) -> list[OutputKind]:
    """What each output is: as params.yaml declares it, else a guess with its reason.

    Args:
        outputs: the outputs of params.yaml.
        inputs: its inputs, one of which an output may feed back into.
        answers: the reference's answers, by output, over real samples.
        labels: a label for each sample, or None.
    """
    return [_kind(name, spec, inputs, answers[name], labels) for name, spec in outputs.items()]


def _kind(name: str, spec: Output, inputs: Mapping[str, Input], answers: Array, labels: Array | None) -> OutputKind:
    if spec.kind is not None:
        axis = spec.axis if spec.axis is not None else _axis(spec.kind, spec, answers)
        return OutputKind(output=name, kind=spec.kind, axis=axis, limit=spec.limit, reason="params.yaml says so")
    kind, axis, reason = _guess(name, spec, inputs, answers, labels)
    return OutputKind(output=name, kind=kind, axis=axis, limit=spec.limit, reason=reason)


def _guess(
    name: str, spec: Output, inputs: Mapping[str, Input], answers: Array, labels: Array | None
) -> tuple[Kind, int | None, str]:
    if answers.dtype.kind != "f":
        return "indices", None, f"its elements are {answers.dtype}"
    fed = next((i for i, given in inputs.items() if name.startswith(i) and given.shape == spec.shape), "")
    if fed and len(name) - len(fed) <= 6:
        return (
            "state",
            _axis("state", spec, answers),
            f"it has the shape of the input {fed}, and that name with {name[len(fed) :]!r} added",
        )
    finite = answers[np.isfinite(answers)]
    if not finite.size:
        return "values", None, "it holds no finite number"
    axis = _sums_to_one(answers)
    if axis is not None:
        return "probabilities", axis, f"it lies in 0 to 1 and adds up to 1 along axis {axis}"
    named = next((_NAMES[part] for part in name.lower().replace("-", "_").split("_") if part in _NAMES), None)
    bounded = bool(finite.min() >= 0 and finite.max() <= 1)
    if named == "probabilities" and not bounded:
        named = "scores"
    if named == "scores" and bounded and finite.min() < finite.max():
        named = "probabilities"
    if named == "scores" and (answers.ndim < 2 or _axis("scores", spec, answers) is None):
        named = "values"
    if named is not None:
        return named, _axis(named, spec, answers), f"its name, {name}"
    if _has_length_one(answers):
        return "embedding", None, "its last axis has length 1 throughout"
    classes = answers.shape[1] if answers.ndim == 2 else 0
    if _fits(labels, classes) and not bounded:
        return "scores", 1, f"the labels are integers under {classes}, the size of axis 1"
    if bounded and 0 < finite.mean() < 1 and finite.min() < finite.max():
        return "probabilities", _axis("probabilities", spec, answers), "it lies in 0 to 1"
    return "values", _axis("values", spec, answers), "nothing says more of it"


def _sums_to_one(answers: Array) -> int | None:
    """The axis along which probabilities add up to one, the last one of several."""
    if not np.isfinite(answers).all() or answers.min() < -1e-6 or answers.max() > 1 + 1e-3:
        return None
    for axis in reversed(range(1, answers.ndim)):
        if answers.shape[axis] > 1 and np.allclose(answers.sum(axis=axis, dtype=np.float64), 1.0, atol=1e-3):
            return axis
    return None


def _has_length_one(answers: Array) -> bool:
    if answers.ndim < 2 or answers.shape[-1] < 8:
        return False
    return bool(np.allclose(np.linalg.norm(answers.astype(np.float64), axis=-1), 1.0, atol=1e-3))


def _fits(labels: Array | None, classes: int) -> bool:
    if labels is None or labels.ndim != 1 or classes < 2 or labels.dtype.kind not in "iub" or not len(labels):
        return False
    return bool(labels.min() >= 0 and labels.max() < classes and len(np.unique(labels)) > 1)


def _axis(kind: Kind, spec: Output, answers: Array) -> int | None:
    """The axis of classes or channels where params.yaml names none.

    Of two axes it is the second. Of more it is one whose size is written down, for classes and channels do not vary: of
    pictures ([batch, classes, height, width]) the first such one, of sequences ([batch, time, classes]) the last.
    """
    if kind in ("indices", "embedding") or answers.ndim < 2:
        return None
    if answers.ndim == 2:
        return 1 if kind in ("values", "state") or answers.shape[1] > 1 else None
    fixed = [axis for axis in range(1, answers.ndim) if isinstance(spec.shape[axis], int) and answers.shape[axis] > 1]
    if kind in ("scores", "probabilities"):
        return (fixed[0] if answers.ndim == 4 else fixed[-1]) if fixed else None
    return max(fixed, key=lambda axis: _contrast(answers, axis), default=None)


def _contrast(answers: Array, axis: int) -> float:
    """How far apart the magnitudes of an axis' slices lie: the deviation of their logarithms."""
    others = tuple(i for i in range(answers.ndim) if i != axis)
    sizes = np.sqrt(np.square(np.nan_to_num(answers.astype(np.float64))).mean(axis=others))
    return float(np.log(sizes + 1e-12 + sizes.max() * 1e-9).std())


class Share(NamedTuple):
    """A share of answers that changed, and the interval that it lies in by the number of samples."""

    value: float
    low: float
    high: float


def share_of(changed: Array) -> Share:
    """The mean of what changed in each sample (0 to 1), with its Clopper-Pearson interval over samples.

    Positions of one sample are not independent, so that samples are what is counted: the mean times their number takes
    the place of the number of successes, which need not be whole.

    Args:
        changed: a share for each sample, shape (samples,).
    """
    count, total = len(changed), float(np.sum(changed))
    tail = (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(total, count - total + 1, tail)) if total > 0 else 0.0
    high = float(special.betaincinv(total + 1, count - total, 1 - tail)) if total < count else 1.0
    return Share(total / count if count else 0.0, low, high)


def fidelity_of(kind: OutputKind, wanted: Array, got: Array, changed: float = CHANGED) -> OutputFidelity:
    """How near one output is to the reference's, by the measure of its kind; the measure that is nearest to its limit,
    where a kind has two.

    Args:
        kind: what the output is.
        wanted: the reference's answers, samples on the first axis.
        got: the answers to judge. A fixed batch may have left out the last samples.
        changed: the share of answers that may change, where the kind has no limit of its own.
    """
    wanted = wanted[: len(got)]
    if kind.limit is None and kind.kind in ("scores", "probabilities", "indices"):
        kind = kind.model_copy(update={"limit": changed})
    if wanted.shape != got.shape:
        return _worst(kind, "shape", f"shape {list(got.shape)} instead of {list(wanted.shape)}")
    if wanted.dtype.kind == "f" and not np.isfinite(got[np.isfinite(wanted)]).all():
        return _worst(kind, "finite", "NaN or infinity where the reference has none")
    if not wanted.size:
        return OutputFidelity(output=kind.output, kind=kind.kind, measure="empty", value=0.0, limit=1.0, holds=True)
    found = _MEASURES[kind.kind](kind, wanted, got)
    return max(found, key=lambda one: (not one.holds, one.value / one.limit if one.limit else math.inf))


def _worst(kind: OutputKind, measure: str, reason: str) -> OutputFidelity:
    return OutputFidelity(
        output=kind.output, kind=kind.kind, measure=measure, value=math.inf, limit=0.0, holds=False, reason=reason
    )


def _changed(kind: OutputKind, what: str, changed: Array, predicted: float | None = None) -> OutputFidelity:
    """Judge a share of changed answers: it breaks the limit where its interval lies above that, or where it lies above
    itself and so does what the noise predicts. A few changes in few samples are evidence of neither."""
    limit = kind.limit if kind.limit is not None else CHANGED
    share = share_of(changed)
    over = share.low > limit or (share.value > limit and predicted is not None and predicted > limit)
    return OutputFidelity(
        output=kind.output, kind=kind.kind, measure=f"share of {what} that changed",
        value=share.value, low=share.low, high=share.high, limit=limit, holds=not over,
    )  # fmt: skip


def _figure(kind: OutputKind, measure: str, value: float, limit: float, where: str = "") -> OutputFidelity:
    return OutputFidelity(
        output=kind.output, kind=kind.kind, measure=measure, value=value, limit=limit, holds=value <= limit,
        where=where,
    )  # fmt: skip


def _rows(values: Array, axis: int) -> Array:
    """[samples, positions, classes], in float64."""
    moved = np.moveaxis(values, axis, -1).astype(np.float64)
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _scores(kind: OutputKind, wanted: Array, got: Array) -> list[OutputFidelity]:
    """Top-1 agreement along the class axis. Scores have no unit, so that a margin means nothing by itself: whether more
    samples would show more changes, the noise of the scores says beside their margins."""
    if kind.axis is None or wanted.ndim <= kind.axis:
        return _values(kind, wanted, got)
    reference, answers = (np.nan_to_num(_rows(values, kind.axis)) for values in (wanted, got))
    changed = reference.argmax(-1) != answers.argmax(-1)
    tied = _margin(reference) <= 1e-6 * np.abs(reference).max(-1)  # float32 itself does not decide
    changed &= ~tied
    return [_changed(kind, "top-1 answers", changed.mean(axis=1), _predicted(reference, answers))]


def _margin(rows: Array) -> Array:
    """By how much each row's largest entry exceeds its second largest."""
    if rows.shape[-1] < 2:
        return np.full(rows.shape[:-1], np.inf)
    top = np.partition(rows, -2, axis=-1)
    return np.asarray(top[..., -1] - top[..., -2])


def _predicted(reference: Array, answers: Array) -> float:
    """The share of answers that noise of this size changes: the mean over positions of P(noise > margin), with normal
    noise of the same variance as the error of a difference between two scores."""
    error = answers - reference
    error -= error.mean(-1, keepdims=True)
    noise = math.sqrt(2 * float(np.square(error).mean()))
    if noise == 0:
        return 0.0
    return float(special.ndtr(-_margin(reference) / noise).mean())


def _probabilities(kind: OutputKind, wanted: Array, got: Array) -> list[OutputFidelity]:
    """By how much the reference prefers its own answer to the new one, and how far its probability moved there."""
    if kind.axis is None:
        reference, answers = (values.reshape(len(values), -1).astype(np.float64) for values in (wanted, got))
        changed = ((reference > 0.5) != (answers > 0.5)) & (np.abs(reference - answers) > HARDLY)
        off = answers - reference
    else:
        rows, new = (_rows(values, kind.axis) for values in (wanted, got))
        top, other = rows.argmax(-1), new.argmax(-1)
        own = np.take_along_axis(rows, top[..., None], -1)[..., 0]
        changed = own - np.take_along_axis(rows, other[..., None], -1)[..., 0] > HARDLY
        off = np.take_along_axis(new, top[..., None], -1)[..., 0] - own
    moved = float(np.sqrt(np.square(off).mean()))
    return [
        _changed(kind, "decisions", changed.reshape(len(changed), -1).mean(axis=1)),
        _figure(kind, "change of the probability of its answers (rms)", moved, PROBABILITY),
    ]


def _values(kind: OutputKind, wanted: Array, got: Array) -> list[OutputFidelity]:
    """The error of the worst channel, relative to how much that channel varies over samples and positions."""
    axis = kind.axis if kind.axis is not None and kind.axis < wanted.ndim else None
    reference, answers = (values.astype(np.float64) for values in (wanted, got))
    if axis is None:
        reference, answers = reference.reshape(-1, 1), answers.reshape(-1, 1)
    else:
        reference, answers = (np.moveaxis(v, axis, -1).reshape(-1, v.shape[axis]) for v in (reference, answers))
    known = np.isfinite(reference)
    reference, answers = np.where(known, reference, 0.0), np.where(known, answers, 0.0)
    error = np.sqrt(np.square(answers - reference).mean(axis=0))
    deviation = reference.std(axis=0) if len(reference) > 1 else np.abs(reference[0])
    varying = deviation[deviation > STILL * np.median(deviation)]
    usual = float(np.median(varying)) if varying.size else float(np.abs(reference).mean())
    scale = np.where(deviation > STILL * usual, deviation, usual)
    relative = np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
    worst = int(relative.argmax())
    where = f"channel {worst} of axis {axis}" if axis is not None and len(relative) > 1 else ""
    limit = kind.limit if kind.limit is not None else VALUES
    return [_figure(kind, "relative error of the worst channel", float(relative[worst]), limit, where)]


def _embedding(kind: OutputKind, wanted: Array, got: Array) -> list[OutputFidelity]:
    """The cosine of the worst sample, and whose nearest neighbour among the samples is another one."""
    reference, answers = (_directions(values) for values in (wanted, got))
    cosine = float((reference * answers).sum(-1).min())
    found = [_figure(kind, "1 - cosine of the worst sample", 1 - cosine, kind.limit or EMBEDDING)]
    if reference.ndim == 2 and len(reference) > 2:
        before, after = reference @ reference.T, answers @ answers.T
        for similarities in (before, after):
            np.fill_diagonal(similarities, -np.inf)
        own, other = before.max(-1), np.take_along_axis(before, after.argmax(-1)[:, None], -1)[:, 0]
        found.append(_changed(kind.model_copy(update={"limit": None}), "nearest neighbours", own - other > NEAR_TIE))
    return found


def _directions(values: Array) -> Array:
    rows = values.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    directions: Array = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return directions


def _indices(kind: OutputKind, wanted: Array, got: Array) -> list[OutputFidelity]:
    """The share of elements that differ; of rows without repetition, as top-k gives them, of members that are new."""
    reference, answers = (values.reshape(len(values), -1) for values in (wanted, got))
    ordered = np.sort(reference, axis=1)
    if wanted.ndim == 2 and wanted.shape[1] > 1 and (np.diff(ordered, axis=1) != 0).all():
        changed = np.array([np.isin(new, old, invert=True).mean() for old, new in zip(reference, answers, strict=True)])
        return [_changed(kind, "members", changed)]
    return [_changed(kind, "elements", (reference != answers).mean(axis=1))]


_MEASURES: dict[Kind, Callable[[OutputKind, Array, Array], list[OutputFidelity]]] = {
    "scores": _scores,
    "probabilities": _probabilities,
    "values": _values,
    "state": _values,
    "embedding": _embedding,
    "indices": _indices,
}
