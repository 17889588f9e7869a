"""Determines the kind of each output: from params.yaml, or by a guess from the original's outputs.

A wrong guess must not let a broken graph pass. So the default is "values", where every channel is judged. Another kind
needs evidence in the numbers, the name or the labels. registry/evidence/kinds.py defines the measure of each kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.kinds import NEARLY, sums_to_one
from onward.registry.evidence.records import OutputKind
from onward.stages.config.schema import Input, Output

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# The reason of a kind that is not guessed.
SET = "set in params.yaml"
# Shorter vectors are rotations, normals or colours, not embeddings.
SHORTEST_EMBEDDING = 16
# Number of elements to examine at most.
ENOUGH = 1 << 22

# Words in names, as separated by digits, capitals and underscores.
SCORES = {"logit", "logits", "score", "scores", "class", "classes", "cls", "classification"}
EMBEDDING = {"embedding", "embeddings", "embed", "embeds", "vector", "vectors", "features", "hidden", "pooler"}
STATE_WORDS = {"n", "out", "output", "new", "next", "in", "input", "old", "prev", "past", "previous", "present", "last"}


def kinds_of(
    outputs: Mapping[str, Output], inputs: Mapping[str, Input], wanted: Arrays, labels: Array | None
) -> list[OutputKind]:
    """Determine the kind of each output, with the reason.

    Args:
        outputs: The outputs as declared in params.yaml.
        inputs: The declared inputs; a state is fed back as one of them.
        wanted: The original's outputs over the evaluation samples, samples on the first axis.
        labels: The labels of these samples, if there are any.
    """
    found = []
    for name, spec in outputs.items():
        values = wanted[name]
        ranking = _scores_beside(name, wanted) if values.dtype.kind in "iu" else ""
        if spec.kind is not None:
            axis = spec.axis
            if axis is None and spec.kind in ("scores", "probabilities"):
                axis = _class_axis(spec, values) if spec.kind == "scores" else _class_sums(_some(values))
            kind = OutputKind(output=name, kind=spec.kind, axis=axis, reason=SET)
        else:
            kind = guess(name, spec, values, labels, inputs)
        beside = ranking if kind.kind == "indices" else ""
        found.append(kind.model_copy(update={"beside": beside, "limit": spec.limit}))
    return found


def guess(name: str, spec: Output, values: Array, labels: Array | None, inputs: Mapping[str, Input]) -> OutputKind:
    """Guess the kind of an output, with the reason. The first rule that applies decides.

    Args:
        name: Name of the output.
        spec: The output as declared in params.yaml.
        values: The original's output over the evaluation samples, samples on the first axis.
        labels: The labels of these samples, if there are any.
        inputs: The declared inputs; a state is fed back as one of them.
    """

    def known(kind: str, reason: str, axis: int | None = None) -> OutputKind:
        return OutputKind.model_validate({"output": name, "kind": kind, "axis": axis, "reason": reason})

    if values.dtype.kind != "f":
        return known("indices", "booleans" if values.dtype.kind == "b" else "integers")
    some = _some(values)
    source = _fed_back(name, spec, inputs)
    if source:
        return known("state", f"has the shape and the name of the input {source}, so it is fed back as that input")
    if not np.isfinite(some).any() or values.ndim < 2:
        return known("values", "one number per sample" if values.ndim < 2 else "no finite number")
    words = _words(name)
    is_within = bool(np.nanmin(some) >= -NEARLY and np.nanmax(some) <= 1 + NEARLY)
    summed = _class_sums(some) if is_within else None
    if summed is not None:
        return known("probabilities", f"between 0 and 1, with the sum 1 along axis {summed}", summed)
    summed = _class_sums(np.exp(some)) if np.nanmax(some) <= NEARLY else None
    if summed is not None:
        return known("scores", f"logarithms of probabilities: their exponentials sum to 1 along axis {summed}", summed)
    last = values.ndim - 1
    if values.shape[last] >= SHORTEST_EMBEDDING and np.allclose(np.linalg.norm(some, axis=-1), 1, atol=NEARLY):
        return known("embedding", f"vectors of length 1 along axis {last}", last)
    if _is_sorted(some):
        return known("values", "sorted along the last axis: its largest entry is always the first")
    hits = _labelled(some, labels)
    if hits:
        return known("scores", hits, 1)
    axis = _class_axis(spec, values)
    if words & SCORES and axis is not None and not is_within:
        return known("scores", f"named {name!r}", axis)
    if words & EMBEDDING and values.shape[last] >= SHORTEST_EMBEDDING:
        return known("embedding", f"named {name!r}", last)
    if is_within:
        return known("probabilities", "between 0 and 1, without an axis along which the sum is 1")
    return known("values", "no sign of another kind")


def _some(values: Array) -> Array:
    """The first samples, with about ENOUGH elements, as float64."""
    count = max(1, ENOUGH // max(1, values[0].size)) if len(values) else 0
    return values[:count].astype(np.float64)


def _words(name: str) -> set[str]:
    """The words of a name: `pred` and `logits` for `pred_logits`, `predLogits2` and `pred.logits`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _class_sums(values: Array) -> int | None:
    """The first axis, except the batch, along which non-negative numbers sum to 1; None if there is none."""
    axes = (axis for axis in range(1, values.ndim) if values.shape[axis] > 1)
    return next((axis for axis in axes if values.size and sums_to_one(values, axis)), None)


