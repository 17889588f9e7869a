"""bfloat16 for matrix products, each between two casts: the range of float32, but fewer digits than float16."""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.graph_nodes import nodes as nodes_of
from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, named, no_half, producer_nodes

NOT_ON_CPU = "ONNX Runtime has no CPU kernels for bfloat16 products"


def precision(options: Options) -> str:
    """Return the precision of the weights."""
    return "bfloat16"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why half precision makes nothing faster; empty if it may."""
    return no_half(runtimes)


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Convert the products with a constant matrix, except those in `keep`; needs no calibration.

    Raises:
        NotApplicable: There is no such product.
    """
    model = named(source)
    kept = producer_nodes(model, keep)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or node.name in kept:
            nodes.append(node)
            continue
        half = f"{node.input[1]}.bfloat16"
        if half not in weights:
            values = onnx.numpy_helper.to_array(weights[node.input[1]])
            weights[half] = onnx.helper.make_tensor(half, onnx.TensorProto.BFLOAT16, values.shape, values.flatten())
            model.graph.initializer.append(weights[half])
        given, result = f"{node.output[0]}.given", f"{node.output[0]}.bfloat16"
        cast = onnx.helper.make_node("Cast", [node.input[0]], [given], to=onnx.TensorProto.BFLOAT16)
        back = onnx.helper.make_node("Cast", [result], [node.output[0]], to=onnx.TensorProto.FLOAT)
        node.input[:] = [given, half]
        node.output[:] = [result]
        nodes += [cast, node, back]
    if len(nodes) == len(model.graph.node):
        raise NotApplicable("it has no product with a constant matrix to convert")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes_of(model) for name in node.input}
    unused = [w for w in model.graph.initializer if f"{w.name}.bfloat16" in weights and w.name not in read]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    save(model, target)
