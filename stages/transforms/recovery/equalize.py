"""Cross-layer equalisation: scales channels between two layers so that their weights have similar ranges.

If only operators lie between two layers that keep a positive factor of each channel (ReLU, pooling), the first layer's
channel can be divided by a factor and the second layer's weights of it multiplied (Nagel et al., Data-Free
Quantization, 2019, section 4.1). Factors are powers of two, so the float results do not change by one bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onward.registry.artifact.onnx_file import save
from onward.stages.transforms.graph_edit import captured, readers_of

Floats = npt.NDArray[np.float32]

# Operators that give x * factor if their input was x * factor, for each channel and a positive factor.
TRANSPARENT = {
    "AveragePool",
    "Dropout",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Relu",
}
# Operators that also change the shape: a channel becomes a block of columns.
FLATTENING = {"Flatten"}
# Passes over all pairs: a layer between two others belongs to two pairs.
PASSES = 8
# Largest factor.
LIMIT = 2.0**8


class Pair(NamedTuple):
    """Two layers with a path between them.

    Attributes:
        first: The layer that gives the channels: Conv or Gemm.
        second: The layer that reads them: Conv, Gemm or MatMul.
    """

    first: onnx.NodeProto
    second: onnx.NodeProto


def equalize(source: Path, target: Path) -> list[str]:
    """Write the graph of `source` with equalised weights.

    Args:
        source: The float ONNX file, normalised.
        target: The ONNX file to write.

    Returns:
        The changes in words; empty if there is no pair to equalise, and then nothing is written.
    """
    model = onnx.load(source)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = pairs(model.graph, weights)
    changed: set[str] = set()
    for _ in range(PASSES):
        changes = [name for pair in found for name in _balance(pair, weights)]
        changed |= set(changes)
        if not changes:
            break
    if not changed:
        return []
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    save(model, target)
    return [f"{len(found)} pairs of layers equalised"]


def pairs(graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]]) -> list[Pair]:
    """Find layers whose only reader, past transparent operators, is another layer.

    Args:
        graph: The graph.
        weights: The initializers by name.

    Returns:
        The pairs whose weights nothing else reads.
    """
    readers = readers_of(graph)
    fixed = {value.name for value in graph.output} | captured(graph)
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or not _owns(node, weights, readers):
            continue
        name, is_flat = node.output[0], node.op_type == "Gemm"
        while name not in fixed and len(readers.get(name, [])) == 1:
            after = readers[name][0]
            if after.input[0] != name:
                break
            if after.op_type in TRANSPARENT or (after.op_type in FLATTENING and not is_flat and _axis(after) == 1):
                name, is_flat = after.output[0], is_flat or after.op_type in FLATTENING
                continue
            reads = ("Gemm", "MatMul") if is_flat else ("Conv",)
            if after.op_type in reads and _owns(after, weights, readers) and _fits(node, after, weights):
                found.append(Pair(node, after))
            break
    return found


def _axis(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)


def _owns(node: onnx.NodeProto, weights: dict[str, npt.NDArray[Any]], readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether the weights and the bias are float32 constants that no other node reads."""
    names = [name for name in node.input[1:] if name]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return (
        bool(names)
        and all(name in weights and weights[name].dtype == np.float32 and len(readers[name]) == 1 for name in names)
        and weights[names[0]].ndim >= 2
        and (node.op_type != "MatMul" or weights[names[0]].ndim == 2)
        and not attributes.get("transA", 0)
    )


def _fits(first: onnx.NodeProto, second: onnx.NodeProto, weights: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether the second layer reads as many channels as the first one gives, each with its own bias."""
    channels = len(_outgoing(first, weights[first.input[1]]))
    has_bias = len(first.input) > 2
    is_plain = not has_bias or weights[first.input[2]].size == channels
    return is_plain and _incoming(second, weights[second.input[1]], channels) is not None


def _outgoing(node: onnx.NodeProto, weight: npt.NDArray[Any]) -> Floats:
    """A view of the weights as [output channels, ...]."""
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weight if node.op_type == "Conv" or is_transposed else np.moveaxis(weight, 1, 0)


def _incoming(node: onnx.NodeProto, weight: npt.NDArray[Any], channels: int) -> Floats | None:
    """A view of the weights as [groups, channels per group, ...]; None if they do not match the channels."""
    if node.op_type == "Conv":
        groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
        if weight.shape[1] * groups != channels:
            return None
        return np.moveaxis(weight.reshape(groups, len(weight) // groups, *weight.shape[1:]), 2, 1)
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    rows = weight.T if is_transposed else weight
    return None if len(rows) % channels else rows.reshape(1, channels, len(rows) // channels, -1)


def _balance(pair: Pair, weights: dict[str, npt.NDArray[Any]]) -> list[str]:
    """Scale the channels of a pair; gives the names of the weights that changed."""
    first, second = pair.first.input[1], pair.second.input[1]
    outgoing = _outgoing(pair.first, weights[first])
    channels = len(outgoing)
    incoming = _incoming(pair.second, weights[second], channels)
    if incoming is None:
        return []
    given = np.abs(outgoing.reshape(channels, -1)).max(1)
    taken = np.abs(incoming).max(tuple(range(2, incoming.ndim))).reshape(channels)
    factor = power_of_two(np.sqrt(np.divide(given, taken, out=np.ones(channels), where=(given > 0) & (taken > 0))))
    if (factor == 1).all():
        return []
    by_output = factor.reshape(-1, *[1] * (outgoing.ndim - 1))
    scaled = np.ascontiguousarray(outgoing / by_output)
    weights[first] = scaled if outgoing is weights[first] else np.ascontiguousarray(np.moveaxis(scaled, 0, 1))
    groups = incoming.shape[0]
    larger = incoming * factor.reshape(groups, -1, *[1] * (incoming.ndim - 2))
    weights[second] = _restored(pair.second, larger, weights[second].shape)
    if len(pair.first.input) > 2:
        name = pair.first.input[2]
        weights[name] = (weights[name].reshape(-1) / factor).reshape(weights[name].shape)
    return [first, second, *pair.first.input[2:3]]


def _restored(node: onnx.NodeProto, incoming: Floats, shape: tuple[int, ...]) -> Floats:
    """Undo `_incoming`."""
    if node.op_type == "Conv":
        return np.ascontiguousarray(np.moveaxis(incoming, 1, 2).reshape(shape))
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    rows = incoming.reshape(shape[::-1] if is_transposed else shape)
    return np.ascontiguousarray(rows.T if is_transposed else rows)


def power_of_two(values: npt.NDArray[Any]) -> Floats:
    """Round factors to powers of two within LIMIT: multiplying by them loses no digit of a float."""
    exponents = np.round(np.log2(np.clip(values, 1 / LIMIT, LIMIT)))
    found: Floats = np.exp2(exponents).astype(np.float32)
    return found
