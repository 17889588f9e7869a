"""Finds values that a tracer bakes into a graph: Python values that forward() takes from tensors.

torch.jit.trace records the operators that one example passes through. A tensor that becomes a Python number, a boolean
or an array leaves the record, and the graph keeps the example's value. torch warns each time, but cannot tell whether
it matters. The recorded graph can: the tensor's operators depend on weights, on the size of an input, or on the values
of an input.

weights   The value is the same for every input. This is no fault.
sizes     forward() is traced again at other declared sizes. It is a fault if the value and the graph differ there.
values    The value belongs to the example. Another input may need another graph, so this is a fault.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.jit._builtins import _get_builtin_table
from torch.jit._trace import TracerWarning
from torch.jit._trace import _get_trace_graph as trace_of

from onward.stages.config import paths

# Methods that turn a tensor into a Python value, each with the name of that value in torch's warning.
_CONVERSIONS = {
    "__bool__": "a Python boolean",
    "__int__": "a Python integer",
    "__index__": "a Python index",
    "__float__": "a Python float",
    "__complex__": "a Python complex number",
    "item": "a Python number",
    "tolist": "a Python list",
    "numpy": "a NumPy array",
    "__len__": "its length",
    "__iter__": "a Python iterator",
}
# Functions that make a constant of their argument, including tensors in lists.
_CONSTRUCTORS = ("tensor", "as_tensor", "asarray", "scalar_tensor")

# Operators that use only the shape of their first argument.
_LIKE = {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like",
         "new_zeros", "new_ones", "new_full", "new_empty"}  # fmt: skip
# Operators that read a size.
_SIZES = {"size", "numel", "len", "_shape_as_tensor", "sym_size", "sym_numel", "dim"}
# Operators with a result shape that depends on values.
_SHAPED_BY_VALUES = {
    "nonzero", "nonzero_numpy", "argwhere", "masked_select", "unique", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "repeat_interleave", "bincount", "one_hot", "tensor_split", "_pack_padded_sequence",
    "_pad_packed_sequence", "histc", "nms",
}  # fmt: skip
# Operators that make a boolean mask.
_MASKS = {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "any", "all", "isin",
          "logical_not", "logical_and", "logical_or", "logical_xor"}  # fmt: skip
# Operators that keep the dtype of their first argument: a mask stays a mask.
_AS_BEFORE = {"bitwise_not", "bitwise_and", "bitwise_or", "__and__", "__or__", "__xor__", "unsqueeze", "squeeze",
              "view", "reshape", "expand", "clone", "contiguous", "slice", "select", "transpose", "permute", "flatten",
              "detach", "alias"}  # fmt: skip
_BOOL = 11  # torch.bool in a graph
_builtins: dict[int, str] = _get_builtin_table()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Conversion:
    """A tensor that became a Python value.

    Attributes:
        where: The line of code, `path:line`.
        into: The kind of Python value, in words.
        value: The value of a number or boolean as text; otherwise empty.
    """

    where: str
    into: str
    value: str


@dataclass
class Conversions:
    """The conversions to Python values in one trace.

    Attributes:
        of_values: Those that depend on values of an input.
        of_sizes: Those that depend on sizes of an input alone.
        graph: The traced graph in a comparable form; empty if unknown.
    """

    of_values: list[Conversion] = field(default_factory=list)
    of_sizes: list[Conversion] = field(default_factory=list)
    graph: str = ""


@contextmanager
def watched(inputs: int) -> Iterator[Conversions]:
    """Record the conversions of every trace in this block, and suppress torch's warnings about them.

    Args:
        inputs: Number of tensors that forward() takes. The graph's other inputs are weights.

    Yields:
        The conversions, which fill up as the block runs.
    """
    found = Conversions()
    busy = False

    def note(tensor: torch.Tensor, into: str, value: Any, length: bool) -> None:
        origins = _origins(_traced(tensor), inputs, shape=length)
        conversion = Conversion(_caller(), into, repr(value)[:200] if isinstance(value, bool | int | float) else "")
        if "values" in origins:
            found.of_values.append(conversion)
        elif "sizes" in origins:
            found.of_sizes.append(conversion)

    def converting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def convert(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy or torch._C._get_tracing_state() is None:
                return original(self, *args, **kwargs)
            busy = True
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", TracerWarning)
                    value = original(self, *args, **kwargs)
                    length = name in ("__len__", "__iter__")
                    note(self, _CONVERSIONS[name], int(self.shape[0]) if length else value, length)
                return value
            finally:
                busy = False

        return convert

    def constructing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def construct(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy or torch._C._get_tracing_state() is None:
                return original(*args, **kwargs)
            data = args[0] if args else kwargs.get("data")
            busy = True
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", TracerWarning)
                    if not isinstance(data, torch.Tensor) or name == "tensor":
                        for tensor in _tensors_in(data):
                            note(tensor, f"a constant by torch.{name}", tensor.tolist(), length=False)
                    return original(*args, **kwargs)
            finally:
                busy = False

        return construct

    methods = {name: getattr(torch.Tensor, name) for name in _CONVERSIONS}
    inherited = {name for name in methods if name not in torch.Tensor.__dict__}
    functions = {name: getattr(torch, name) for name in _CONSTRUCTORS}
    replaced = {name: constructing(name, function) for name, function in functions.items()}
    for name, method in methods.items():
        setattr(torch.Tensor, name, converting(name, method))
    for name, function in replaced.items():
        setattr(torch, name, function)
        _builtins[id(function)] = f"aten::{name}"  # torch.jit.script finds the operator by the function's id
    try:
        yield found
    finally:
        for name, method in methods.items():
            if name in inherited:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, method)
        for name, function in functions.items():
            setattr(torch, name, function)
            del _builtins[id(replaced[name])]


def of(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> Conversions:
    """Trace a module as torch.onnx.export does, and record the conversions to Python values.

    Args:
        module: The module, with its weights.
        arguments: One tensor for each input of forward().
    """
    with watched(len(arguments)) as found, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = trace_of(module, arguments, strict=False, _force_outplace=False)[0]  # type: ignore[no-untyped-call]
    found.graph = _comparable(graph)
    return found


def baked(first: Conversions, others: Mapping[str, Conversions]) -> list[str]:
    """Describe the values of the example that a traced graph contains.

    Args:
        first: The conversions of one trace.
        others: The conversions of traces with other inputs, by a description of what differed.

    Returns:
        One description for each value; empty if the trace holds for every input.
    """
    words = [f"{one.where} makes {one.into} of an input's values" for one in first.of_values]
    for what, other in others.items():
        differing = _first_difference(first.of_sizes, other.of_sizes)
        if differing is not None and first.graph != other.graph:
            words.append(f"{differing.where} makes {differing.into} of a size, and the graph differs at {what}")
            break
    return list(dict.fromkeys(words))


def _first_difference(one: list[Conversion], other: list[Conversion]) -> Conversion | None:
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            return mine
    longer = max(one, other, key=len)
    return None if len(one) == len(other) else longer[min(len(one), len(other))]


def _comparable(graph: Any) -> str:
    """The graph's operators and constants as text, without details of this one trace."""
    for node in graph.findAllNodes("aten::contiguous", True):  # it only moves memory, and only at some sizes
        node.output().replaceAllUsesWith(next(node.inputs()))
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_erase_shape_information(graph)
    names: dict[str, str] = {}  # torch names values after variables, with a number if the name is taken
    text = re.sub(r"%[\w.]+", lambda found: names.setdefault(found[0], f"%{len(names)}"), graph.str(False))
    tensors = [node.t("value") for node in graph.findAllNodes("prim::Constant", True) if _holds_tensor(node)]
    digest = hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors))
    return f"{text}\n{digest.hexdigest()}"


