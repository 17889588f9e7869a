"""Check inputs against what the model documents of them: names, dtypes, shapes, ranges of values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from onward.registry.errors import UsageError
from onward.registry.evidence import size_expressions
from onward.registry.evidence.records import dimension
from onward.registry.inference.conversion import Array, position, to_array, to_dtype

Shape = list[int | str | None]
Limits = tuple[float, float]
# How strictly inputs are checked; see onward.registry.inference.session.InferenceSession.
Validate = Literal["strict", "shape", "off"]


def declared(documentation: str) -> dict[str, dict[str, Any]]:
    """What params.yaml declares of inputs, outputs or dimensions, by name.

    Args:
        documentation: the JSON text that the export stage wrote to the graph's metadata.
    """
    return {name: about for name, about in _entries(documentation) if isinstance(about, dict)}


def declared_states(documentation: str) -> dict[str, str]:
    """The output that becomes an input of the next step, by input, as params.yaml declares it.

    Args:
        documentation: the JSON text that the export stage wrote to the graph's metadata.
    """
    return {name: output for name, output in _entries(documentation) if isinstance(output, str)}


def _entries(documentation: str) -> list[tuple[str, Any]]:
    """The entries of a JSON object; none if another tool used the same metadata key for something else."""
    try:
        return list(json.loads(documentation or "{}").items())
    except (ValueError, AttributeError):
        return []


def declared_shape(declaration: Mapping[str, Any] | None) -> list[Any] | None:
    """The shape that params.yaml declares of an input or output; None if it declares none.

    Args:
        declaration: the declaration, as `declared` returns it.
    """
    shape = (declaration or {}).get("shape")
    return shape if isinstance(shape, list) else None


def documented(shape: Sequence[int | str | None] | None, declared: Sequence[Any] | None) -> Shape:
    """The dimensions of an input or output: each a size, a name, or None if neither is known.

    Args:
        shape: the shape in the graph, as ONNX Runtime reports it.
        declared: the shape that params.yaml declares, or None. Its names replace the graph's, because many ONNX files
            use one name for dimensions that differ.
    """
    known = [dimension(size) for size in shape or ()]
    if declared is None or len(declared) != len(known):
        return known
    return [
        size if isinstance(size, int) else dimension(name) if isinstance(name, str) else None
        for size, name in zip(known, declared, strict=True)
    ]


def sample_axis(declaration: Mapping[str, Any] | None, rank: int | None = None) -> int | None:
    """The axis of an input or output that counts samples; None if it has none.

    Args:
        declaration: the declaration, as `declared` returns it; None if there is none.
        rank: the number of axes; None if it is not known.
    """
    axis = (declaration or {}).get("sample_axis", 0)
    if axis is None or (type(axis) is int and axis >= 0):
        return None if rank == 0 else axis
    return 0


class Input:
    """One input, as the model documents it, and its checks.

    Args:
        value: the input, as ONNX Runtime describes it.
        declaration: what params.yaml declares of the input; None if it is not known.
        limits: the documented range of values; None if there is none.
        strict: whether a size that params.yaml declares is required even if the graph leaves it open.
        may_be_empty: the names of the dimensions that may be 0.
    """

    def __init__(
        self,
        value: Any,
        declaration: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        strict: bool = False,
        may_be_empty: frozenset[str] = frozenset(),
    ) -> None:
        self.name: str = value.name
        declared = declared_shape(declaration)
        self.dtype = to_dtype(value.type)
        # If the graph leaves the rank open, the shape is [], as for a scalar.
        self.shape = documented(value.shape, declared)
        self.rank = len(self.shape)
        if strict and declared is not None and len(declared) == self.rank:
            self.shape = [
                size if known is None and type(size) is int and size > 0 else known
                for known, size in zip(self.shape, declared, strict=True)
            ]
        self.samples = sample_axis(declaration, 0 if value.shape == [] and declared == [] else None)
        self.default = _default(declaration, self.dtype)
        self._follows = _expressions(declared if len(declared or ()) == self.rank else None)
        self.limits = limits
        self._bounds = None if limits is None else _representable(limits, self.dtype)
        self._from_zero = None if self._bounds is None else _from_zero(self._bounds, self.dtype)
        self._may_be_empty = may_be_empty
        self._takes_arrays = self.dtype != object  # arrays of strings are checked element by element

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'string' if self.dtype == object else self.dtype}[{dims}]"

    def array(self, value: Any) -> Array:
        """Convert a value to the input's dtype; an array of that dtype is returned unchanged.

        This runs in every prediction, so it must be fast.

        Args:
            value: an array, a torch tensor, a number, a string, or lists of these.
        """
        if type(value) is np.ndarray and value.dtype == self.dtype and self._takes_arrays:
            return value
        return self.convert(value)

    def unchecked(self, value: Any) -> Array:
        """Convert a value to an array; an array of any dtype is returned unchanged.

        Arrays with another byte order and masked arrays are converted too, because ONNX Runtime ignores both byte order
        and masks.

        Args:
            value: an array, a torch tensor, a number, a string, or lists of these.
        """
        if type(value) is np.ndarray and value.dtype.isnative and self._takes_arrays:
            return value
        return self.convert(value)

    def convert(self, value: Any) -> Array:
        """Convert a value to the input's dtype; see onward.registry.inference.conversion.to_array.

        Args:
            value: an array, a torch tensor, a number, a string, or lists of these.
        """
        return to_array(value, self.dtype, self.name, self)

    def check_values(self, array: Array) -> None:
        """Check that all values are in the documented range. NaN is not in any range.

        Args:
            array: the values, in the input's dtype.

        Raises:
            UsageError: a value is not in the range.
        """
        if self._bounds is None or array.size == 0:
            return
        low, high = self._bounds
        flat = array.ravel()
        if self._from_zero is not None:
            bits = flat.view(self._from_zero[0])
            if bits.item(bits.argmax()) <= self._from_zero[1]:
                return
        # argmin and argmax take two thirds of the time of min and max. Both find a NaN, and comparisons with it fail.
        if not (flat.item(flat.argmin()) >= low and flat.item(flat.argmax()) <= high):
            index = np.unravel_index(int(np.argmin((array >= low) & (array <= high))), array.shape)
            least, most = self.limits or self._bounds
            raise UsageError(
                f"input {self.name} contains {array[index]}{position(index)}; the model documents {least} to {most}"
            )

    def check_shape(self, shape: tuple[int, ...], wanted: Shape, sizes: dict[str, tuple[str, int]]) -> None:
        """Check a shape, and that each named dimension has the same size in all inputs.

        Args:
            shape: the shape of the given array.
            wanted: the documented shape.
            sizes: the sizes of the named dimensions so far, as name to (input, size). New ones are added.

        Raises:
            UsageError: the rank or a size differs, or a dimension is empty.
        """
        if len(shape) != len(wanted):
            if not self.rank:
                return
            raise UsageError(f"input {self.name} has rank {len(shape)}, shape {list(shape)}; the model takes {self}")
        for size, dim in zip(shape, wanted, strict=True):
            if size == 0 and dim not in self._may_be_empty:
                # Some operators abort the whole process on an empty array, such as an LSTM on an empty batch.
                raise UsageError(
                    f"input {self.name} is empty, shape {list(shape)}; only predict_batches accepts zero samples"
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

    def check_derived(self, shape: tuple[int, ...], sizes: Mapping[str, tuple[str, int]]) -> None:
        """Check the sizes that follow from other dimensions, such as `past + new`.

        Args:
            shape: the shape of the given array.
            sizes: the sizes of all named dimensions, as name to (input, size).

        Raises:
            UsageError: a size differs from what follows.
        """
        for axis, text in self._follows:
            size = size_expressions.value(text, {name: size for name, (_, size) in sizes.items()})
            if size is not None and shape[axis] != size:
                raise UsageError(
                    f"input {self.name} has shape {list(shape)}; the size of axis {axis} must be {text}, which is "
                    f"{size} here"
                )


class Inputs:
    """All inputs of a model: assigns values to them, and checks the values.

    Args:
        values: the inputs, as ONNX Runtime describes them.
        metadata: the graph's metadata.
        validate: how strictly inputs are checked.

    Raises:
        UsageError: `validate` is none of its allowed values.
    """

    def __init__(self, values: Sequence[Any], metadata: Mapping[str, str], validate: Validate) -> None:
        if validate not in get_args(Validate):
            raise UsageError(f"validate: {validate!r} is not known; choose one of {', '.join(get_args(Validate))}")
        self.validate = validate
        strict = validate == "strict"
        about, sizes = declared(metadata.get("onward.inputs", "")), declared_sizes(metadata.get("onward.dims", ""))
        empty = frozenset(name for name, (least, _, _) in sizes.items() if least == 0)
        self.all = [
            Input(
                value,
                about.get(value.name),
                _limits(about.get(value.name)) if strict else None,
                strict,
                empty,
            )
            for value in values
        ]
        self.names = [spec.name for spec in self.all]
        self.sample_axes = {spec.name: spec.samples for spec in self.all if spec.samples is not None}
        self.required = [spec.name for spec in self.all if spec.default is None]
        self.smallest = {name: least for name, (least, _, _) in sizes.items()}
        self._known = frozenset(self.names)
        self._sizes = sizes if strict else {}
        self._limited = [spec for spec in self.all if spec.limits is not None]
        self._fitting: list[tuple[int, ...]] = []

    def __str__(self) -> str:
        return ", ".join(str(spec) for spec in self.all) or "no inputs"

    def feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """Convert the arguments of a prediction to arrays, and check them.

        Args:
            args: values by position, or one dict of values by name.
            kwargs: values by name.

        Returns:
            the array of each input, by name.

        Raises:
            UsageError: a value is missing, superfluous, or not what the model documents.
        """
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
        """Assign the arguments of a prediction to the inputs.

        Args:
            args: values by position, or one dict of values by name.
            kwargs: values by name.

        Returns:
            the value of each input, by name.

        Raises:
            UsageError: a value is missing, superfluous, or given twice.
        """
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
        for spec in self.all:
            if spec.default is not None and spec.name not in given:
                given[spec.name] = spec.default
        missing = [name for name in self.names if name not in given]
        if missing:
            raise UsageError(f"input {', '.join(missing)} is missing; the model takes {self}")
        return given

    def arrays(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Convert the values of many samples to arrays, and check their values but not their shapes.

        Args:
            given: the value of each input, by name.

        Raises:
            UsageError: a value is not what the model documents.
        """
        if self.validate == "off":
            return {spec.name: spec.unchecked(given[spec.name]) for spec in self.all}
        arrays = {spec.name: spec.convert(given[spec.name]) for spec in self.all}
        for spec in self._limited:
            spec.check_values(arrays[spec.name])
        return arrays

    def check_shapes(self, arrays: Mapping[str, Array]) -> None:
        """Check the shapes of all inputs against the documentation and against each other.

        Args:
            arrays: the array of each input, by name.

        Raises:
            UsageError: a shape is not what the model documents.
        """
        shapes = [array.shape for array in arrays.values()]
        if shapes == self._fitting:  # the same shapes passed the checks last time
            return
        sizes: dict[str, tuple[str, int]] = {}
        for spec, shape in zip(self.all, shapes, strict=True):
            spec.check_shape(shape, spec.shape, sizes)
        for spec, shape in zip(self.all, shapes, strict=True):
            spec.check_derived(shape, sizes)
        for name, (least, most, factor) in self._sizes.items():
            first, size = sizes.get(name, ("", least))
            if size % factor:
                raise UsageError(f"dimension {name} is {size} in input {first}; the model takes multiples of {factor}")
            if not least <= size <= most:
                hint = "; predict_batches runs fewer at a time" if size > most and self._counts_samples(name) else ""
                raise UsageError(
                    f"dimension {name} is {size} in input {first}; the model documents {least} to {most}{hint}"
                )
        self._fitting = shapes

    def batch(self, wanted: int) -> tuple[int, int]:
        """The batch size to use.

        Args:
            wanted: the batch size that the caller wants.

        Returns:
            the smallest possible batch size, and the one nearest to `wanted`.
        """
        least, most, factor = 1, wanted, 1
        for spec in self.all:
            first = spec.shape[spec.samples] if spec.samples is not None and spec.samples < len(spec.shape) else None
            if isinstance(first, int):
                return first, first
            if first in self._sizes:
                low, high, factor = self._sizes[first]
                least, most = max(least, low or factor), min(most, high)
        return least, max(least, most - most % factor)

    def fault(self, feed: Mapping[str, Array]) -> str:
        """Say how arrays differ from the documentation, after ONNX Runtime failed on them; "" if they do not.

        Args:
            feed: the array of each input, by name.
        """
        sizes: dict[str, tuple[str, int]] = {}
        try:
            for spec in self.all:
                array = feed[spec.name]
                if array.dtype != spec.dtype:
                    return f"input {spec.name} is {array.dtype}, the model takes {spec}"
                spec.check_shape(array.shape, spec.shape, sizes)
            for spec in self.all:
                spec.check_derived(feed[spec.name].shape, sizes)
        except UsageError as error:
            return str(error)
        return ""

    def _counts_samples(self, dim: str) -> bool:
        """Whether a dimension is the number of samples of every input that has samples."""
        axes = [(spec.shape, spec.samples) for spec in self.all if spec.samples is not None]
        return all(axis < len(shape) and shape[axis] == dim for shape, axis in axes)


