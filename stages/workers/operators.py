"""ONNX operators implemented with PyTorch, in the dtype of their input.

They replace implementations of onnx's evaluator that are slow or wrong. Each function follows the specification of its
operator (https://onnx.ai/onnx/operators/) for every opset, and has the operator's inputs as parameters. A function
raises NotImplementedError for cases that it does not cover; the evaluator then uses onnx's implementation.
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
from torch.nn import functional

from onward.stages.workers.node import Node
from onward.stages.workers.recurrent import RECURRENT, softplus
from onward.stages.workers.resizing import resize

Tensor = torch.Tensor
Function = Callable[..., Any]


# By ONNX operator type. The operators in INDEXING accept integers, too.
OPERATORS: dict[str, Function] = {}
INDEXING = {"GatherElements", "GatherND", "ScatterElements", "ScatterND"}


def apply(node: onnx.NodeProto, opset: int, inputs: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Compute one node.

    Args:
        node: The node.
        opset: Opset version of its domain.
        inputs: Its inputs; None for an omitted optional one.

    Returns:
        One array per output of the node.

    Raises:
        NotImplementedError: No operator here covers this node.
    """
    function = OPERATORS.get(node.op_type)
    first = inputs[0] if inputs else None
    if function is None or node.domain not in ("", "ai.onnx") or not isinstance(first, np.ndarray):
        raise NotImplementedError(node.op_type)
    if first.dtype.kind != "f" and not (node.op_type in INDEXING and first.dtype.kind in "iu"):
        raise NotImplementedError(f"{node.op_type} of {first.dtype}")
    properties = Node.of(node, opset)
    try:
        with torch.no_grad():
            returned = function(properties, *(None if value is None else _tensor(value) for value in inputs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # PyTorch does not support these sizes or types
        raise NotImplementedError(f"{node.op_type}: {error}") from error
    results = returned if isinstance(returned, tuple) else (returned,)
    if properties.outputs > len(results):
        raise NotImplementedError(f"{node.op_type} with {properties.outputs} outputs")
    return tuple(np.asarray(result.numpy()) for result in results[: len(node.output)])


def _tensor(value: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(value, order="C"))  # a copy, because PyTorch needs writeable memory


def _operator(*names: str) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _elementwise(function: Callable[..., Tensor]) -> Function:
    return lambda node, x: function(x)


_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Log": torch.log, "Mish": functional.mish, "Neg": torch.neg, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "Softplus": softplus,
    "HardSwish": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
}  # fmt: skip
OPERATORS.update({name: _elementwise(function) for name, function in _ELEMENTWISE.items()})


def _broadcast(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def compute(node: Node, a: Tensor, b: Tensor) -> Tensor:
        if node.get("broadcast", 0):  # before opset 7, attributes specify the axis of broadcasting
            raise NotImplementedError("broadcasting along an axis given by an attribute")
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
        "Gelu": lambda node, x: functional.gelu(x, approximate=node.get("approximate", "none")),
    }
)


@_operator("MatMul")
def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """MatMul, with broadcasting as numpy.matmul."""
    return torch.matmul(a, b)


@_operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha * A @ B + beta * C, from opset 7 on."""
    if node.opset < 7:
        raise NotImplementedError("Gemm before opset 7, which broadcasts by an attribute")
    product: Tensor = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    product = node.get("alpha", 1.0) * product
    return product if c is None else product + node.get("beta", 1.0) * c


@_operator("Einsum")
def einsum(node: Node, *operands: Tensor) -> Tensor:
    """Einsum."""
    equation = str(node.attributes["equation"]).replace(" ", "")
    return torch.einsum(equation, *operands)


@_operator("Softmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax."""
    return _over_axis(node, x, functional.softmax)


@_operator("LogSoftmax")
def log_softmax(node: Node, x: Tensor) -> Tensor:
    """LogSoftmax."""
    return _over_axis(node, x, functional.log_softmax)


