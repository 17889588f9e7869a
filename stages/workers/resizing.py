"""ONNX's Resize, with the position of each output element in the input computed in exact rational arithmetic.

Implementations differ by a pixel, because a scale such as 64/26 has no exact value in floating point
(microsoft/onnxruntime#12098). Specification: https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch

from onward.stages.workers.node import Node

Tensor = torch.Tensor
HALF = Fraction(1, 2)

_NEAREST: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda position: math.ceil(position - HALF),
    "round_prefer_ceil": lambda position: math.floor(position + HALF),
}


def resize(node: Node, x: Tensor, *rest: Tensor | None) -> Tensor:
    """Resize a tensor, axis by axis.

    Args:
        node: The node.
        x: The tensor.
        *rest: The operator's further inputs: roi, scales and sizes.

    Raises:
        NotImplementedError: The opset is below 11, or the node uses antialiasing, cropping or an aspect ratio policy.
    """
    if node.opset < 11:
        raise NotImplementedError("Resize before opset 11")
    scales, sizes = (rest[index] if len(rest) > index else None for index in (1, 2))
    scales, sizes = (None if value is None or value.numel() == 0 else value for value in (scales, sizes))
    mode = node.get("coordinate_transformation_mode", "half_pixel")
    is_plain = node.get("keep_aspect_ratio_policy", "stretch") == "stretch" and not node.get("antialias", 0)
    if mode not in _POSITION or not is_plain or (scales is None) == (sizes is None):
        raise NotImplementedError(f"Resize with coordinates {mode}, antialiasing, or an aspect ratio policy")
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    for number, axis in enumerate(axes):
        old = x.shape[axis]
        if sizes is not None:
            new = int(sizes[number])
            scale = Fraction(new, old)
        else:
            assert scales is not None
            scale = Fraction(float(scales[number]))
            new = math.floor(old * scale)
            if mode == "align_corners" and new != old * scale:
                raise NotImplementedError("align_corners with a fractional size, where implementations differ")
        if new != old or scale != 1:
            x = _resample(node, x, axis, [_POSITION[mode](index, scale, old, new) for index in range(new)])
    return x


def _half_pixel(index: int, scale: Fraction, old: int, new: int) -> Fraction:
    return (index + HALF) / scale - HALF


def _symmetric(index: int, scale: Fraction, old: int, new: int) -> Fraction:
    adjustment = new / (scale * old)
    return Fraction(old, 2) * (1 - adjustment) + _half_pixel(index, scale, old, new)


# The position in the input of the output element `index`; `old` and `new` are the sizes of the axis.
_POSITION: dict[str, Callable[[int, Fraction, int, int], Fraction]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda index, scale, old, new: (
        _half_pixel(index, scale, old, new) if new > 1 else Fraction(0)
    ),
    "align_corners": lambda index, scale, old, new: Fraction(index * (old - 1), new - 1) if new > 1 else Fraction(0),
    "asymmetric": lambda index, scale, old, new: index / scale,
}


def _resample(node: Node, x: Tensor, axis: int, positions: list[Fraction]) -> Tensor:
    """Interpolate `x` along one axis at these positions."""
    size, mode = x.shape[axis], node.get("mode", "nearest")
    if mode == "nearest":
        nearest = _NEAREST[node.get("nearest_mode", "round_prefer_floor")]
        chosen = [min(max(nearest(position), 0), size - 1) for position in positions]
        return x.index_select(axis, torch.tensor(chosen).long())
    matrix = torch.zeros(len(positions), size, dtype=x.dtype)
    for row, position in enumerate(positions):
        left = math.floor(position)
        fraction = float(position - left)
        weights = [1 - fraction, fraction] if mode == "linear" else _cubic(fraction, node.get("cubic_coeff_a", -0.75))
        first = left if mode == "linear" else left - 1
        if node.get("exclude_outside", 0) and mode == "cubic":
            weights = [weight if 0 <= first + offset < size else 0.0 for offset, weight in enumerate(weights)]
            weights = [weight / sum(weights) for weight in weights]
        for offset, weight in enumerate(weights):
            matrix[row, min(max(first + offset, 0), size - 1)] += weight
    return torch.movedim(torch.tensordot(x, matrix, dims=([axis], [1])), -1, axis)


def _cubic(fraction: float, a: Any) -> list[float]:
    """Weights of the four neighbours by cubic convolution (Keys 1981), whose parameter is `a`."""

    def inner(distance: float) -> float:
        return float(((a + 2) * distance - (a + 3)) * distance * distance + 1)

    def outer(distance: float) -> float:
        return float(((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a)

    return [outer(1 + fraction), inner(fraction), inner(1 - fraction), outer(2 - fraction)]
