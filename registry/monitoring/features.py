"""What is watched of a tensor: a few numbers, categories or shares per sample, whatever its shape and type.

- Small tensors of numbers: each column. Integers with few values and booleans count as categories.
- Larger tensors of floats, and images: mean and spread per channel, random projections, and all projections together.
- Token ids: shares of hashed buckets without the padding, and the length.
- Text: shares of hashed words, and the length.
- Scores and probabilities: the class, the margin between the two best classes, and the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.records import OutputKind, Record
from onward.registry.monitoring.hashing import BUCKETS, buckets, signs, word_buckets

Array = npt.NDArray[Any]
# Tensors with at most this many elements per sample are watched column by column.
MOST_COLUMNS = 32
# Integer tensors with more elements per sample are sequences of token ids.
MOST_CATEGORIES = 8
# Images have at most this many channels.
MOST_CHANNELS = 4
# Random projections: of all together, and of those that are watched one by one.
PROJECTIONS = 16
WATCHED_PROJECTIONS = 8
# Elements of a tensor that are converted to float64 at a time.
_CHUNK = 1 << 22
# A value is padding if at least this share of samples begins or ends with it twice.
_PADDED = 0.1

Layout = Literal["columns", "large", "tokens", "words", "classes"]
Family = Literal["numbers", "integers", "shares", "vectors"]


class Raw(NamedTuple):
    """One feature of some samples.

    Attributes:
        label: Its name within the tensor; "" for the tensor itself.
        family: "numbers" and "integers" are [samples]; "shares" (sum 1 per sample) and "vectors" are [samples, size].
        values: The values.
    """

    label: str
    family: Family
    values: Array


class Watched(Record):
    """A tensor, and how its features are computed.

    Attributes:
        name: The tensor's name.
        kind: Whether it is an input or an output.
        layout: Which features it has.
        shape: The sizes of one sample. Samples of other sizes have fewer features, or none.
        axis: The class axis or the channel axis, counted with the samples on axis 0; null if there is none.
        pad: The padding of token ids; null if there is none.
        lowest: The smallest token or class, if each has a bucket of its own; null if they are hashed.
    """

    name: str
    kind: Literal["input", "output"]
    layout: Layout
    shape: list[int]
    axis: int | None = None
    pad: int | None = None
    lowest: int | None = None

    def title(self, label: str) -> str:
        """The name of a feature, such as "input image: mean" or "input age[3]"."""
        between = "" if not label or label.startswith("[") else ": "
        return f"{self.kind} {self.name}{between}{label}"


def as_array(values: object) -> Array | None:
    """Convert samples to an array of numbers or texts; None if that is not possible or there is none."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiubOUS":
            array = array.astype(np.float64)  # types of other packages, such as bfloat16
    except (TypeError, ValueError):
        return None
    return array if array.ndim and array.size else None


def pieces(values: Array | Sequence[Array]) -> Iterator[Array]:
    """Yield the arrays of a window's tensor: one, or one per request."""
    for part in values if isinstance(values, list | tuple) else (values,):
        array = as_array(part)
        if array is not None:
            yield array


def watched(name: str, kind: Literal["input", "output"], values: Array, known: OutputKind | None) -> Watched:
    """Choose how a tensor is watched.

    Args:
        name: The tensor's name.
        kind: Whether it is an input or an output.
        values: Its values at publication, samples on the first axis.
        known: The kind of an output, if it is known.
    """
    shape = list(values.shape[1:])
    size = int(np.prod(shape))
    found = Watched(name=name, kind=kind, layout="columns", shape=shape)
    if values.dtype.kind in "OUS":
        return found.model_copy(update={"layout": "words"})
    if known is not None and known.kind in ("scores", "probabilities") and known.axis is not None:
        axis = known.axis - known.steps
        if values.dtype.kind == "f" and 0 < axis < values.ndim and values.shape[axis] > 1:
            lowest = 0 if values.shape[axis] < BUCKETS else None
            return found.model_copy(update={"layout": "classes", "axis": axis, "lowest": lowest})
    if values.dtype.kind in "iu" and size > MOST_CATEGORIES and not (values.itemsize == 1 and values.ndim > 2):
        tokens = _integers(values).reshape(len(values), -1)
        spread = int(tokens.max()) - int(tokens.min())
        lowest = int(tokens.min()) if spread < BUCKETS - 1 else None
        return found.model_copy(update={"layout": "tokens", "pad": _padding(tokens), "lowest": lowest})
    if size <= (MOST_CATEGORIES if values.dtype.kind in "iub" else MOST_COLUMNS):
        return found
    return found.model_copy(update={"layout": "large", "axis": _channels(values)})


