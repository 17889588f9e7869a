"""ONNX operators over PyTorch, in the dtype of their input: a second implementation of what onnx's evaluator has slow
or wrong. Each follows the operator's specification (https://onnx.ai/onnx/operators/), for every opset.

An operator raises NotImplementedError for what it does not cover; the evaluator then takes onnx's own implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch.nn import functional as F

from onward.stages.workers.node import Node
from onward.stages.workers.recurrent import RECURRENT
from onward.stages.workers.resizing import resize

Tensor = torch.Tensor
Function = Callable[..., Any]


# By ONNX's name. Those in INDEXING work on integers as well.
OPERATORS: dict[str, Function] = {}
INDEXING = {"GatherElements", "GatherND", "ScatterElements", "ScatterND"}


def apply(node: onnx.NodeProto, opset: int, inputs: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
    """What the node gives for these inputs (None where an optional one is left out).

    Raises:
        NotImplementedError: there is no such operator here, or it does not cover this node.
    """
    function = OPERATORS.get(node.op_type)
    first = inputs[0] if inputs else None
    if function is None or node.domain not in ("", "ai.onnx") or not isinstance(first, np.ndarray):
        raise NotImplementedError(node.op_type)
    if first.dtype.kind != "f" and not (node.op_type in INDEXING and first.dtype.kind in "iu"):
        raise NotImplementedError(f"{node.op_type} of {first.dtype}")
    about = Node.of(node, opset)
    try:
        with torch.no_grad():
            given = function(about, *(None if value is None else _tensor(value) for value in inputs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # PyTorch takes no such sizes or types
        raise NotImplementedError(f"{node.op_type}: {error}") from error
    results = given if isinstance(given, tuple) else (given,)
    if about.outputs > len(results):
        raise NotImplementedError(f"{node.op_type} with {about.outputs} outputs")
    return tuple(np.asarray(result.numpy()) for result in results[: len(node.output)])


def _tensor(value: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(value, order="C"))  # a copy: PyTorch wants it writeable


def _operator(*names: str) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _elementwise(function: Callable[..., Tensor]) -> Function:
    return lambda node, x: function(x)


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "HardSwish": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
}  # fmt: skip
OPERATORS.update({name: _elementwise(function) for name, function in _ELEMENTWISE.items()})


def _broadcast(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def compute(node: Node, a: Tensor, b: Tensor) -> Tensor:
        if node.get("broadcast", 0):  # before opset 7, an attribute said along which axis
            raise NotImplementedError("broadcasting by an attribute")
        return function(a, b)

    return compute


OPERATORS.update(
    {
        "Add": _broadcast(torch.add),
        "Sub": _broadcast(torch.sub),
        "Mul": _broadcast(torch.mul),
        "Div": _broadcast(torch.div),
        "LeakyRelu": lambda node, x: torch.where(x < 0, node.get("alpha", 0.01) * x, x),
        "HardSigmoid": lambda node, x: torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1),
        "Elu": lambda node, x: torch.where(x < 0, node.get("alpha", 1.0) * torch.expm1(x), x),
        "Gelu": lambda node, x: F.gelu(x, approximate=node.get("approximate", "none")),
    }
)


@_operator("MatMul")
def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@_operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    if node.opset < 7:
        raise NotImplementedError("Gemm's own broadcasting")
    product: Tensor = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    product = node.get("alpha", 1.0) * product
    return product if c is None else product + node.get("beta", 1.0) * c


@_operator("Einsum")
def einsum(node: Node, *operands: Tensor) -> Tensor:
    equation = str(node.attributes["equation"]).replace(" ", "")
    return torch.einsum(equation, *operands)


@_operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    return _over_axis(node, x, F.softmax)


@_operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    return _over_axis(node, x, F.log_softmax)


def _over_axis(node: Node, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Before opset 13, all axes from `axis` (by default 1) on are one."""
    if x.numel() == 0:
        return x
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


@_operator("BatchNormalization")
def batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """By the statistics that the file holds: `momentum` is for training, whatever its value."""
    training = node.get("training_mode", 0) if node.opset >= 7 else not node.get("is_test", 0)
    if training or node.outputs > 1 or not node.get("spatial", 1) or x.ndim < 2:
        raise NotImplementedError("BatchNormalization in training")
    mean, variance, scale, bias = (value.to(x.dtype) for value in (mean, variance, scale, bias))
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


@_operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = tuple(range(2, x.ndim))
    shape = (1, -1, *(1 for _ in axes))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    normal = (x - mean) / torch.sqrt(variance + node.get("epsilon", 1e-5))
    return normal * scale.reshape(shape) + bias.reshape(shape)


@_operator("LayerNormalization")
def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    inverse = 1 / torch.sqrt(variance + node.get("epsilon", 1e-5))
    normal = (x - mean) * inverse * scale
    return normal if bias is None else normal + bias, mean, inverse


@_operator("LRN")
def lrn(node: Node, x: Tensor) -> Tensor:
    size = node.attributes["size"]
    if size % 2 == 0:
        raise NotImplementedError("PyTorch centres an even window otherwise")
    return F.local_response_norm(x, size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))


