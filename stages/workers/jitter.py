"""An ONNX file with every weight moved by one unit in the last place: its answers move by what float32 rounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onward.registry.artifact import onnx_file

# Operands, by position, that say where to look or how large to be: moved by an ulp, they could give another shape.
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
    """Write a copy of `model` in which every float weight that is not a whole number is moved by one unit in the last
    place, up or down at random. Whole numbers stay, since they may be categories or bounds; so do operands that say
    how large a result is.

    Args:
        model: an ONNX file, with or without external data.
        target: where to write the copy, one file.
        seed: the same seed gives the same copy.

    Returns:
        False, and nothing is written, where the copy would not fit into one file (2 GB).
    """
    if sum(file.stat().st_size for file in onnx_file.files(model)) >= onnx_file.EXTERNAL_DATA_BYTES:
        return False
    copy = onnx.load(model)
    rng = np.random.default_rng(seed)
    every = list(graphs(copy.graph))
    kept = _deciding_shapes([node for graph in every for node in graph.node])
    for graph in every:
        for name, tensor in _weights(graph):
            if name not in kept and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
                tensor.CopyFrom(numpy_helper.from_array(moved(numpy_helper.to_array(tensor), rng), tensor.name))
    target.write_bytes(copy.SerializeToString())
    return True


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from graphs(inner)


def moved(values: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Floats moved to the next one up or down, at random; whole numbers and what is not finite stay."""
    towards = np.where(rng.random(values.shape) < 0.5, np.inf, -np.inf).astype(values.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        still = ~np.isfinite(values) | (values == np.round(values))
        return np.where(still, values, np.nextafter(values, towards))


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initializers, and the tensors of Constant nodes, by name."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _deciding_shapes(nodes: list[onnx.NodeProto]) -> set[str]:
    """Names of the values that a shape is computed from. What Shape and Size give does not depend on values."""
    makers = {name: node for node in nodes for name in node.output if name}
    waiting = [
        name for node in nodes for at, name in enumerate(node.input) if at in PLACES.get(node.op_type, frozenset())
    ]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if name in makers and makers[name].op_type not in ("Shape", "Size"):
                waiting += makers[name].input
    return found
