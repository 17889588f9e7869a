"""The inputs of a model as its graph documents them, and the checks that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError

Array = npt.NDArray[Any]

# ONNX Runtime's names for element types where NumPy's differ; the others are the same.
_ELEMENTS = {"float": "float32", "double": "float64", "string": "object"}


class Input:
    """One input's documentation, and the checks that it stands for. `array` is on the path of every prediction."""

    def __init__(self, value: Any) -> None:
        self.name: str = value.name
        self.dtype = to_dtype(value.type)
        # A dimension is a size, a name, or None; [] also stands for a rank that the graph leaves open.
        self.shape: list[int | str | None] = list(value.shape or [])
        self.rank = len(self.shape)

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'string' if self.dtype == object else self.dtype}[{dims}]"

    def array(self, value: Any) -> Array:
        """`value` itself where it is an array of the input's dtype, else converted."""
        return value if type(value) is np.ndarray and value.dtype == self.dtype else self.convert(value)

    def check_shape(
        self, shape: tuple[int, ...], wanted: list[int | str | None], sizes: dict[str, tuple[str, int]]
    ) -> None:
        """Check sizes, and that a named dimension is one size in all inputs; `sizes` collects name to (input, size)."""
        if len(shape) != len(wanted):
            if not self.rank:
                return
            raise UsageError(f"input {self.name} has rank {len(shape)}, shape {list(shape)}; the model takes {self}")
        for size, dim in zip(shape, wanted, strict=True):
            if size == 0:
                # Some operators abort the whole process on nothing (an LSTM on an empty batch does).
                raise UsageError(
                    f"input {self.name} is empty, shape {list(shape)}; only predict_batches takes no samples"
                )
            if dim.__class__ is int:
                if size != dim:
                    raise UsageError(f"input {self.name} has shape {list(shape)}; the model takes {self}")
            elif dim is not None:
                first = sizes.setdefault(str(dim), (self.name, size))
                if first[1] != size:
                    raise UsageError(
                        f"dimension {dim} is {first[1]} in input {first[0]} and {size} in input {self.name}"
                    )

    def convert(self, value: Any) -> Array:
        """`value` as an array of the input's dtype."""
        bare = isinstance(value, (list, tuple, int, float, bool, str))
        try:
            if hasattr(value, "detach"):  # a torch tensor, known by its manners: torch is not imported here
                value = value.detach().cpu().numpy()
            array: Array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"input {self.name} cannot be made an array: {str(error).splitlines()[0]}") from None
        if array.dtype == self.dtype:
            return array
        if self.dtype == object and array.dtype.kind in "UO":
            return array.astype(object)
        source = array.dtype
        safe = np.can_cast(source, self.dtype, "safe") or (source == np.float64 and self.dtype == np.float32)
        if self.dtype != object and source.kind in "biuf" and (safe or (bare and self._holds(array))):
            return array.astype(self.dtype)
        hint = "" if bare else f"; convert it yourself if that is meant (.astype({str(self.dtype)!r}))"
        raise UsageError(f"input {self.name} is {source}, the model takes {self}{hint}")

    def _holds(self, array: Array) -> bool:
        if self.dtype.kind == "f":
            return True
        if self.dtype.kind in "iu" and array.dtype.kind in "biu":
            limits = np.iinfo(self.dtype)
            return array.size == 0 or bool(array.min() >= limits.min and array.max() <= limits.max)
        return False


def to_dtype(kind: str) -> np.dtype[Any]:
    """NumPy's dtype of ONNX Runtime's `tensor(float)`.

    Raises:
        UsageError: NumPy has none, or it is no tensor.
    """
    element = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_ELEMENTS.get(element, element))
    except TypeError:
        raise UsageError(f"{kind} has no counterpart in NumPy; use onnxruntime itself for this model") from None
