"""Moves every float weight of an ONNX file by one unit in the last place (ulp).

The change in the model's outputs shows how much of them is rounding in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onward.registry.artifact import onnx_file
from onward.stages.workers import ties

# Operands, by position, that determine positions or sizes: moved by an ulp, they could change a shape.
PLACES: dict[str, frozenset[int]] = {
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Expand": frozenset({1}),
    "Tile": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1}),
    "TopK": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
}


def jittered_file(model: Path, target: Path, seed: int) -> bool:
    """Write a copy of `model` with its float weights moved by one ulp, and another order of equal values (`ties`).

    Whole numbers are kept, because they may be categories or bounds. Operands that determine a shape are kept, too.

    Args:
        model: An ONNX file, with or without external data.
        target: The file to write.
        seed: Seed of the random directions; the same seed gives the same copy.

    Returns:
        Whether the copy was written; False if it would exceed one file's limit of 2 GB.
    """
    if sum(file.stat().st_size for file in onnx_file.files(model)) >= onnx_file.EXTERNAL_DATA_BYTES:
        return False
    copy = onnx.load(model)
    rng = np.random.default_rng(seed)
    all_graphs = list(graphs(copy.graph))
    kept = _deciding_shapes([node for graph in all_graphs for node in graph.node])
    for graph in all_graphs:
        for name, tensor in _weights(graph):
            if name not in kept and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
                tensor.CopyFrom(numpy_helper.from_array(moved(numpy_helper.to_array(tensor), rng), tensor.name))
    ties.reorder(copy, all_graphs, seed)
    target.write_bytes(copy.SerializeToString())
    return True


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Iterate over a graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from graphs(inner)


def moved(values: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Move each float to the next representable one, up or down at random.

    Whole numbers (zeros of pruned weights, bounds of categories), NaN and infinity stay as they are.

    Args:
        values: Floats of any shape.
        rng: Source of the random directions.

    Returns:
        The moved values, with the shape and dtype of `values`.
    """
    direction = np.where(rng.random(values.shape) < 0.5, np.inf, -np.inf).astype(values.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        is_kept = ~np.isfinite(values) | (values == np.round(values))
        return np.where(is_kept, values, np.nextafter(values, direction))


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """(name, tensor) of each initializer and Constant node."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _deciding_shapes(nodes: list[onnx.NodeProto]) -> set[str]:
    """Names of all values that a shape is computed from.

    The search stops at Shape and Size, because their results do not depend on their operand's values.
    """
    producers = {name: node for node in nodes for name in node.output if name}
    waiting = [
        name
        for node in nodes
        for position, name in enumerate(node.input)
        if position in PLACES.get(node.op_type, frozenset())
    ]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if name in producers and producers[name].op_type not in ("Shape", "Size"):
                waiting += producers[name].input
    return found
