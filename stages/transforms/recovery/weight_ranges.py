"""Ranges of weights with the least mean square error of the rounded weights, one per output channel.

A range that ends at the largest weight wastes most steps if one weight is an outlier.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

# Shares of the largest magnitude that are tried.
SHARES = np.linspace(0.2, 1.0, 33)


def by_channel(
    model: onnx.ModelProto, operators: Collection[str], excluded: Collection[str], bits: int
) -> dict[str, list[dict[str, Any]]]:
    """Choose the ranges of all weights of some operators, as ONNX Runtime's TensorQuantOverrides.

    Args:
        model: The float model.
        operators: Operator types: Conv, Gemm and MatMul.
        excluded: Names of nodes that stay in float.
        bits: Bits of the rounded weights.

    Returns:
        By name of the weight: for each output channel the axis, lowest and highest value.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if node.op_type not in operators or node.name in excluded or len(node.input) < 2:
            continue
        tensor = weights.get(node.input[1])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and is_transposed) else 1
        limits = least_error(np.moveaxis(numpy_helper.to_array(tensor), axis, 0), bits)
        found[tensor.name] = [{"axis": axis, "rmin": -limit, "rmax": limit} for limit in limits]
    return found


def least_error(weights: npt.NDArray[Any], bits: int) -> npt.NDArray[np.float32]:
    """Find the symmetric range of each channel with the least mean square error.

    Args:
        weights: Weights [channels, ...].
        bits: Bits of the rounded weights.

    Returns:
        The largest magnitude of each range, [channels].
    """
    rows = weights.reshape(len(weights), -1).astype(np.float32)
    largest = np.abs(rows).max(1, initial=0)
    steps = 2 ** (bits - 1) - 1
    best: npt.NDArray[np.float32] = largest.copy()
    error = np.full(len(rows), np.inf)
    for share in SHARES[::-1]:
        scale = np.maximum(largest * np.float32(share) / steps, 1e-30)[:, None]
        rounded = np.clip(np.round(rows / scale), -steps, steps) * scale
        found = np.square(rounded - rows).sum(1, dtype=np.float64)
        is_better = found < error
        error[is_better], best[is_better] = found[is_better], (largest * np.float32(share))[is_better]
    return best
