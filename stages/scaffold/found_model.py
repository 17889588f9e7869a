"""What an inspection found out about a model, from an ONNX file or a PyTorch module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from onward.registry.errors import UsageError
from onward.stages.config.values import DTypeName

# A size, the name of a dimension, or None where the inspection found neither.
FoundShape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class FoundTensor:
    """An input or an output.

    Attributes:
        shape: None where not even the number of axes is known.
        range: the lowest and the highest valid integer, where the model shows them.
        seen: the lowest and the highest integer of the example, where there is one.
        note: what is unknown about the shape, in words.
    """

    name: str
    dtype: str
    shape: FoundShape | None
    range: tuple[int, int] | None = None
    seen: tuple[int, int] | None = None
    note: str = ""


@dataclass(frozen=True)
class FoundDim:
    """The sizes of a dimension. `max` and `typical` are None where nothing is known about them."""

    min: int = 1
    max: int | None = None
    typical: tuple[int, ...] | None = None


@dataclass(frozen=True)
class FoundModel:
    """Inputs, outputs and the dimensions of the inputs, in the order in which params.yaml declares them."""

    inputs: tuple[FoundTensor, ...]
    outputs: tuple[FoundTensor, ...]
    dims: dict[str, FoundDim] = field(default_factory=dict)


# What is assumed of a batch: any size works for most models, and a server takes small ones.
BATCH = FoundDim(1, 32, (1, 8))


def require_declarable(model: FoundModel, where: str) -> None:
    """Refuse a model that params.yaml cannot describe.

    Args:
        model: what was found.
        where: what an error message begins with.

    Raises:
        UsageError: there are no inputs or no outputs, an input has a dtype that Onward does not support, all inputs are
            scalars, or a name is used twice.
    """
    if not model.inputs or not model.outputs:
        raise UsageError(f"{where}: the model has no {'outputs' if model.inputs else 'inputs'}; Onward needs both")
    names = [tensor.name for tensor in (*model.inputs, *model.outputs)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where}: the name {twice!r} is used twice among inputs and outputs; rename one of them")
    for tensor in model.inputs:
        if tensor.dtype not in get_args(DTypeName):
            raise UsageError(
                f"{where}: input {tensor.name!r} is of dtype {tensor.dtype}; Onward supports "
                f"{', '.join(get_args(DTypeName))}: cast it inside the model"
            )
    if all(tensor.shape == () for tensor in model.inputs):
        raise UsageError(
            f"{where}: input {model.inputs[0].name!r} is a scalar; samples need an axis: give it the shape [batch] or "
            "[1], or make it a constant of the model"
        )
