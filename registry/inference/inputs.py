"""The inputs of a model as it documents them, and the checks that they stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from onward.registry.errors import UsageError
from onward.registry.evidence.records import dimension
from onward.registry.inference.conversion import Array, position, to_array, to_dtype

Shape = list[int | str | None]
Limits = tuple[float, float]
# What is checked of inputs; see onward.registry.inference.session.InferenceSession.
Validate = Literal["strict", "shape", "off"]


def declared(documentation: str) -> dict[str, dict[str, Any]]:
    """What params.yaml said of inputs, outputs or dimensions, by name: JSON that export keeps in the graph."""
    try:
        said = json.loads(documentation or "{}").items()
    except (ValueError, AttributeError):  # another tool's metadata under our key
        return {}
    return {name: about for name, about in said if isinstance(about, dict)}


def declared_shape(said: Mapping[str, Any] | None) -> list[Any] | None:
    """The shape in what `declared` gives for an input or output; None where there is none."""
    shape = (said or {}).get("shape")
    return shape if isinstance(shape, list) else None


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

    `value` is what ONNX Runtime says of it, `declared` the shape that params.yaml gave, where that is known, and
    `limits` the range of its values. With `strict`, a size that params.yaml gave holds where the graph leaves it open.
    `may_be_empty` are the names of dimensions that may be 0.
    """

    def __init__(
        self,
        value: Any,
        declared: Sequence[Any] | None = None,
        limits: Limits | None = None,
        strict: bool = False,
        may_be_empty: frozenset[str] = frozenset(),
    ) -> None:
        self.name: str = value.name
        self.dtype = to_dtype(value.type)
        # [] also stands for a rank that the graph leaves open.
        self.shape = documented(value.shape, declared)
        self.rank = len(self.shape)
        if strict and declared is not None and len(declared) == self.rank:
            self.shape = [
                said if known is None and type(said) is int and said > 0 else known
                for known, said in zip(self.shape, declared, strict=True)
            ]
        self.limits = limits
        self._bounds = None if limits is None else _representable(limits, self.dtype)
        self._from_zero = None if self._bounds is None else _from_zero(self._bounds, self.dtype)
        self._may_be_empty = may_be_empty
        self._takes_arrays = self.dtype != object  # strings are looked at one by one

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'string' if self.dtype == object else self.dtype}[{dims}]"

    def array(self, value: Any) -> Array:
        """`value` itself where it is an array of the input's dtype, else converted."""
        if type(value) is np.ndarray and value.dtype == self.dtype and self._takes_arrays:
            return value
        return self.convert(value)

    def unchecked(self, value: Any) -> Array:
        """`value` itself where it is an array, of whatever dtype, else converted. ONNX Runtime ignores the order of an
        array's bytes and would take the mask off a masked one."""
        if type(value) is np.ndarray and value.dtype.isnative and self._takes_arrays:
            return value
        return self.convert(value)

    def convert(self, value: Any) -> Array:
        """`value` as an array of the input's dtype; see onward.registry.inference.conversion.to_array."""
        return to_array(value, self.dtype, self.name, self)

    def check_values(self, array: Array) -> None:
        """Check that all values are within the documented range, which NaN is not."""
        if self._bounds is None or array.size == 0:
            return
        low, high = self._bounds
        flat = array.ravel()
        if self._from_zero is not None:
            bits = flat.view(self._from_zero[0])
            if bits.item(bits.argmax()) <= self._from_zero[1]:
                return
        # Two thirds of what min() and max() take. Either finds NaN if there is one, and no comparison with NaN holds.
        if not (flat.item(flat.argmin()) >= low and flat.item(flat.argmax()) <= high):
            at = np.unravel_index(int(np.argmin((array >= low) & (array <= high))), array.shape)
            least, most = self.limits or self._bounds
            raise UsageError(
                f"input {self.name} holds {array[at]}{position(at)}; the model documents {least} to {most}"
            )

    def check_shape(self, shape: tuple[int, ...], wanted: Shape, sizes: dict[str, tuple[str, int]]) -> None:
        """Check sizes, and that a named dimension is one size in all inputs; `sizes` collects name to (input, size).
        Dimensions without a name have nothing in common.
        """
        if len(shape) != len(wanted):
            if not self.rank:
                return
            raise UsageError(f"input {self.name} has rank {len(shape)}, shape {list(shape)}; the model takes {self}")
        for size, dim in zip(shape, wanted, strict=True):
            if size == 0 and dim not in self._may_be_empty:
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