def declared_sizes(documentation: str) -> dict[str, tuple[int, int, int]]:
    """The smallest and the largest documented size of each named dimension, and the number that divides them."""
    found = {}
    for name, about in declared(documentation).items():
        least, most, factor = about.get("min"), about.get("max"), about.get("multiple_of", 1)
        if type(least) is int and type(most) is int and type(factor) is int and factor > 0:
            found[name] = least, most, factor
    return found


def _expressions(shape: Sequence[Any] | None) -> list[tuple[int, str]]:
    """The axes of a declared shape whose size is an expression of other dimensions, with the expression."""
    found = []
    for axis, text in enumerate(shape or ()):
        if isinstance(text, str) and not size_expressions.is_name(text):
            try:
                found.append((axis, size_expressions.normal(text)))
            except ValueError:  # another tool's text
                continue
    return found


def _default(declaration: Mapping[str, Any] | None, dtype: np.dtype[Any]) -> Array | None:
    """The array of an input that has one value only; None if its shape depends on the other inputs."""
    value, shape = (declaration or {}).get("value"), declared_shape(declaration)
    if value is None or shape is None or not all(type(size) is int for size in shape):
        return None
    try:
        return np.array(np.broadcast_to(np.asarray(value, dtype), shape))
    except (TypeError, ValueError):  # another tool's metadata
        return None


