"""onnxscript's rewriter for ONNX Runtime: fuses attention, layer normalisation and GELU of today's transformers.

ONNX Runtime's transformers optimiser looks for the patterns of older exporters, and fuses no attention in a graph
that torch exports today.

How far attention is fused decides what can be quantised afterwards: `whole` makes one Attention of the projections of
Q, K and V and of what follows; `partial` stops at MultiHeadAttention and leaves the projections matrix products.

`norms: apart` takes each SkipLayerNormalization to pieces again: its kernel for CPUs computes element by element, and
takes three times as long as the sum and the LayerNormalization that it stands for. The sum is a Sum, for a session
would fuse an Add once more.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile

OPTIONS = {"attention": ("whole", "partial"), "norms": ("apart", "fused")}

# From opset 23 on, torch exports a native Attention, which these rules leave alone.
NATIVE_ATTENTION = 23


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Why there is nothing to fuse, or nothing to gain from it."""
    if not graph.softmax:
        return "no attention in this graph (it has no Softmax)"
    if graph.opset >= NATIVE_ATTENTION:
        return f"opset {graph.opset} has a native Attention, which is not fused further"
    if options["norms"] == "fused" and set(runtimes) <= {"cpu", "openvino"}:
        return "on CPUs, SkipLayerNormalization is slower than its parts"
    return ""


def optimize(source: Path, target: Path, options: Options) -> None:
    """Fuse what the rules find.

    Raises:
        NotApplicable: no rule matched.
    """
    import onnx_ir as ir
    from onnxscript.rewriter import ort_fusions
    from onnxscript.rewriter.ort_fusions import _core

    if options["attention"] == "partial":
        # The one rule that takes the projections in; this process is the optimiser's own.
        setattr(_core, "fuse_attention", lambda model, debug=False: 0)  # noqa: B010
    model, fused = ort_fusions.optimize_for_ort(ir.from_proto(onnx.load(source)))
    if not any(fused.values()):
        raise NotApplicable("no fusion rule matched")
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if node.op_type == "Attention":
            _drop_equal_sizes(node)
    if options["norms"] == "apart":
        _take_norms_apart(proto.graph)
    save(proto, target)


def _drop_equal_sizes(node: onnx.NodeProto) -> None:
    """Three equal hidden sizes are what an Attention without the attribute takes for granted; with it, quantisers leave
    the node in float."""
    for attribute in list(node.attribute):
        if attribute.name == "qkv_hidden_sizes" and len(set(attribute.ints)) == 1:
            node.attribute.remove(attribute)


def _take_norms_apart(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "SkipLayerNormalization" and not used & set(node.output[1:3]):  # mean and deviation
            nodes += _parts(node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """(x + bias) + skip, normalised. A bias that is added first, quantisers' kernels take in with the product."""
    x, skip, scale, shift, bias = [*node.input, "", ""][:5]
    result = node.output[0]
    total = next(iter(node.output[3:4]), "") or f"{result}.sum"
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-12)
    made = []
    if bias:
        made.append(onnx.helper.make_node("Add", [x, bias], [f"{result}.biased"], name=f"{result}.biased"))
        x = f"{result}.biased"
    made += [
        onnx.helper.make_node("Sum", [x, skip], [total], name=total),
        onnx.helper.make_node(
            "LayerNormalization",
            [x for x in (total, scale, shift) if x],
            [result],
            name=f"{result}.normalised",
            axis=-1,
            epsilon=epsilon,
        ),
    ]
    for part in made:
        part.metadata_props.extend(node.metadata_props)
    return made