@_operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not 1 <= x.ndim - 2 <= 3:
        raise NotImplementedError("a convolution over so many axes")
    window = _Window.of(node, x, list(weight.shape[2:]))
    function = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    padded = F.pad(x, _pairs(window.before, window.after))
    return function(padded, weight, bias, window.strides, 0, window.dilations, node.get("group", 1))


@_operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = x.ndim - 2
    if not 1 <= axes <= 3 or "output_shape" in node.attributes or node.get("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("ConvTranspose towards a given size")
    strides, dilations = node.get("strides", [1] * axes), node.get("dilations", [1] * axes)
    pads, more = node.get("pads", [0] * 2 * axes), node.get("output_padding", [0] * axes)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    whole = function(x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    cut = F.pad(
        whole, _pairs([-pad for pad in pads[:axes]], [m - pad for m, pad in zip(more, pads[axes:], strict=True)])
    )
    return cut if bias is None else cut + bias.reshape(1, -1, *(1 for _ in range(axes)))


@_operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor:
    if not 1 <= x.ndim - 2 <= 3 or node.outputs > 1:
        raise NotImplementedError("MaxPool over so many axes, or with indices")
    window = _Window.of(node, x, node.attributes["kernel_shape"])
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    padded = F.pad(x, _pairs(window.before, window.rest), value=-math.inf)
    return function(padded, window.kernel, window.strides, 0, window.dilations)


@_operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    if not 1 <= x.ndim - 2 <= 3 or any(step != 1 for step in node.get("dilations", [])):
        raise NotImplementedError("AveragePool over so many axes, or with gaps")
    window = _Window.of(node, x, node.attributes["kernel_shape"])
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    # The mean over the window, divided by the share of the window that counts.
    counted = torch.ones(x.shape, dtype=x.dtype)
    if node.get("count_include_pad", 0):
        counted = F.pad(counted, _pairs(window.before, window.after), value=1.0)
        beyond = [rest - after for rest, after in zip(window.rest, window.after, strict=True)]
        counted = F.pad(counted, _pairs([0] * len(beyond), beyond))
    else:
        counted = F.pad(counted, _pairs(window.before, window.rest))
    padded = F.pad(x, _pairs(window.before, window.rest))
    return function(padded, window.kernel, window.strides) / function(counted, window.kernel, window.strides)


@_operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@_operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@dataclass(frozen=True)
class _Window:
    """A sliding window, axis by axis. `rest` is `after` and what ceil_mode adds at the end, so that the windows fit."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    rest: list[int]

    @classmethod
    def of(cls, node: Node, x: Tensor, kernel: list[int]) -> _Window:
        axes = len(kernel)
        strides, dilations = node.get("strides", [1] * axes), node.get("dilations", [1] * axes)
        pads, how = node.get("pads", [0] * 2 * axes), node.get("auto_pad", "NOTSET")
        before, after, rest = [], [], []
        for axis, size in enumerate(x.shape[2:]):
            reach, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
            first, last = pads[axis], pads[axes + axis]
            if how.startswith("SAME"):
                total = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
                small, large = total // 2, total - total // 2
                first, last = (small, large) if how == "SAME_UPPER" else (large, small)
            elif how == "VALID":
                first = last = 0
            room = size + first + last - reach
            more = 0
            if node.get("ceil_mode", 0) and how == "NOTSET" and room % stride:
                steps = room // stride + 1
                if steps * stride < size + first:  # a window that would start in the padding at the end is left out
                    more = steps * stride - room
            before.append(first)
            after.append(last)
            rest.append(last + more)
        return cls(kernel, strides, dilations, before, after, rest)


def _pairs(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As torch.nn.functional.pad wants them: the last axis first."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]


@_operator("Pad")
def pad(node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None) -> Tensor:
    if node.opset < 11 or node.get("mode", "constant") != "constant" or pads is None:
        raise NotImplementedError("Pad other than by a constant")
    chosen = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
    sizes = [int(size) for size in pads]
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(chosen):
        before[axis], after[axis] = sizes[position], sizes[len(chosen) + position]
    return F.pad(x, _pairs(before, after), value=0.0 if value is None else float(value))


@_operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    return F.grid_sample(
        x, grid.to(x.dtype), mode, node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    )


@_operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


@_operator("ScatterElements")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, how = node.get("axis", 0) % x.ndim, node.get("reduction", "none")
    places = _positive(indices, x.shape[axis])
    if how == "none":
        return x.scatter(axis, places, updates)
    torchs = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}[how]
    return x.scatter_reduce(axis, places, updates, torchs)


@_operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    if node.get("batch_dims", 0):
        raise NotImplementedError("GatherND by batch")
    return x[indices.unbind(-1)]


@_operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    how = node.get("reduction", "none")
    if how not in ("none", "add"):
        raise NotImplementedError(f"ScatterND with {how}")
    return x.index_put(indices.unbind(-1), updates, accumulate=how == "add")


def _positive(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


OPERATORS["Resize"] = resize
OPERATORS.update(RECURRENT)