class Inputs:
    """All inputs of a model: which value is whose, and the checks of `validate`.

    `values` is what ONNX Runtime says of them, `said` the graph's metadata.
    """

    def __init__(self, values: Sequence[Any], said: Mapping[str, str], validate: Validate) -> None:
        if validate not in get_args(Validate):
            raise UsageError(f"validate: {validate!r}; there are {', '.join(get_args(Validate))}")
        self.validate = validate
        strict = validate == "strict"
        about, sizes = declared(said.get("onward.inputs", "")), _sizes(said.get("onward.dims", ""))
        empty = frozenset(name for name, (least, _) in sizes.items() if least == 0)
        self.all = [
            Input(
                value,
                declared_shape(about.get(value.name)),
                _limits(about.get(value.name)) if strict else None,
                strict,
                empty,
            )
            for value in values
        ]
        self.names = [spec.name for spec in self.all]
        self._known = frozenset(self.names)
        self._sizes = sizes if strict else {}
        self._limited = [spec for spec in self.all if spec.limits is not None]
        self._fitting: list[tuple[int, ...]] = []

    def __str__(self) -> str:
        return ", ".join(str(spec) for spec in self.all) or "no inputs"

    def feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """What to run the model on, checked."""
        if args and len(args) == len(self.all) and not kwargs and not isinstance(args[0], (dict, Mapping)):
            values: Sequence[Any] = args
        else:
            given = self.by_name(args, kwargs)
            values = [given[name] for name in self.names]
        if self.validate == "off":
            return {spec.name: spec.unchecked(value) for spec, value in zip(self.all, values, strict=True)}
        arrays = {spec.name: spec.array(value) for spec, value in zip(self.all, values, strict=True)}
        self.check_shapes(arrays)
        for spec in self._limited:
            spec.check_values(arrays[spec.name])
        return arrays

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values by name, from arguments by position and by name, or from one mapping."""
        if len(args) == 1 and isinstance(args[0], (dict, Mapping)) and not kwargs:
            return self.by_name((), args[0])
        if not args and kwargs.keys() == self._known:
            return kwargs
        if len(args) > len(self.all):
            raise UsageError(f"{len(args)} inputs given, the model takes {len(self.all)}: {self}")
        given = dict(zip(self.names, args, strict=False))
        twice = [name for name in kwargs if name in given]
        if twice:
            raise UsageError(f"input {twice[0]!r} is given by position and by name")
        given.update(kwargs)
        unknown = [str(name) for name in given if name not in self.names]
        if unknown:
            raise UsageError(f"the model has no input {', '.join(unknown)}; it takes {self}")
        missing = [name for name in self.names if name not in given]
        if missing:
            raise UsageError(f"input {', '.join(missing)} is missing; the model takes {self}")
        return given

    def arrays(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """All values of many samples as arrays, their values checked and their shapes not."""
        if self.validate == "off":
            return {spec.name: spec.unchecked(given[spec.name]) for spec in self.all}
        arrays = {spec.name: spec.convert(given[spec.name]) for spec in self.all}
        for spec in self._limited:
            spec.check_values(arrays[spec.name])
        return arrays

    def check_shapes(self, arrays: Mapping[str, Array]) -> None:
        """Check the shapes of all inputs against what is documented and each other."""
        shapes = [array.shape for array in arrays.values()]
        if shapes == self._fitting:  # those that fitted last time do so again
            return
        sizes: dict[str, tuple[str, int]] = {}
        for spec, shape in zip(self.all, shapes, strict=True):
            spec.check_shape(shape, spec.shape, sizes)
        for name, (least, most) in self._sizes.items():
            first, size = sizes.get(name, ("", least))
            if not least <= size <= most:
                hint = "; predict_batches feeds fewer at a time" if size > most and self._counts_samples(name) else ""
                raise UsageError(
                    f"dimension {name} is {size} in input {first}; the model documents {least} to {most}{hint}"
                )
        self._fitting = shapes

    def batch(self, wanted: int) -> tuple[int, int]:
        """How many samples may be fed at once at least, and how many are to be, where `wanted` are asked for."""
        least, most = 1, wanted
        for spec in self.all:
            first = spec.shape[0] if spec.shape else None
            if isinstance(first, int):
                return first, first
            if first in self._sizes:
                least, most = max(least, self._sizes[first][0]), min(most, self._sizes[first][1])
        return least, max(least, most)

    def fault(self, feed: Mapping[str, Array]) -> str:
        """What is wrong with arrays that ONNX Runtime failed on, where they are not as documented."""
        sizes: dict[str, tuple[str, int]] = {}
        try:
            for spec in self.all:
                array = feed[spec.name]
                if array.dtype != spec.dtype:
                    return f"input {spec.name} is {array.dtype}, the model takes {spec}"
                spec.check_shape(array.shape, spec.shape, sizes)
        except UsageError as error:
            return str(error)
        return ""

    def _counts_samples(self, dim: str) -> bool:
        return all(bool(spec.shape) and spec.shape[0] == dim for spec in self.all)


def _sizes(documentation: str) -> dict[str, tuple[int, int]]:
    """The smallest and the largest documented size of each named dimension."""
    found = {name: (about.get("min"), about.get("max")) for name, about in declared(documentation).items()}
    return {name: (least, most) for name, (least, most) in found.items() if type(least) is type(most) is int}


def _limits(said: Mapping[str, Any] | None) -> Limits | None:
    """The documented range of an input's values."""
    found = (said or {}).get("range")
    if not isinstance(found, list) or len(found) != 2 or not all(type(end) in (int, float) for end in found):
        return None
    return None if any(math.isnan(end) for end in found) else (found[0], found[1])


def _from_zero(bounds: Limits, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int] | None:
    """An unsigned dtype, and the upper end of a range of floats from 0 read as that dtype; None for other ranges.

    Read as unsigned integers, floats from +0 up keep their order, and -0, negative floats and NaN are greater. So one
    search for the greatest integer shows that all values are in the range. Other ranges need two searches.
    """
    if dtype.kind != "f" or bounds[0] != 0 or bounds[1] < 0:
        return None
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return unsigned, int(dtype.type(abs(bounds[1])).view(unsigned))


def _representable(limits: Limits, dtype: np.dtype[Any]) -> Limits | None:
    """The ends of a range as the dtype has them: 0.1 is a little more in float32. None where there are no numbers."""
    if dtype.kind == "f":
        greatest = float(np.finfo(dtype).max)
        low, high = (float(dtype.type(min(max(end, -greatest), greatest))) for end in limits)
        return low, high
    if dtype.kind not in "iu":
        return None
    info = np.iinfo(dtype)
    return max(math.ceil(limits[0]), info.min), min(math.floor(limits[1]), info.max)