def _channels(values: Array) -> int | None:
    """The channel axis of images: the first or the last of three, with few elements."""
    if values.ndim != 4:
        return None
    return next((axis for axis in (1, 3) if values.shape[axis] <= MOST_CHANNELS), None)


def _padding(tokens: Array) -> int | None:
    """The value that most often fills the ends of sequences; None if that is rare."""
    best, most = None, _PADDED * len(tokens)
    for first, second in ((tokens[:, -1], tokens[:, -2]), (tokens[:, 0], tokens[:, 1])):
        twice, counts = np.unique(first[first == second], return_counts=True)
        if len(twice) and counts.max() >= most:
            best, most = int(twice[counts.argmax()]), float(counts.max())
    return best


def features(tensor: Watched, values: Array) -> list[Raw]:
    """Compute the features of samples.

    Args:
        tensor: The tensor.
        values: Its samples, on the first axis (`as_array`).

    Returns:
        The features. Empty if the samples' type or number of axes is not the tensor's.
    """
    is_text = values.dtype.kind in "OUS"
    if is_text != (tensor.layout == "words") or values.ndim != len(tensor.shape) + 1:
        return []
    with np.errstate(all="ignore"):
        return list(_LAYOUTS[tensor.layout](tensor, values))


def _columns(tensor: Watched, values: Array) -> Iterator[Raw]:
    if list(values.shape[1:]) != tensor.shape:
        return
    flat = values.reshape(len(values), -1)
    for column in range(flat.shape[1]):
        label = f"[{column}]" if flat.shape[1] > 1 else ""
        if values.dtype.kind == "f":
            yield Raw(label, "numbers", flat[:, column].astype(np.float64))
        else:
            yield Raw(label, "integers", _integers(flat[:, column]))
    if values.dtype.kind == "f":
        yield _not_finite(flat)
        if tensor.kind == "output" and flat.shape[1] > 1:
            yield Raw("norm", "numbers", _norm(flat))


def _large(tensor: Watched, values: Array) -> Iterator[Raw]:
    if values.dtype.kind not in "fiub":
        return
    axis, same = tensor.axis, list(values.shape[1:]) == tensor.shape
    channels = 1 if axis is None else tensor.shape[axis - 1]
    if axis is not None and values.shape[axis] != channels:
        return

    def moments(part: Array) -> Array:
        split = part[:, None] if axis is None else np.moveaxis(part, axis, 1)
        split = split.reshape(len(part), channels, -1)
        found = [split.mean(2), split.std(2), _norm(part.reshape(len(part), -1))[:, None]]
        return np.concatenate([*found, np.any(~np.isfinite(split), axis=(1, 2), keepdims=True)[:, 0]], axis=1)

    numbers = _by_chunks(values, moments)
    for channel in range(channels):
        which = f" of channel {channel}" if channels > 1 else ""
        yield Raw(f"mean{which}", "numbers", numbers[:, channel])
        yield Raw(f"spread{which}", "numbers", numbers[:, channels + channel])
    if tensor.kind == "output":
        yield Raw("norm", "numbers", numbers[:, 2 * channels])
    yield Raw("not finite", "integers", numbers[:, -1].astype(np.int64))
    if not same:
        return
    vectors = signs(int(np.prod(tensor.shape)), PROJECTIONS)
    projected = _by_chunks(values, lambda part: part.reshape(len(part), -1) @ vectors)
    for number in range(WATCHED_PROJECTIONS):
        yield Raw(f"projection {number + 1}", "numbers", projected[:, number])
    yield Raw("projections", "vectors", projected)


