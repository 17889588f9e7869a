"""SmoothQuant: moves the magnitude of outlier channels from activations to the weights that read them.

A normalisation's output has channels a hundred times as large as others, and one int8 scale for all of them. Each
channel is divided by a factor, in the normalisation's own scale and bias, and the matrices that read it are multiplied
(Xiao et al., SmoothQuant, 2023). If another node reads the output too, one Mul divides it for the matrices. Factors
are powers of two, so the float results do not change by one bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onward.registry.artifact.onnx_file import save
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.calibration import GROUP_BYTES, each_value
from onward.stages.transforms.graph_edit import captured, drop_unused, readers_of, set_nodes
from onward.stages.transforms.recovery.equalize import power_of_two

# The inputs with scale and bias of each normalisation.
NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
PRODUCTS = ("Attention", "Gemm", "MatMul")


@dataclass
class Place:
    """An activation to smooth.

    Attributes:
        value: Its name.
        channels: Size of its last axis.
        vectors: (node, input) of the scales and biases that can take the factor.
        products: The products with a constant matrix that read it.
        others: Whether anything else reads it.
    """

    value: str
    channels: int
    vectors: list[tuple[onnx.NodeProto, int]]
    products: list[onnx.NodeProto]
    others: bool


def smooth(source: Path, target: Path, feeds: Sequence[Feed], alpha: float) -> list[str]:
    """Write the graph of `source` with smoothed activations behind its normalisations.

    Args:
        source: The float ONNX file, normalised.
        target: The ONNX file to write.
        feeds: Calibration inputs by name.
        alpha: How much of the magnitude moves: 0 none, 1 all of it.

    Returns:
        The changes in words; empty if no product follows a normalisation, and then nothing is written.
    """
    model = onnx.load(source)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = places(model.graph, weights)
    if not found or not feeds:
        return []
    largest = _magnitudes(model, [place.value for place in found], feeds)
    folded, inserted = 0, []
    for place in found:
        matrices = [_rows(node, weights[node.input[1]]) for node in place.products]
        taken = np.max([np.abs(rows).max(1) for rows in matrices], axis=0)
        given = largest[place.value]
        there = (given > 0) & (taken > 0)
        wish = np.ones(place.channels)
        wish[there] = given[there] ** alpha / taken[there] ** (1 - alpha)
        factor = power_of_two(wish / np.median(wish))
        if (factor == 1).all():
            continue
        for node, rows in zip(place.products, matrices, strict=True):
            larger = rows * factor[:, None]
            node.input[1] = _store(model.graph, larger if rows is weights[node.input[1]] else larger.T, node.input[1])
        if place.others:
            inserted.append((place, _store(model.graph, 1 / factor, place.value)))
        else:
            for node, slot in place.vectors:
                node.input[slot] = _store(model.graph, weights[node.input[slot]] / factor, node.input[slot])
            folded += 1
    if not folded and not inserted:
        return []
    _insert(model.graph, inserted)
    drop_unused(model.graph)
    save(model, target)
    return [f"activations smoothed: {folded} in a normalisation, {len(inserted)} by a Mul"]


def places(graph: onnx.GraphProto, weights: dict[str, npt.NDArray[Any]]) -> list[Place]:
    """Find the outputs of normalisations that products with constant matrices read.

    Args:
        graph: The graph.
        weights: The initializers by name.

    Returns:
        The activations that can be smoothed.
    """
    readers = readers_of(graph)
    made = {name: node for node in graph.node for name in node.output}
    fixed = {value.name for value in graph.output} | captured(graph)
    found = []
    for node in graph.node:
        vectors = _vectors(node, weights, made, readers)
        if not vectors:
            continue
        channels = weights[vectors[0][0].input[vectors[0][1]]].size
        if any(weights[one.input[slot]].shape != (channels,) for one, slot in vectors):
            continue
        value = node.output[0]
        all_readers = readers.get(value, [])
        products = [reader for reader in all_readers if _is_product(reader, value, weights, channels)]
        if products:
            others = len(products) < len(all_readers) or value in fixed
            found.append(Place(value, channels, vectors, products, others))
    return found


def _vectors(
    node: onnx.NodeProto,
    weights: dict[str, npt.NDArray[Any]],
    made: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
) -> list[tuple[onnx.NodeProto, int]]:
    """Where the scale and the bias of a normalisation are; empty if the node does not end one.

    A normalisation may be one node, or end with a Mul and an Add of constant vectors.
    """
    if node.op_type in NORMS:
        slots = [slot for slot in NORMS[node.op_type] if slot < len(node.input) and node.input[slot]]
        return [(node, slot) for slot in slots] if all(node.input[slot] in weights for slot in slots) else []
    if node.op_type != "Add" or len(node.input) != 2:
        return []
    for slot in (0, 1):
        before = made.get(node.input[1 - slot])
        if node.input[slot] not in weights or before is None or before.op_type != "Mul":
            continue
        scale = next((index for index in (0, 1) if before.input[index] in weights), None)
        if scale is not None and len(readers.get(before.output[0], [])) == 1:
            return [(before, scale), (node, slot)]
    return []


def _is_product(node: onnx.NodeProto, value: str, weights: dict[str, npt.NDArray[Any]], channels: int) -> bool:
    """Whether a node multiplies the value, as its first input alone, with a constant matrix of these rows."""
    if node.op_type not in PRODUCTS or node.input[0] != value or list(node.input).count(value) > 1:
        return False
    matrix = weights.get(node.input[1])
    if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32:
        return False
    is_left_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return not is_left_transposed and len(_rows(node, matrix)) == channels


def _rows(node: onnx.NodeProto, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The matrix as [input channels, output channels]."""
    return matrix.T if any(a.name == "transB" and a.i for a in node.attribute) else matrix


def _magnitudes(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, npt.NDArray[Any]]:
    """The largest magnitude of each channel (last axis), [channels], over all feeds."""
    largest: dict[str, npt.NDArray[Any]] = {}
    sizes = dict.fromkeys(names, GROUP_BYTES // 32)  # eight at a time
    with tempfile.TemporaryDirectory() as folder:
        for name, value in each_value(model, folder, names, feeds, sizes):
            found = np.abs(value.reshape(-1, value.shape[-1])).max(0, initial=0.0)
            largest[name] = np.maximum(largest.get(name, 0.0), found)
    return largest


def _store(graph: onnx.GraphProto, values: npt.NDArray[Any], like: str) -> str:
    """Add an initializer with a name of its own."""
    names = {tensor.name for tensor in graph.initializer}
    name, number = f"{like}.smooth", 1
    while name in names:
        number += 1
        name = f"{like}.smooth{number}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    return name


def _insert(graph: onnx.GraphProto, inserted: Sequence[tuple[Place, str]]) -> None:
    """Put a Mul behind each value, and let the products read its result."""
    muls = {}
    for place, divisor in inserted:
        result = f"{place.value}.smoothed"
        muls[place.value] = helper.make_node("Mul", [place.value, divisor], [result], name=result)
        for node in place.products:
            node.input[0] = result
    nodes = []
    for node in graph.node:
        nodes.append(node)
        nodes += [muls[name] for name in node.output if name in muls]
    set_nodes(graph, nodes)
