"""Describes the kind and size of a graph, which decide the techniques that are worth trying."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onward.registry.artifact import onnx_file

RECURRENT = {"LSTM", "GRU", "RNN"}
CONVOLUTIONS = {"Conv", "ConvTranspose"}
PRODUCTS = {"MatMul", "Gemm"}
# Operators that replace a softmax between two products of activations in fused graphs.
ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}


@dataclass(frozen=True)
class GraphProfile:
    """The kind and size of a graph.

    Attributes:
        products: Bytes of the weights of matrix products, as float32.
        convolutions: Bytes of the weights of convolutions, as float32.
        recurrent: Bytes of the weights of recurrent layers, as float32.
        multiplications: Multiplications with weights in one call. Products of two activations are not counted.
        uncounted: How many nodes use weights on a tensor of unknown shape: `multiplications` is too small then.
        attention: It has a fused attention operator, or a softmax and a product of two activations.
        softmax: It has a softmax.
        folded: PyTorch's exporter left no node that depends on weights alone.
        opset: Version of the default operator set.
    """

    products: int = 0
    convolutions: int = 0
    recurrent: int = 0
    multiplications: int = 0
    uncounted: int = 0
    attention: bool = False
    softmax: bool = False
    folded: bool = False
    opset: int = 0

    @property
    def weights(self) -> int:
        """Bytes of all counted weights, as float32."""
        return self.products + self.convolutions + self.recurrent

    @property
    def kind(self) -> str:
        """The operators with most of the weights, in words."""
        if self.attention:
            return "attention"
        if self.recurrent:
            return "recurrent"
        if self.convolutions > self.products:
            return "convolutional"
        return "convolutional, then matrix products" if self.convolutions else "matrix products"

    def __str__(self) -> str:
        return (
            f"{self.kind}; {self.weights / 1e6:.2f} MB of weights, {self.multiplications / 1e6:.3g} M multiplications"
        )


def describe(path: Path, inputs: Mapping[str, Sequence[int | None]]) -> GraphProfile:
    """Profile an ONNX file.

    Args:
        path: The ONNX file.
        inputs: Shape of each input, for `multiplications`. The file may have other names for its dimensions.
    """
    model = onnx_file.load_graph(path)
    shapes = _shapes(model, inputs)
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    constants = 0
    for node in model.graph.node:  # a value that depends on weights alone is a weight that is not folded yet
        if all(name in weights for name in node.input if name):
            constants += node.op_type != "Constant"
            weights |= {name: shapes.get(name, []) for name in node.output}
    found = {"products": 0, "convolutions": 0, "recurrent": 0}
    multiplications = uncounted = 0
    for node in model.graph.node:
        group = _group(node)
        size = sum(math.prod(weights[name]) for name in node.input if len(weights.get(name, [])) > 1)
        if group and size:
            found[group] += 4 * size
            uses = _uses(group, node, shapes)
            multiplications += size * (1 if uses is None else uses)
            uncounted += uses is None
    operators = {node.op_type for node in model.graph.node}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    of_activations = any(not set(node.input) & set(weights) for node in products)
    return GraphProfile(
        **found,
        multiplications=multiplications,
        uncounted=uncounted,
        attention=bool(operators & ATTENTION) or ("Softmax" in operators and of_activations),
        softmax="Softmax" in operators,
        folded=model.producer_name == "pytorch" and not constants,
        opset=onnx_file.opset(model),
    )


def _group(node: onnx.NodeProto) -> str:
    """The field of GraphProfile that counts this node's weights; empty if none does."""
    if node.op_type in PRODUCTS | {"Attention"}:
        return "products"
    if node.op_type in CONVOLUTIONS:
        return "convolutions"
    return "recurrent" if node.op_type in RECURRENT else ""


def _uses(group: str, node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int | None:
    """How often one call uses each weight: once per row, position or step; None if the shape is unknown."""
    shape = shapes.get(node.output[0] if group == "convolutions" else node.input[0])
    if shape is None:
        return None
    if group == "convolutions":
        return math.prod([*shape[:1], *shape[2:]])
    return math.prod(shape[:2] if group == "recurrent" else shape[:-1])


def _shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int | None]]) -> dict[str, list[int]]:
    """Shapes of values by name, as far as ONNX infers them. Large weights are cleared first: contents do not matter."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if math.prod(tensor.dims) > 1024:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    for value in bare.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs.get(value.name, ()), strict=False):
            if size is not None:
                dim.dim_value = size
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    return dict(_known([*bare.graph.input, *bare.graph.value_info, *bare.graph.output]))


def _known(values: Iterable[onnx.ValueInfoProto]) -> Iterable[tuple[str, list[int]]]:
    """Name and shape of the values with a fixed shape."""
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            yield value.name, [dim.dim_value for dim in dims]
