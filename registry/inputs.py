"""The inputs of a model as its graph documents them, and the checks that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError
from registry.vocabulary import dimension

Array = npt.NDArray[Any]

# ONNX Runtime's names for element types where NumPy's differ; the others are the same.
_ELEMENTS = {"float": "float32", "double": "float64", "string": "object"}


Shape = list[int | str | None]


def documented(shape: Sequence[int | str | None] | None, declared: Sequence[Any] | None) -> Shape:
    """The dimensions of an input or output, each a size, a name, or None where neither is known.

    Args:
        shape: what ONNX Runtime says of the graph.
        declared: what params.yaml said, where the graph's metadata holds that. It names the dimensions that the graph
            leaves open: many files from elsewhere give the same name to dimensions that differ.
    """
    known = [dimension(size) for size in shape or ()]
    if declared is None or len(declared) != len(known):
        return known
    return [
        size if isinstance(size, int) else dimension(said) if isinstance(said, str) else None
        for size, said in zip(known, declared, strict=True)
    ]


class Input:
    """One input's documentation, and the checks that it stands for. `array` is on the path of every prediction.

    `value` is what ONNX Runtime says of it, `declared` the shape that params.yaml gave, where that is known.
    """

    def __init__(self, value: Any, declared: Sequence[Any] | None = None) -> None:
        self.name: str = value.name
        self.dtype = to_dtype(value.type)
        # [] also stands for a rank that the graph leaves open.
        self.shape = documented(value.shape, declared)
        self.rank = len(self.shape)

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'string' if self.dtype == object else self.dtype}[{dims}]"

    def array(self, value: Any) -> Array:
        """`value` itself where it is an array of the input's dtype, else converted."""
        return value if type(value) is np.ndarray and value.dtype == self.dtype else self.convert(value)

    def check_shape(self, shape: tuple[int, ...], wanted: Shape, sizes: dict[str, tuple[str, int]]) -> None:
        """Check sizes, and that a named dimension is one size in all inputs; `sizes` collects name to (input, size).
        Dimensions without a name have nothing in common.
        """
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
