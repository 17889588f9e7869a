"""Where the samples are in a model's inputs and outputs.

Onward keeps samples on axis 0 of every array, whatever axis the model has them on. `Layout` converts between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onward.registry.evidence import size_expressions
from onward.registry.evidence.sample_axes import from_front

if TYPE_CHECKING:
    from onward.stages.config.schema import Input, ModelParams, Output

Array = npt.NDArray[Any]
Sizes = dict[str, int]


@dataclass(frozen=True)
class Layout:
    """The axis of samples of each input and output.

    Attributes:
        size: The dimension that counts samples: its name, or its fixed size.
        inputs: Axis by input; None if all samples share one array.
        outputs: Axis by output; None if the output has no such axis.
    """

    size: int | str
    inputs: Mapping[str, int | None]
    outputs: Mapping[str, int | None]

    @classmethod
    def of(cls, settings: ModelParams) -> Layout:
        """The layout that params.yaml declares.

        Args:
            settings: The model's settings, with `inputs` and `outputs`.
        """
        inputs = {name: spec.samples_on for name, spec in settings.inputs.items()}
        size = sample_dimension(settings.inputs)
        outputs: dict[str, int | None] = {}
        for name, output in settings.outputs.items():
            if output.sample_axis != "auto":
                outputs[name] = output.sample_axis if output.shape else None
            else:
                outputs[name] = output.shape.index(size) if size in output.shape else None
        return cls(size, inputs, outputs)

    @property
    def sampled(self) -> list[str]:
        """The inputs that have an axis of samples."""
        return [name for name, axis in self.inputs.items() if axis is not None]

    @property
    def one_by_one(self) -> bool:
        """Whether samples must run one at a time, because an output has no axis of samples."""
        return None in self.outputs.values()

    def count(self, samples: Mapping[str, Array]) -> int:
        """The number of samples in arrays by input name, samples on axis 0."""
        return len(next(samples[name] for name in self.sampled if name in samples))


def declared_samples_first(settings: ModelParams, steps: bool) -> tuple[dict[str, Input], dict[str, Output]]:
    """The declared inputs and outputs with the axis of samples moved to the front of their shapes.

    Args:
        settings: The model's settings, with `inputs`, `outputs` and `states`.
        steps: Whether there is an axis of steps behind it. Then the outputs that are states are of that kind.
    """
    layout = Layout.of(settings)
    inputs = {
        name: spec.model_copy(update={"shape": _front(list(spec.shape), layout.inputs[name])})
        for name, spec in settings.inputs.items()
    }
    outputs = {}
    for name, output in settings.outputs.items():
        on, axis = layout.outputs[name], output.axis
        if axis is not None:
            axis %= len(output.shape)
            axis = axis + 1 if on is None or axis < on else axis
            axis = axis + 1 if steps and axis else axis
        shape = _front(list(output.shape), on)
        if steps:
            shape.insert(1, "steps")
        kind = "state" if name in settings.states.values() and output.kind is None else output.kind
        outputs[name] = output.model_copy(update={"shape": shape, "axis": axis, "kind": kind})
    return inputs, outputs


def _front(shape: list[int | str], axis: int | None) -> list[int | str]:
    """A shape with the axis of samples moved to the front; with one more if it has none."""
    return [1, *shape] if axis is None else [shape[axis], *shape[:axis], *shape[axis + 1 :]]


def in_place(spec: Input, samples: Array) -> Array:
    """Move the axis of samples from 0 to where the model has it."""
    return samples if spec.samples_on is None else from_front(samples, spec.samples_on)


def shape_of(shape: list[int | str], sizes: Mapping[str, int]) -> list[int | None]:
    """The shape at certain sizes.

    Args:
        shape: Sizes, names and expressions.
        sizes: Size of each named dimension.

    Returns:
        The size of each axis; None if `sizes` does not determine it.
    """
    return [axis if isinstance(axis, int) else size_expressions.value(axis, sizes) for axis in shape]


def sizes_of(inputs: Mapping[str, Input], tensors: Mapping[str, Array]) -> Sizes:
    """The size of each named dimension of arrays by input name, in the model's own layout."""
    return {
        axis: int(tensors[name].shape[position])
        for name, spec in inputs.items()
        if name in tensors
        for position, axis in enumerate(spec.shape)
        if isinstance(axis, str) and size_expressions.is_name(axis)
    }


def constant(spec: Input, sizes: Mapping[str, int]) -> Array:
    """The array of an input with one value only.

    Args:
        spec: The input, with `value`.
        sizes: Size of each named dimension.
    """
    shape = [size or 0 for size in shape_of(spec.shape, sizes)]
    return np.array(np.broadcast_to(np.asarray(spec.value, spec.dtype), shape), order="C")


def with_constants(inputs: Mapping[str, Input], given: Mapping[str, Array]) -> dict[str, Array]:
    """Add the inputs with one value only, in the sizes of the others.

    Args:
        inputs: The declared inputs.
        given: Arrays of the other inputs by name, in the model's own layout.
    """
    sizes = sizes_of(inputs, given)
    return {name: constant(spec, sizes) if spec.is_fixed else given[name] for name, spec in inputs.items()}


def sample_dimension(inputs: Mapping[str, Input]) -> int | str:
    """The dimension that counts samples: its name, or its fixed size."""
    return next(spec.shape[axis] for spec in inputs.values() if (axis := spec.samples_on) is not None)


def largest_size(allowed: range, most: int) -> int:
    """The largest allowed size, but 0, of at most `most`; 0 if there is none.

    Args:
        allowed: The allowed sizes, in ascending order.
        most: The limit.
    """
    most = min(most, allowed[-1])
    return max(0, most - (most - allowed[0]) % allowed.step) if most >= allowed[0] else 0
