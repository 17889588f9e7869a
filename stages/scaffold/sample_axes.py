"""Guesses where the samples are in the inputs of a model, and which outputs are the states of its next step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from onward.stages.parity.kinds import name_stem
from onward.stages.scaffold.found_model import FoundModel, FoundTensor


def with_samples(model: FoundModel) -> tuple[FoundModel, dict[str, int | None]]:
    """Find the axis of samples of each input.

    It is the axis of the batch, the dimension that most inputs have on axis 0. An input without the batch that has a
    fixed size on axis 0 and one variable axis has its samples there, such as a state of [layers, batch, width].

    Args:
        model: What was found out about the model.

    Returns:
        The model, in which such a variable axis has the name of the batch, and the axis of each input that does not
        have its samples on axis 0: None if it has none.
    """
    first = Counter(t.shape[0] for t in model.inputs if t.shape and isinstance(t.shape[0], str))
    if not first:
        return model, {tensor.name: None for tensor in model.inputs if tensor.shape == ()}
    batch = first.most_common(1)[0][0]
    renamed: dict[str, str] = {}
    axes: dict[str, int | None] = {}
    for tensor in model.inputs:
        shape = tensor.shape or ()
        variable = [axis for axis, size in enumerate(shape) if isinstance(size, str)]
        if batch in shape:
            axis = shape.index(batch)
        elif len(variable) == 1 and variable[0] > 0:
            axis = variable[0]
            renamed[str(shape[axis])] = str(batch)
        else:
            axes[tensor.name] = None
            continue
        if axis:
            axes[tensor.name] = axis

    def of(tensor: FoundTensor) -> FoundTensor:
        if tensor.shape is None:
            return tensor
        return replace(
            tensor, shape=tuple(renamed.get(size, size) if isinstance(size, str) else size for size in tensor.shape)
        )

    inputs = tuple(map(of, model.inputs))

    def like_state(tensor: FoundTensor) -> FoundTensor:
        """An output with unknown sizes that has the name of a state has its shape."""
        same = [t for t in inputs if t.shape and name_stem(t.name) == name_stem(tensor.name) != ""]
        unknown = tensor.shape is None or None in tensor.shape
        if not unknown or not same or (tensor.shape is not None and len(tensor.shape) != len(same[0].shape or ())):
            return tensor
        return replace(tensor, shape=same[0].shape, note="")

    dims = {name: dim for name, dim in model.dims.items() if name not in renamed}
    outputs = tuple(like_state(of(tensor)) for tensor in model.outputs)
    return replace(model, inputs=inputs, outputs=outputs, dims=dims), axes


def states_of(model: FoundModel) -> dict[str, str]:
    """The outputs that have the shape and, without words such as `next`, the name of an input, by input."""
    found = {}
    for given in model.inputs:
        for output in model.outputs:
            named = name_stem(given.name) == name_stem(output.name) != ""
            if named and given.dtype == output.dtype and given.shape and given.shape == output.shape:
                found[given.name] = output.name
    return found
