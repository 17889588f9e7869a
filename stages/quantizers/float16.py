"""Half precision: float16 throughout, inputs and outputs as they were; or bfloat16 for matrix products alone.

Only for providers with kernels for it: a CPU computes both in float32, and converts in between.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from registry.onnx_file import save
from stages.quantizers import Feed, givers, named, quiet
from stages.techniques import Options
from stages.traits import Traits

OPTIONS = {"kind": ("float16", "bfloat16")}

GAINS = ("cuda", "tensorrt")


def precision(options: Options) -> str:
    return str(options["kind"])


def unfit(graph: Traits, options: Options, runtimes: list[str]) -> str:
    """Why half precision cannot pay."""
    if not set(runtimes) & set(GAINS):
        return f"none of the runtimes ({', '.join(runtimes)}) computes in half precision: it would convert in between"
    return ""


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Convert what is not kept; needs no calibration."""
    quiet()
    model = named(source)
    kept = givers(model, keep)
    if options["kind"] == "bfloat16":
        save(_products_in_bfloat16(model, kept), target)
        return
    from onnxruntime.transformers.float16 import convert_float_to_float16

    save(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept), target)


def _products_in_bfloat16(model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
    """Matrix products with a constant matrix, each between two casts."""
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
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model
