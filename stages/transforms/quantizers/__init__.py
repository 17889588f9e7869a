"""Quantisers, one module each; all have the same interface.

`quantize(source, target, calibration, keep, options)` reads an ONNX file and writes another of lower precision.
`calibration` is a list of feeds (arrays by input name), which a technique may ignore. `keep` names values of the source
whose nodes stay in float. It raises `onward.stages.transforms.builder.NotApplicable` with the reason if it cannot.
`precision(options)` names the precision of the weights.
`skip_reason(graph, options, runtimes)` says why a graph with this profile cannot gain; empty if it may.

Optional in a module:
`OPTIONS`: its options, each with its allowed values, the default first.
`ACCURACY_ONLY`: the options that change accuracy but not speed.
`COARSER`: by option, the pair of values (less accurate, more accurate).
`NOT_ON_CPU`: why no CPU can run the graph; then the benchmark judges its outputs on the device that runs it.
`PREPARED = True`: the source must be pre-processed by ONNX Runtime.
`float_steps(options)`: names of steps that change the float graph first (stages/transforms/sources.py), in order.
`RESCUES`: techniques that are as fast; this one is tried only if none of them holds the budget.
`OPERATORS`: the operators whose layers are ranked if the quality budget breaks.
`RANKED_AS`: the options with which layers can be ranked.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import onnx

from onward.registry.artifact import onnx_file
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.graph_edit import sort_nodes
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.normalize import rewrite

__all__ = ["Feed", "finish", "named", "no_half", "prepare", "producer_nodes", "quiet", "too_small", "unsuitable"]

# Multiplications per call below which int8 cannot pay: quantising activations takes one or two microseconds per layer,
# and a core multiplies about 100,000 floats in that time.
TINY = 100_000
# Least share of the weights in layers that a technique converts to int8; below it, other layers determine the speed.
WORTHWHILE_SHARE = 0.1


def too_small(graph: GraphProfile) -> str:
    """Say why int8 products cannot make up for quantising their activations; empty if they may."""
    if graph.multiplications < TINY and not graph.uncounted:
        return f"too small: {graph.multiplications} multiplications per call take less time than quantising activations"
    return ""


def no_half(runtimes: Iterable[str]) -> str:
    """Say why half precision makes nothing faster on these runtimes; empty if one has kernels for it.

    CPUs compute it in float32, with conversions in between.
    """
    if set(runtimes) & {"cuda", "tensorrt"}:
        return ""
    return f"none of the runtimes ({', '.join(runtimes)}) computes in half precision: each would convert to float32"


def quiet() -> None:
    """Silence advice on the root logger and native warnings about unused initializers, for the whole process."""
    import onnxruntime

    logging.getLogger().setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)


def named(source: Path) -> onnx.ModelProto:
    """Load a model and give every node a unique name, because quantisers exclude nodes by name."""
    model = onnx.load(source)
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = f"giving_{node.output[0]}"
        seen.add(node.name)
    return model


def producer_nodes(model: onnx.ModelProto, values: Iterable[str]) -> list[str]:
    """Find the nodes that quantisers must exclude to keep some values in float.

    Args:
        model: A model with unique node names, from `named`.
        values: Names of the values.

    Returns:
        Names of the nodes that compute them. ONNX Runtime replaces a Gemm by a MatMul before it excludes nodes, so the
        name of that MatMul is included.
    """
    wanted = set(values)
    found = [node for node in model.graph.node if wanted & set(node.output)]
    return [node.name for node in found] + [f"{node.name}_MatMul" for node in found if node.op_type == "Gemm"]


def unsuitable(model: onnx.ModelProto) -> list[str]:
    """Find the nodes that ONNX Runtime's quantisers fail on, or turn into nodes that do not run.

    These are products with a constant matrix of another rank than 2 (the scale per channel would be along the wrong
    axis), layers with a computed weight or bias (the quantisers look for an initializer), transposed convolutions in
    groups (they have fewer scales than channels), and LSTMs with the batch first (the quantiser drops `layout`).
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        given = list(node.input)
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMul":
            is_odd = any(ranks.get(name, 2) != 2 for name in given)
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            grouped = node.op_type == "ConvTranspose" and attributes.get("group", 1) > 1
            is_odd = grouped or any(name not in ranks for name in given[1:3])
        else:
            is_odd = node.op_type == "LSTM" and attributes.get("layout", 0) == 1
        if is_odd:
            found.append(node.name)
    return found + [f"{name}_MatMul" for name in found]


def prepare(source: Path, target: Path) -> None:
    """Pre-process a graph for quantisation with ONNX Runtime: fold BatchNorm and constants, infer shapes.

    ONNX Runtime merges equal initializers and removes Identity nodes, so `normalize`'s rewrites are repeated.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quiet()
    is_large = sum(file.stat().st_size for file in onnx_file.files(source)) > onnx_file.EXTERNAL_DATA_BYTES
    quant_pre_process(
        str(source),
        str(target),
        skip_symbolic_shape=True,
        save_as_external_data=is_large,
        all_tensors_to_one_file=True,
        external_data_location=f"{target.name}.data" if is_large else None,
    )
    model, changes = rewrite(onnx.load(target), raises_opset=False)
    if changes:
        onnx_file.save(model, target)


def finish(target: Path) -> None:
    """Correct a file that ONNX Runtime's quantiser wrote: put nodes behind what their subgraphs read."""
    model = onnx_file.load_graph(target)
    if sort_nodes(model.graph):
        target.write_bytes(model.SerializeToString(deterministic=True))