def _is_sorted(values: Array) -> bool:
    """Whether every row is sorted along the last axis, the largest first, like the scores of a top-k."""
    return values.shape[-1] > 1 and len(values) > 1 and bool(np.all(np.diff(values, axis=-1) <= 0))


def _scores_beside(name: str, wanted: Arrays) -> str:
    """The sorted scores that belong to a ranking of indices: an output of the same shape; "" if there is none."""
    for other, values in wanted.items():
        fits = other != name and values.dtype.kind == "f" and values.shape == wanted[name].shape and values.ndim > 1
        if fits and _is_sorted(_some(values)):
            return other
    return ""


def _fed_back(name: str, spec: Output, inputs: Mapping[str, Input]) -> str:
    """The input that an output is fed back as: of its shape and, without words such as `out`, of its name."""
    for other, fed in inputs.items():
        if fed.is_float and fed.shape == spec.shape and name_stem(other) == name_stem(name) != "":
            return other
    return ""


def name_stem(name: str) -> str:
    """The words of a name of a state, without those that tell the old one from the new one: `h` of `h_out`."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    return "".join(part.lower() for part in parts if part.lower() not in STATE_WORDS)


def _labelled(values: Array, labels: Array | None) -> str:
    """Evidence that `values` are class scores for `labels`; empty if there is none.

    Each label must be the number of a column, and the largest entry of a row must be in the label's column more often
    than a constant guess would be right.
    """
    if labels is None or values.ndim != 2 or labels.ndim != 1 or labels.dtype.kind not in "iub":
        return ""
    labels = labels[: len(values)].astype(np.int64)
    if values.shape[1] < 2 or len(labels) < len(values) or labels.min() < 0 or labels.max() >= values.shape[1]:
        return ""
    hits = float(np.mean(values.argmax(1) == labels))
    if hits <= np.bincount(labels).max() / len(labels):
        return ""
    return f"its largest entry is in the label's column for {hits:.0%} of the samples"


def _class_axis(spec: Output, values: Array) -> int | None:
    """The class axis of scores, among the axes of more than one element.

    It is the only axis of a fixed size, if there is exactly one. Otherwise it is the first axis after the batch for
    images (rank 4 and more), and the last axis for anything else.
    """
    possible = [axis for axis in range(1, values.ndim) if values.shape[axis] > 1]
    fixed = [axis for axis in possible if axis < len(spec.shape) and isinstance(spec.shape[axis], int)]
    if len(fixed) == 1:
        return fixed[0]
    if not possible:
        return None
    return possible[0] if values.ndim >= 4 else possible[-1]
