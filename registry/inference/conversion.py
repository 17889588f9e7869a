"""Convert a caller's values to an array of an input's dtype, and reject values that would change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError

Array = npt.NDArray[Any]

# The element types that have another name in ONNX Runtime than in NumPy.
_ELEMENTS = {"float": "float32", "double": "float64", "string": "object"}
# Above this, float64 cannot represent every integer.
_EXACT = 2**53


def to_dtype(kind: str) -> np.dtype[Any]:
    """The NumPy dtype of an ONNX Runtime type.

    Args:
        kind: the type as ONNX Runtime writes it, such as `tensor(float)`.

    Raises:
        UsageError: NumPy has no such dtype, or the type is not a tensor.
    """
    element = kind.removeprefix("tensor(").removesuffix(")")
    try:
        found = np.dtype(_ELEMENTS.get(element, element))
    except (TypeError, ValueError):
        found = np.dtype("V")
    if found.kind == "V":  # this includes bfloat16, which other packages may add to NumPy
        raise UsageError(f"NumPy has no dtype for {kind}; use onnxruntime itself for this model")
    return found


def to_array(value: Any, dtype: np.dtype[Any], name: str, documented: object) -> Array:
    """Convert a value to an array of a dtype, without changing its numbers.

    Arrays are converted if `dtype` can represent every value of the array's own dtype (NumPy's "safe" casts). The one
    exception is float64 to float32, which rounds. Lists have no dtype, so their numbers are converted if `dtype` can
    represent these numbers; conversion to a float dtype rounds them.

    Args:
        value: an array, a torch tensor, a number, a string, or lists of these.
        dtype: the dtype of the input; object for strings.
        name: the name of the input.
        documented: the input, as messages describe it.

    Raises:
        UsageError: the value cannot become an array, it is a masked array, or `dtype` cannot represent a number.
    """
    if _is_masked(value):
        raise UsageError(
            f"input {name} is a masked array, and models ignore masks; give .filled(VALUE), or .data without the mask"
        )
    bare = isinstance(value, (list, tuple, int, float, bool, str))
    array = _as_array(value, name, object if bare and dtype.kind == "O" else None)
    if dtype.kind == "O" and array.dtype.kind in "OUT":
        return _strings(array, name, documented)
    if array.dtype == dtype:
        return array
    if not _is_convertible(array, dtype, bare):
        hint = "" if bare else f"; convert it yourself if you want that (.astype({_name(dtype)!r}))"
        raise UsageError(f"input {name} is {array.dtype}, the model takes {documented}{hint}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    wrong = _changed(array, converted)
    if wrong is not None:
        index = np.unravel_index(int(np.argmax(wrong)), array.shape)
        raise UsageError(
            f"input {name} contains {array[index]}{position(index)}, which {dtype} cannot represent; the model takes "
            f"{documented}"
        )
    return converted


def position(at: Iterable[Any]) -> str:
    """An index as part of a message: " at [0, 2]"; "" for a scalar.

    Args:
        at: the index along each axis.
    """
    indices = [int(index) for index in at]
    return f" at {indices}" if indices else ""


def _as_array(value: Any, name: str, dtype: Any) -> Array:
    try:
        if hasattr(value, "detach"):  # a torch tensor; torch itself is not imported here
            value = value.detach().cpu().numpy()
        return np.asarray(value, dtype=dtype)
    except Exception as error:  # an object's conversion to an array may raise any exception
        first = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "; .float() makes a float32 tensor" if "bfloat16" in str(getattr(value, "dtype", "")) else ""
        raise UsageError(f"input {name} cannot be converted to an array: {first}{hint}") from error


def _is_masked(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))  # a list may be long, so each type is checked only once
        if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
            return True
        return any(issubclass(kind, (list, tuple)) for kind in kinds) and any(map(_is_masked, value))
    return isinstance(value, np.ma.MaskedArray)


def _strings(array: Array, name: str, documented: object) -> Array:
    """An array of Python strings. Other objects are rejected, because ONNX Runtime would use their string form."""
    array = array.astype(object, copy=False)
    for index, item in np.ndenumerate(array):
        if not isinstance(item, str):
            raise UsageError(
                f"input {name} contains {item!r}{position(index)}, which is not a string; the model takes {documented}"
            )
    return array


def _is_convertible(array: Array, dtype: np.dtype[Any], bare: bool) -> bool:
    """Whether an array of this dtype may be converted to `dtype` at all."""
    source = array.dtype
    if source.kind not in "biuf" or dtype.kind not in "biuf":
        return False
    if np.can_cast(source, dtype, "safe") or (source.newbyteorder("=") == np.float64 and dtype == np.float32):
        return True
    return bare and (array.size == 0 or dtype.kind == "f" or (dtype.kind in "iu" and source.kind in "iu"))


def _changed(array: Array, converted: Array) -> npt.NDArray[np.bool_] | None:
    """Which values changed by more than the rounding of a float; None if no value did."""
    changed = None
    if converted.dtype.kind in "iu" and not np.can_cast(array.dtype, converted.dtype, "safe"):
        limits = np.iinfo(converted.dtype)
        changed = (array < limits.min) | (array > limits.max)
    elif converted.dtype.kind == "f" and array.dtype.kind in "fiu":
        if array.dtype.kind in "iu" and converted.dtype == np.float64 and array.dtype.itemsize == 8:
            changed = (array > _EXACT) | (array < -_EXACT)
        elif not np.isfinite(converted).all():
            changed = np.isinf(converted) & np.isfinite(array)
    return changed if changed is not None and changed.any() else None


def _name(dtype: np.dtype[Any]) -> str:
    return "str" if dtype.kind == "O" else str(dtype)
