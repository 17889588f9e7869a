"""What a caller gives, as an array of an input's dtype: the values that were given, or a refusal; never others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError

Array = npt.NDArray[Any]

# ONNX Runtime's names for element types where NumPy's differ; the others are the same.
_ELEMENTS = {"float": "float32", "double": "float64", "string": "object"}
# Beyond this, float64 does not hold every whole number.
_EXACT = 2**53


def to_dtype(kind: str) -> np.dtype[Any]:
    """NumPy's dtype of ONNX Runtime's `tensor(float)`.

    Raises:
        UsageError: NumPy has none, or it is no tensor.
    """
    element = kind.removeprefix("tensor(").removesuffix(")")
    try:
        found = np.dtype(_ELEMENTS.get(element, element))
    except (TypeError, ValueError):
        found = np.dtype("V")
    if found.kind == "V":  # also bfloat16, which NumPy knows once another package has brought it
        raise UsageError(f"{kind} has no counterpart in NumPy; use onnxruntime itself for this model")
    return found


def to_array(value: Any, dtype: np.dtype[Any], name: str, documented: object) -> Array:
    """`value` as an array of `dtype`, with the same values.

    Numbers in an array are converted where `dtype` holds all that the array's own dtype may hold, and from float64 to
    float32, where they are rounded. Numbers in lists, which have no dtype of their own, are converted where `dtype`
    holds these numbers; to a float they are rounded.

    Args:
        value: an array, a torch tensor, a number, a string, or lists of these.
        dtype: that of the input; object for strings.
        name: of the input.
        documented: the input as messages have it.

    Raises:
        UsageError: it is no array, or a value would become another one: a mask would be dropped, a number does not fit.
    """
    if _is_masked(value):
        raise UsageError(
            f"input {name} is a masked array, and a model takes no mask; give .filled(VALUE), or .data without the mask"
        )
    bare = isinstance(value, (list, tuple, int, float, bool, str))
    array = _as_array(value, name, object if bare and dtype.kind == "O" else None)
    if dtype.kind == "O" and array.dtype.kind in "OUT":
        return _strings(array, name, documented)
    if array.dtype == dtype:
        return array
    if not _is_convertible(array, dtype, bare):
        hint = "" if bare else f"; convert it yourself if that is meant (.astype({_name(dtype)!r}))"
        raise UsageError(f"input {name} is {array.dtype}, the model takes {documented}{hint}")
    with np.errstate(over="ignore"):
        made = array.astype(dtype)
    wrong = _wrong(array, made)
    if wrong is not None:
        at = np.unravel_index(int(np.argmax(wrong)), array.shape)
        raise UsageError(
            f"input {name} holds {array[at]}{position(at)}, which {dtype} cannot hold; the model takes {documented}"
        )
    return made


def position(at: Iterable[Any]) -> str:
    """Where in an array, in words; nothing for a scalar."""
    indices = [int(index) for index in at]
    return f" at {indices}" if indices else ""


def _as_array(value: Any, name: str, dtype: Any) -> Array:
    try:
        if hasattr(value, "detach"):  # a torch tensor, known by its manners: torch is not imported here
            value = value.detach().cpu().numpy()
        return np.asarray(value, dtype=dtype)
    except Exception as error:  # whatever an object raises that is asked for its array
        first = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "; .float() makes a float32 tensor" if "bfloat16" in str(getattr(value, "dtype", "")) else ""
        raise UsageError(f"input {name} cannot be made an array: {first}{hint}") from error


def _is_masked(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))  # of a long list, the kinds alone are looked at
        if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
            return True
        return any(issubclass(kind, (list, tuple)) for kind in kinds) and any(map(_is_masked, value))
    return isinstance(value, np.ma.MaskedArray)


def _strings(array: Array, name: str, documented: object) -> Array:
    """An array of Python's strings; ONNX Runtime would take the words for any other object."""
    array = array.astype(object, copy=False)
    for at, item in np.ndenumerate(array):
        if not isinstance(item, str):
            raise UsageError(f"input {name} is object, with {item!r}{position(at)}; the model takes {documented}")
    return array


def _is_convertible(array: Array, dtype: np.dtype[Any], bare: bool) -> bool:
    """Whether numbers of the array's dtype may be given for `dtype` at all."""
    source = array.dtype
    if source.kind not in "biuf" or dtype.kind not in "biuf":
        return False
    if np.can_cast(source, dtype, "safe") or (source.newbyteorder("=") == np.float64 and dtype == np.float32):
        return True
    return bare and (array.size == 0 or dtype.kind == "f" or (dtype.kind in "iu" and source.kind in "iu"))


def _wrong(array: Array, made: Array) -> npt.NDArray[np.bool_] | None:
    """Which values are not what they were, up to the rounding of a float; None where all are."""
    wrong = None
    if made.dtype.kind in "iu" and not np.can_cast(array.dtype, made.dtype, "safe"):
        limits = np.iinfo(made.dtype)
        wrong = (array < limits.min) | (array > limits.max)
    elif made.dtype.kind == "f" and array.dtype.kind in "fiu":
        if array.dtype.kind in "iu" and made.dtype == np.float64 and array.dtype.itemsize == 8:
            wrong = (array > _EXACT) | (array < -_EXACT)
        elif not np.isfinite(made).all():
            wrong = np.isinf(made) & np.isfinite(array)
    return wrong if wrong is not None and wrong.any() else None


def _name(dtype: np.dtype[Any]) -> str:
    return "str" if dtype.kind == "O" else str(dtype)
