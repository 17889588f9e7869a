"""Runs operators that choose among equal values (top-k, sort, argmax) with another order of equal values.

An answer that changes depends on that order, which no runtime guarantees. A PyTorch module runs in the mode
`OtherOrder`; in an ONNX graph, `reorder` changes the operators. Both permute the operator's input along its axis, and
map the indices that it returns back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    import torch

# (sign, shift): position i of the permuted axis contains element (sign * i + shift) mod size. The first reverses it.
_ORDERS = [(-1, -1), (1, 1), (-1, 2), (1, 7)]
# ONNX operators, with their default axis.
_CHOOSING = {"TopK": -1, "ArgMax": 0, "ArgMin": 0, "NonMaxSuppression": 1}
# Range and Gather with negative indices need this opset.
_OPSET = 11


def mode(seed: int, met: list[str]) -> Any:
    """A context in which PyTorch's operators see their input in another order.

    Args:
        seed: Selects the order.
        met: Receives the names of these operators as they run.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class OtherOrder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True  # such as torch.cond

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            wrap = _TORCH.get(str(func))
            if wrap is None:
                return func(*args, **(kwargs or {}))
            met.append(str(func))
            return wrap(func, seed, *args, **(kwargs or {}))

    return OtherOrder()  # type: ignore[no-untyped-call]


def _permutation(size: int, seed: int) -> torch.Tensor:
    import torch

    sign, shift = _ORDERS[seed % len(_ORDERS)]
    return (sign * torch.arange(size) + shift) % max(size, 1)


def _along(func: Any, seed: int, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """topk, sort and argsort, and max and min along a dimension. The last result is the indices."""
    position = 1 if str(func) == "aten.topk.default" else 0
    dim = kwargs.get("dim", args[position] if len(args) > position else -1)
    if x.dim() == 0:
        return func(x, *args, **kwargs)
    order = _permutation(x.shape[dim], seed)
    results = func(x.index_select(dim, order), *args, **kwargs)
    return order[results] if isinstance(results, type(x)) else (results[0], order[results[1]])


def _index(
    func: Any, seed: int, x: torch.Tensor, dim: int | None = None, keepdim: bool = False, **kwargs: Any
) -> torch.Tensor:
    """Argmax and argmin, along a dimension or over all elements."""
    if x.dim() == 0:
        return x.new_zeros((), dtype=_int64())
    if dim is None:
        order = _permutation(x.numel(), seed)
        found = order[func(x.reshape(-1)[order], 0, False)]
        return found.reshape([1] * x.dim()) if keepdim else found
    order = _permutation(x.shape[dim], seed)
    return order[func(x.index_select(dim, order), dim, keepdim)]


def _kept(func: Any, seed: int, boxes: torch.Tensor, scores: torch.Tensor, *args: Any) -> torch.Tensor:
    """Torchvision's nms."""
    order = _permutation(len(scores), seed)
    kept: torch.Tensor = order[func(boxes[order], scores[order], *args)]
    return kept


def _int64() -> Any:
    import torch

    return torch.int64


_TORCH: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            "aten.topk.default",
            "aten.sort.default",
            "aten.sort.stable",
            "aten.argsort.default",
            "aten.argsort.stable",
            "aten.max.dim",
            "aten.min.dim",
        ),
        _along,
    ),
    **dict.fromkeys(("aten.argmax.default", "aten.argmin.default"), _index),
    "torchvision.nms.default": _kept,
}


def chooses(graphs: Iterable[onnx.GraphProto]) -> bool:
    """Whether any of these graphs contains an operator that chooses among equal values."""
    return any(node.op_type in _CHOOSING for graph in graphs for node in graph.node)


def reorder(model: onnx.ModelProto, graphs: Sequence[onnx.GraphProto], seed: int) -> None:
    """Let every choosing operator see its input in another order.

    Models of an opset below 11 stay as they are.

    Args:
        model: The model, which is changed.
        graphs: Its graph and all subgraphs.
        seed: Selects the order.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        return
    number = 0
    for graph in graphs:
        nodes = list(graph.node)
        if not chooses([graph]):
            continue
        del graph.node[:]
        for node in nodes:
            if node.op_type in _CHOOSING and node.domain in ("", "ai.onnx"):
                graph.node.extend(_reordered(node, f"onward_order{number}_", seed))
                number += 1
            else:
                graph.node.append(node)


def _reordered(node: onnx.NodeProto, prefix: str, seed: int) -> Iterator[onnx.NodeProto]:
    sign, shift = _ORDERS[seed % len(_ORDERS)]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), _CHOOSING[node.op_type])
    order = f"{prefix}order"

    def scalar(name: str, value: int) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.array(value, np.int64))
        return helper.make_node("Constant", [], [f"{prefix}{name}"], value=tensor)

    def step(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(operator, [f"{prefix}{name}" for name in inputs], [f"{prefix}{output}"], **attributes)

    yield helper.make_node("Shape", [node.input[0]], [f"{prefix}shape"])
    for name, value in (("axis", axis), ("zero", 0), ("one", 1), ("sign", sign), ("shift", shift)):
        yield scalar(name, value)
    yield step("Gather", ["shape", "axis"], "size", axis=0)
    yield step("Range", ["zero", "size", "one"], "range")
    yield step("Mul", ["range", "sign"], "signed")
    yield step("Add", ["signed", "shift"], "shifted")
    yield step("Mod", ["shifted", "size"], "order")
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    for position, along in ((0, axis), (1, 2)) if node.op_type == "NonMaxSuppression" else ((0, axis),):
        changed.input[position] = f"{prefix}input{position}"
        yield helper.make_node("Gather", [node.input[position], order], [changed.input[position]], axis=along)
    indices = 1 if node.op_type == "TopK" else 0
    if len(node.output) <= indices or not node.output[indices]:
        yield changed
        return
    changed.output[indices] = found = f"{prefix}indices"
    yield changed
    if node.op_type == "NonMaxSuppression":  # rows of (batch, class, box)
        yield helper.make_node("Constant", [], [f"{prefix}first"], value=numpy_helper.from_array(np.array([0, 1])))
        yield helper.make_node("Constant", [], [f"{prefix}last"], value=numpy_helper.from_array(np.array([2])))
        yield step("Gather", ["indices", "first"], "batch_and_class", axis=1)
        yield step("Gather", ["indices", "last"], "box", axis=1)
        yield step("Gather", ["order", "box"], "original_box", axis=0)
        parts = [f"{prefix}batch_and_class", f"{prefix}original_box"]
        yield helper.make_node("Concat", parts, [node.output[0]], axis=1)
    else:
        yield helper.make_node("Gather", [order, found], [node.output[indices]], axis=0)