def _tokens(tensor: Watched, values: Array) -> Iterator[Raw]:
    if values.dtype.kind not in "iub":
        return
    tokens = _integers(values).reshape(len(values), -1)
    kept = np.ones(tokens.shape, bool)
    if tensor.pad is not None:
        is_pad = tokens == tensor.pad
        kept &= ~np.logical_and.accumulate(is_pad, axis=1)
        kept &= ~np.logical_and.accumulate(is_pad[:, ::-1], axis=1)[:, ::-1]
    sizes = kept.sum(1)
    yield Raw("tokens", "shares", _row_shares(buckets(tokens, tensor.lowest), kept))
    yield Raw("length", "numbers", sizes.astype(np.float64))


def _words(_: Watched, values: Array) -> Iterator[Raw]:
    rows = [" ".join(_text(part) for part in row) for row in values.reshape(len(values), -1)]
    known: dict[str, Array] = {}
    for text in rows:
        if text not in known:
            known[text] = np.bincount(word_buckets(text), minlength=BUCKETS) / max(1, len(word_buckets(text)))
            if not known[text].any():
                known[text][-1] = 1.0
    yield Raw("words", "shares", np.stack([known[text] for text in rows]))
    yield Raw("length", "numbers", np.array([len(text) for text in rows], np.float64))


def _classes(tensor: Watched, values: Array) -> Iterator[Raw]:
    axis = tensor.axis or values.ndim - 1
    if values.dtype.kind != "f" or values.shape[axis] != tensor.shape[axis - 1]:
        return
    scores = np.moveaxis(values, axis, -1).reshape(len(values), -1, values.shape[axis])
    if not scores.size:
        return
    chosen = scores.argmax(-1)
    if chosen.shape[1] == 1:
        yield Raw("class", "integers", chosen[:, 0])
    else:
        yield Raw("class", "shares", _row_shares(buckets(chosen, tensor.lowest), np.ones(chosen.shape, bool)))
    best = _by_chunks(scores, lambda part: np.partition(part, -2, axis=-1)[..., -2:])
    yield Raw("margin", "numbers", (best[..., 1] - best[..., 0]).mean(1))
    flat = values.reshape(len(values), -1)
    yield Raw("norm", "numbers", _norm(flat))
    yield _not_finite(flat)


_LAYOUTS: Mapping[Layout, Callable[[Watched, Array], Iterator[Raw]]] = {
    "columns": _columns,
    "large": _large,
    "tokens": _tokens,
    "words": _words,
    "classes": _classes,
}


def _integers(values: Array) -> Array:
    """Integers of any type as int64; those of 64 bits without a sign wrap around."""
    return values.astype(np.int64)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _row_shares(codes: Array, kept: Array) -> Array:
    """The shares of buckets in each row; a row with nothing kept counts as the last bucket."""
    rows = np.nonzero(kept)[0]
    flat = np.bincount(rows * BUCKETS + codes[kept], minlength=len(codes) * BUCKETS).reshape(len(codes), BUCKETS)
    sizes = kept.sum(1)
    found: Array = flat / np.maximum(sizes, 1)[:, None]
    found[sizes == 0, -1] = 1.0
    return found


def _not_finite(flat: Array) -> Raw:
    return Raw("not finite", "integers", np.any(~np.isfinite(flat), axis=1).astype(np.int64))


def _norm(flat: Array) -> Array:
    """The root mean square of each row's finite elements, which does not grow with the number of elements."""
    numbers = flat.astype(np.float64)
    finite = np.isfinite(numbers)
    squares = np.square(np.where(finite, numbers, 0)).sum(1)
    found: Array = np.sqrt(np.where(finite.any(1), squares / np.maximum(finite.sum(1), 1), np.nan))
    return found


def _by_chunks(values: Array, of: Callable[[Array], Array]) -> Array:
    """Compute something of each sample in float64, without a copy of the whole tensor."""
    rows = max(1, _CHUNK // max(1, values[0].size))
    parts = [of(values[start : start + rows].astype(np.float64)) for start in range(0, len(values), rows)]
    return np.concatenate(parts)
