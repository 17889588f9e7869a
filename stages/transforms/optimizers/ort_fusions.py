"""onnxscript's rewriter for ONNX Runtime: fuses attention, layer normalisation and GELU in graphs of current exporters.

ONNX Runtime's own transformers optimiser (ort_transformers) matches the patterns of older exporters. It fuses no
attention in a graph of torch's current exporter.

`attention` decides which products can be quantised afterwards. `whole` fuses the projections of Q, K and V into one
Attention node. `partial` stops at MultiHeadAttention, and the projections stay matrix products.

`norms: apart` splits each SkipLayerNormalization again: its CPU kernel computes element by element, which takes three
times as long as a sum and a LayerNormalization. The sum is a Sum node, because a session would fuse an Add again.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile

OPTIONS = {"attention": ("whole", "partial"), "norms": ("apart", "fused")}

# From opset 23 on, torch exports a native Attention, which these rules do not match.
NATIVE_ATTENTION = 23


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why there is nothing to fuse, or why fusing makes nothing faster; empty if it may."""
    if not graph.softmax:
        return "no attention in this graph (it has no Softmax)"
    if graph.opset >= NATIVE_ATTENTION:
        return f"opset {graph.opset} has a native Attention, which is not fused further"
    if options["norms"] == "fused" and set(runtimes) <= {"cpu", "openvino", "openvino-native"}:
        return "on CPUs, SkipLayerNormalization is slower than its parts"
    return ""


def optimize(source: Path, target: Path, options: Options) -> None:
    """Apply the fusion rules.

    Raises:
        NotApplicable: No rule matched.
    """
    import onnx_ir as ir
    from onnxscript.rewriter import ort_fusions
    from onnxscript.rewriter.ort_fusions import _core

    if options["attention"] == "partial":
        # Disables the one rule that fuses the projections. The process runs nothing but optimisers.
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
    """Remove an Attention's hidden sizes if they are equal, the default: quantisers skip nodes that state them."""
    for attribute in list(node.attribute):
        if attribute.name == "qkv_hidden_sizes" and len(set(attribute.ints)) == 1:
            node.attribute.remove(attribute)


def _take_norms_apart(graph: onnx.GraphProto) -> None:
    """Replace each SkipLayerNormalization by its parts."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "SkipLayerNormalization" and not used & set(node.output[1:3]):  # mean, deviation
            nodes += _parts(node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes for (x + bias) + skip and its normalisation. Quantised kernels can fuse a bias that is added first."""
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
