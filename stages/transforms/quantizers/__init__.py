"""One quantiser a file, all of one shape: `quantize(source, target, calibration, keep, options)` writes a graph of
lower precision.

`calibration` is a list of feeds (input name to array), whether the technique uses it or not; `keep` names values of
the source whose nodes stay in float. `OPTIONS` are its options, each with its values, the default first;
`ACCURACY_ONLY` those that change what is computed and not how fast, `COARSER` those of which one value loses more than
another: (more, less). `precision(options)` is what the weights become, `skip_reason(graph, options, runtimes)` says
why a graph of these traits has nothing to gain. `NOT_ON_CPU` says why no CPU can be asked what a graph computes: then
the benchmark alone judges it, where it is measured. `PREPARED = True` asks for a source that ONNX Runtime has
pre-processed; `OPERATORS` are those whose layers are ranked when the quality budget breaks, `RANKED_AS` the options
with which they can be.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import onnx

from onward.stages.transforms.builder import Feed
from onward.stages.transforms.graph_profile import GraphProfile

__all__ = ["Feed", "named", "no_half", "prepare", "producer_nodes", "quiet", "too_small"]

# Under so many multiplications a call, quantising activations takes longer than the products do: a microsecond or two
# a layer, in which a core multiplies some 100,000 floats.
TINY = 100_000
# Where the layers that a technique turns to int8 hold a smaller share of the weights, the rest decides.
WORTHWHILE_SHARE = 0.1


def too_small(graph: GraphProfile) -> str:
    """Why int8 products cannot pay for quantising their activations; empty where they may."""
    if graph.multiplications < TINY:
        return f"too small: {graph.multiplications} multiplications a call cost less than quantising does"
    return ""


def no_half(runtimes: Iterable[str]) -> str:
    """Why half precision cannot pay; empty where a runtime has kernels for it. A CPU computes it in float32, and
    converts in between."""
    if set(runtimes) & {"cuda", "tensorrt"}:
        return ""
    return f"none of the runtimes ({', '.join(runtimes)}) computes in half precision: it would convert in between"


def quiet() -> None:
    """Silence advice on the root logger and native warnings about unused initializers; for a process of its own."""
    import onnxruntime

    logging.getLogger().setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)


def named(source: Path) -> onnx.ModelProto:
    """The model, each node with a name of its own: a quantiser is told by name what to leave alone."""
    model = onnx.load(source)
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = f"giving_{node.output[0]}"
        seen.add(node.name)
    return model


def producer_nodes(model: onnx.ModelProto, values: Iterable[str]) -> list[str]:
    """Names of the nodes that give these values, and what ONNX Runtime calls the product that it makes of a Gemm before
    it looks for them."""
    wanted = set(values)
    found = [node for node in model.graph.node if wanted & set(node.output)]
    return [node.name for node in found] + [f"{node.name}_MatMul" for node in found if node.op_type == "Gemm"]


def prepare(source: Path, target: Path) -> None:
    """ONNX Runtime's pre-processing for quantisation: BatchNorm folded, constants too, shapes inferred."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quiet()
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
