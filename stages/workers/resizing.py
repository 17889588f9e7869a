"""Resize by its specification: where each output element lies in the input is computed in exact rational arithmetic.

Implementations differ here by a pixel, because a scale such as 64/26 has no exact value in floating point
(microsoft/onnxruntime#12098). https://onnx.ai/onnx/operators/onnx__Resize.html
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
    "round_prefer_floor": lambda at: math.ceil(at - HALF),
    "round_prefer_ceil": lambda at: math.floor(at + HALF),
}


def resize(node: Node, x: Tensor, *rest: Tensor | None) -> Tensor:
    """`rest` is roi, scales and sizes; before opset 11, scales alone.

    Raises:
        NotImplementedError: antialias, cropping, or a policy for the aspect ratio is asked for.
    """
    if node.opset < 11:
        raise NotImplementedError("Resize before opset 11")
    scales, sizes = (rest[i] if len(rest) > i and rest[i] is not None else None for i in (1, 2))
    scales, sizes = (None if v is None or v.numel() == 0 else v for v in (scales, sizes))
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    plain = node.get("keep_aspect_ratio_policy", "stretch") == "stretch" and not node.get("antialias", 0)
    if coordinates not in _WHERE or not plain or (scales is None) == (sizes is None):
        raise NotImplementedError(f"Resize by {coordinates}")
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    for position, axis in enumerate(axes):
        before = x.shape[axis]
        if sizes is not None:
            after = int(sizes[position])
            scale = Fraction(after, before)
        else:
            assert scales is not None
            scale = Fraction(float(scales[position]))
            after = math.floor(before * scale)
            if coordinates == "align_corners" and after != before * scale:
                raise NotImplementedError("implementations differ in what they align")
        if after != before or scale != 1:
            x = _along(node, x, axis, [_WHERE[coordinates](at, scale, before, after) for at in range(after)])
    return x


def _half_pixel(at: int, scale: Fraction, before: int, after: int) -> Fraction:
    return (at + HALF) / scale - HALF


def _symmetric(at: int, scale: Fraction, before: int, after: int) -> Fraction:
    adjustment = after / (scale * before)
    return Fraction(before, 2) * (1 - adjustment) + _half_pixel(at, scale, before, after)


_WHERE: dict[str, Callable[[int, Fraction, int, int], Fraction]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda at, scale, before, after: (
        _half_pixel(at, scale, before, after) if after > 1 else Fraction(0)
    ),
    "align_corners": lambda at, scale, before, after: (
        Fraction(at * (before - 1), after - 1) if after > 1 else Fraction(0)
    ),
    "asymmetric": lambda at, scale, before, after: at / scale,
}


def _along(node: Node, x: Tensor, axis: int, places: list[Fraction]) -> Tensor:
    """Sample `x` along one axis at these places of it."""
    size, mode = x.shape[axis], node.get("mode", "nearest")
    if mode == "nearest":
        choose = _NEAREST[node.get("nearest_mode", "round_prefer_floor")]
        return x.index_select(axis, torch.tensor([min(max(choose(at), 0), size - 1) for at in places]).long())
    weights = torch.zeros(len(places), size, dtype=x.dtype)
    for row, at in enumerate(places):
        first = math.floor(at)
        share = float(at - first)
        shares = [1 - share, share] if mode == "linear" else _cubic(share, node.get("cubic_coeff_a", -0.75))
        begin = first if mode == "linear" else first - 1
        if node.get("exclude_outside", 0) and mode == "cubic":
            shares = [value if 0 <= begin + k < size else 0.0 for k, value in enumerate(shares)]
            shares = [value / sum(shares) for value in shares]
        for k, value in enumerate(shares):
            weights[row, min(max(begin + k, 0), size - 1)] += value
    return torch.movedim(torch.tensordot(x, weights, dims=([axis], [1])), -1, axis)


def _cubic(share: float, a: Any) -> list[float]:
    """Weights of the four neighbours (Keys 1981)."""

    def near(d: float) -> float:
        return float(((a + 2) * d - (a + 3)) * d * d + 1)

    def far(d: float) -> float:
        return float(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

    return [far(1 + share), near(share), near(1 - share), far(2 - share)]