def _holds_tensor(node: Any) -> bool:
    return bool(node.hasAttribute("value") and node.kindOf("value") == "t")


def _traced(tensor: torch.Tensor) -> Any:
    """The tensor's value in the graph of the current trace."""
    return torch._C._get_value_trace(tensor)  # type: ignore[attr-defined]


def _caller() -> str:
    """The current line of the traced code: the innermost frame outside torch, or inside torch if there is no other."""
    frame = sys._getframe(1)
    inside = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__:
            place = f"{paths.without_paths(file)}:{frame.f_lineno}"
            inside = inside or place
            if not place.startswith("torch/"):
                return place
            if file.endswith("jit/_trace.py"):
                break
        frame = frame.f_back  # type: ignore[assignment]
    return inside


def _tensors_in(data: Any) -> Iterator[torch.Tensor]:
    if isinstance(data, torch.Tensor):
        yield data
    elif isinstance(data, list | tuple):
        for item in data:
            yield from _tensors_in(item)


def _origins(value: Any, inputs: int, shape: bool) -> set[str]:
    """What a value of a traced graph depends on: "values" or "sizes" of an input; neither for weights alone.

    `shape` considers the value's shape instead of its content.
    """
    found: set[str] = set()
    seen: set[tuple[str, bool]] = set()
    waiting = [(value, shape)]
    while waiting:
        value, shape = waiting.pop()
        key = (value.debugName(), shape)
        if key in seen:
            continue
        seen.add(key)
        node = value.node()
        if node.kind() == "prim::Param":
            names = [output.debugName() for output in node.outputs()]
            if names.index(value.debugName()) < inputs:
                found.add("sizes" if shape else "values")
            continue
        waiting += _behind(node, shape)
    return found


def _behind(node: Any, shape: bool) -> Iterator[tuple[Any, bool]]:
    """The inputs that a node's result depends on, each with whether only its shape matters."""
    space, _, name = node.kind().partition("::")
    name = name.rstrip("_") if not name.startswith("_") else name
    given = list(node.inputs())
    known = space in ("aten", "prim") and not list(node.blocks()) and "Call" not in name
    if not known or (shape and name in _SHAPED_BY_VALUES):
        yield from ((item, False) for item in given)
    elif shape and name == "index":
        yield given[0], True
        for index in given[1].node().inputs():
            yield index, not _is_mask(index)
    elif name in _SIZES or (name in _LIKE and not shape):
        yield given[0], True
        yield from ((item, False) for item in given[1:])
    else:
        # A result's shape depends on the shapes of tensors and the values of numbers.
        yield from ((item, shape and "Tensor" in str(item.type())) for item in given)


def _is_mask(value: Any) -> bool:
    """Whether an index is a boolean mask."""
    while True:
        node = value.node()
        space, _, name = node.kind().partition("::")
        given = list(node.inputs())
        if space != "aten":
            return False
        if name in _MASKS:
            return True
        if name == "to":
            return any(item.node().kind() == "prim::Constant" and item.toIValue() == _BOOL for item in given[1:])
        if name not in _AS_BEFORE:
            return False
        value = given[0]