def _over_axis(node: Node, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply a softmax along `axis`; before opset 13, over all axes from `axis` (by default 1) on, flattened."""
    if x.numel() == 0:
        return x
    if node.opset >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % max(x.ndim, 1)
    return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


@_operator("BatchNormalization")
def batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """BatchNormalization in inference mode, with the statistics in the file. `momentum` concerns training only."""
    training = node.get("training_mode", 0) if node.opset >= 7 else not node.get("is_test", 0)
    if training or node.outputs > 1 or not node.get("spatial", 1) or x.ndim < 2:
        raise NotImplementedError("BatchNormalization in training")
    mean, variance, scale, bias = (value.to(x.dtype) for value in (mean, variance, scale, bias))
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


@_operator("InstanceNormalization")
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization of [batch, channels, ...]; `scale` and `bias` are [channels]."""
    axes = tuple(range(2, x.ndim))
    shape = (1, -1, *(1 for _ in axes))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    normal = (x - mean) / torch.sqrt(variance + node.get("epsilon", 1e-5))
    return normal * scale.reshape(shape) + bias.reshape(shape)


@_operator("LayerNormalization")
def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    """LayerNormalization: the normalised tensor, the mean, and the inverse standard deviation."""
    axes = tuple(range(node.get("axis", -1) % x.ndim, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    inverse = 1 / torch.sqrt(variance + node.get("epsilon", 1e-5))
    normal = (x - mean) * inverse * scale
    return normal if bias is None else normal + bias, mean, inverse


@_operator("LRN")
def lrn(node: Node, x: Tensor) -> Tensor:
    """LRN (local response normalisation) with an odd window size."""
    size = node.attributes["size"]
    if size % 2 == 0:
        raise NotImplementedError("LRN with an even window, which PyTorch centres differently")
    return functional.local_response_norm(
        x, size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


@_operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv of [batch, channels, ...] over one to three spatial axes."""
    if not 1 <= x.ndim - 2 <= 3:
        raise NotImplementedError(f"a convolution over {x.ndim - 2} axes")
    window = _Window.of(node, x, list(weight.shape[2:]))
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[x.ndim - 3]
    padded = functional.pad(x, _pairs(window.before, window.after))
    return function(padded, weight, bias, window.strides, 0, window.dilations, node.get("group", 1))


@_operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose of [batch, channels, ...] over one to three spatial axes, with explicit padding."""
    axes = x.ndim - 2
    if not 1 <= axes <= 3 or "output_shape" in node.attributes or node.get("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("ConvTranspose with a given output size, or over more than three axes")
    strides, dilations = node.get("strides", [1] * axes), node.get("dilations", [1] * axes)
    pads, output_padding = node.get("pads", [0] * 2 * axes), node.get("output_padding", [0] * axes)
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
    unpadded = function(x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    before = [-pad for pad in pads[:axes]]
    after = [extra - pad for extra, pad in zip(output_padding, pads[axes:], strict=True)]
    cropped = functional.pad(unpadded, _pairs(before, after))
    return cropped if bias is None else cropped + bias.reshape(1, -1, *(1 for _ in range(axes)))


@_operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor:
    """MaxPool of [batch, channels, ...] over one to three spatial axes, without the output of indices."""
    if not 1 <= x.ndim - 2 <= 3 or node.outputs > 1:
        raise NotImplementedError("MaxPool over more than three axes, or with indices")
    window = _Window.of(node, x, node.attributes["kernel_shape"])
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
    padded = functional.pad(x, _pairs(window.before, window.rest), value=-math.inf)
    return function(padded, window.kernel, window.strides, 0, window.dilations)


@_operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """AveragePool of [batch, channels, ...] over one to three spatial axes, without dilation."""
    if not 1 <= x.ndim - 2 <= 3 or any(step != 1 for step in node.get("dilations", [])):
        raise NotImplementedError("AveragePool over more than three axes, or with dilations")
    window = _Window.of(node, x, node.attributes["kernel_shape"])
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.ndim - 3]
    # The mean over the window, divided by the share of the window's elements that count.
    counted = torch.ones(x.shape, dtype=x.dtype)
    if node.get("count_include_pad", 0):
        counted = functional.pad(counted, _pairs(window.before, window.after), value=1.0)
        beyond = [rest - after for rest, after in zip(window.rest, window.after, strict=True)]
        counted = functional.pad(counted, _pairs([0] * len(beyond), beyond))
    else:
        counted = functional.pad(counted, _pairs(window.before, window.rest))
    padded = functional.pad(x, _pairs(window.before, window.rest))
    return function(padded, window.kernel, window.strides) / function(counted, window.kernel, window.strides)


@_operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """GlobalAveragePool of [batch, channels, ...]."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@_operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """GlobalMaxPool of [batch, channels, ...]."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@dataclass(frozen=True)
class _Window:
    """A sliding window, with one entry per spatial axis.

    Attributes:
        kernel: Size of the kernel.
        strides: Step between windows.
        dilations: Distance between the kernel's elements.
        before: Padding at the start.
        after: Padding at the end.
        rest: `after` and the extra padding that ceil_mode needs for the last window.
    """

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
        pads, auto_pad = node.get("pads", [0] * 2 * axes), node.get("auto_pad", "NOTSET")
        before, after, rest = [], [], []
        for axis, size in enumerate(x.shape[2:]):
            extent, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
            start, end = pads[axis], pads[axes + axis]
            if auto_pad.startswith("SAME"):
                total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
                small, large = total // 2, total - total // 2
                start, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
            elif auto_pad == "VALID":
                start = end = 0
            room = size + start + end - extent
            extra = 0
            if node.get("ceil_mode", 0) and auto_pad == "NOTSET" and room % stride:
                steps = room // stride + 1
                if steps * stride < size + start:  # a window that would start in the padding at the end is left out
                    extra = steps * stride - room
            before.append(start)
            after.append(end)
            rest.append(end + extra)
        return cls(kernel, strides, dilations, before, after, rest)


def _pairs(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding in the order of torch.nn.functional.pad: (before, after) of the last axis first."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]


@_operator("Pad")
def pad(node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None) -> Tensor:
    """Pad with a constant, from opset 11 on."""
    if node.opset < 11 or node.get("mode", "constant") != "constant" or pads is None:
        raise NotImplementedError("Pad before opset 11, or with another mode than constant")
    chosen = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
    sizes = [int(size) for size in pads]
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(chosen):
        before[axis], after[axis] = sizes[position], sizes[len(chosen) + position]
    return functional.pad(x, _pairs(before, after), value=0.0 if value is None else float(value))


@_operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """GridSample."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    return functional.grid_sample(
        x, grid.to(x.dtype), mode, node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    )


@_operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """GatherElements."""
    axis = node.get("axis", 0) % x.ndim
    return torch.gather(x, axis, _non_negative(indices, x.shape[axis]))


@_operator("ScatterElements")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements."""
    axis, reduction = node.get("axis", 0) % x.ndim, node.get("reduction", "none")
    positions = _non_negative(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, positions, updates)
    torch_reduction = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}[reduction]
    return x.scatter_reduce(axis, positions, updates, torch_reduction)


@_operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """GatherND without batch dimensions."""
    if node.get("batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[indices.unbind(-1)]


@_operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND that replaces or adds."""
    reduction = node.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"ScatterND with reduction {reduction}")
    return x.index_put(indices.unbind(-1), updates, accumulate=reduction == "add")


def _non_negative(indices: Tensor, size: int) -> Tensor:
    """Indices as int64, with negative ones counted from the end of an axis of `size` elements."""
    return torch.where(indices < 0, indices + size, indices).long()


OPERATORS["Resize"] = resize
OPERATORS.update(RECURRENT)