def _limits(declaration: Mapping[str, Any] | None) -> Limits | None:
    """The documented range of an input's values."""
    found = (declaration or {}).get("range")
    value = (declaration or {}).get("value")
    if type(value) in (int, float):
        found = [value, value]
    if not isinstance(found, list) or len(found) != 2 or not all(type(end) in (int, float) for end in found):
        return None
    return None if any(math.isnan(end) for end in found) else (found[0], found[1])


def _from_zero(bounds: Limits, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int] | None:
    """For a range of floats that starts at 0: an unsigned dtype, and the range's end as a number of that dtype.

    If the bits of floats are read as unsigned integers, floats from +0 upwards keep their order, and -0, negative
    floats and NaN become greater. So one search for the largest integer checks the whole range. Other ranges need two
    searches, and give None.
    """
    if dtype.kind != "f" or bounds[0] != 0 or bounds[1] < 0:
        return None
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return unsigned, int(dtype.type(abs(bounds[1])).view(unsigned))


def _representable(limits: Limits, dtype: np.dtype[Any]) -> Limits | None:
    """The ends of a range, rounded to the dtype (0.1 is slightly larger in float32); None if it is not numeric."""
    if dtype.kind == "f":
        greatest = float(np.finfo(dtype).max)
        low, high = (float(dtype.type(min(max(end, -greatest), greatest))) for end in limits)
        return low, high
    if dtype.kind not in "iu":
        return None
    info = np.iinfo(dtype)
    return max(math.ceil(limits[0]), info.min), min(math.floor(limits[1]), info.max)
