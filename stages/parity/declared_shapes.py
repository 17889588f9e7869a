"""Whether the original's outputs have the shapes that params.yaml declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onward.stages.config.layout import shape_of
from onward.stages.config.schema import Dim, Output
from onward.stages.parity.check import Expected
from onward.stages.parity.size_hints import expression
from onward.stages.parity.sizes import Sizes


def misdeclared(expected: Sequence[Expected], outputs: Mapping[str, Output], dims: Mapping[str, Dim]) -> str:
    """Describe the first reference output whose shape differs from params.yaml; empty if there is none.

    Args:
        expected: The reference's answers.
        outputs: The declared outputs.
        dims: The declared dimensions. Those that no case has a size for must stay within their limits, and be the same
            in all outputs of a case.
    """
    for item in expected:
        free: dict[str, int] = {}
        for name, value in item.outputs.items():
            spec = outputs[name]
            if item.case.probe or item.case.sequence is not None:
                continue
            fault = _misdeclared(list(value.shape), spec.shape, item.case.sizes, dims, free)
            if fault is not None:
                return (
                    f"the original returns {name} with the shape {list(value.shape)} in case {item.case.name}; "
                    f"params.yaml declares {list(spec.shape)}{fault}: its code fixes a dimension, or the declaration "
                    f"is wrong{_hint(expected, name, spec.shape)}"
                )
    return ""


def _hint(expected: Sequence[Expected], output: str, declared: Sequence[int | str]) -> str:
    """The shape to declare for an output, if the shapes in all cases follow from the sizes of the inputs."""
    cases = [item for item in expected if not item.case.probe and item.case.sequence is None and output in item.outputs]
    ranks = {item.outputs[output].ndim for item in cases}
    if len(ranks) != 1:
        return ""
    found: list[int | str] = []
    for axis in range(ranks.pop()):
        observed = [(item.case.sizes, item.outputs[output].shape[axis]) for item in cases]
        wanted = declared[axis] if axis < len(declared) else ""
        if len({size for _, size in observed}) == 1:
            found.append(observed[0][1])
        elif wanted and all(shape_of([wanted], sizes) == [size] for sizes, size in observed):
            found.append(wanted)
        else:
            found.append(expression(observed))
    if "" in found:
        return ""
    return f"; the shapes in all cases agree with outputs: {{{output}: {{shape: [{', '.join(map(str, found))}]}}}}"


def _misdeclared(
    shape: list[int], declared: list[int | str], sizes: Sizes, dims: Mapping[str, Dim], free: dict[str, int]
) -> str | None:
    """How a shape differs from the declared one; None if it does not. Adds the sizes of dimensions of outputs alone."""
    if len(shape) != len(declared):
        return ""
    for axis, size in zip(declared, shape, strict=True):
        if isinstance(axis, str) and axis in dims and axis not in sizes:
            if free.setdefault(axis, size) != size:
                return f", and {axis} is {free[axis]} in another output"
            if size not in dims[axis].sizes:
                return f", and {axis} from {dims[axis].min} to {dims[axis].max}"
    wanted = shape_of(declared, {**sizes, **free})
    return None if shape == [known if size is None else size for size, known in zip(wanted, shape, strict=True)] else ""
