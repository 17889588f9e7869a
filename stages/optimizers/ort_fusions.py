"""onnxscript's rewriter for ONNX Runtime: fuses attention, layer normalisation and GELU of today's transformers.

ONNX Runtime's transformers optimiser looks for the patterns of older exporters, and fuses no attention in a graph
that torch exports today.

How far attention is fused decides what can be quantised afterwards: `whole` makes one Attention of the projections of
Q, K and V and of what follows; `partial` stops at MultiHeadAttention and leaves the projections matrix products.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from registry.onnx_file import save
from stages.techniques import Options
from stages.traits import Traits
from stages.variants import NotApplicable

OPTIONS = {"attention": ("whole", "partial")}

# From opset 23 on, torch exports a native Attention, which these rules leave alone.
NATIVE_ATTENTION = 23


def unfit(graph: Traits, options: Options) -> str:
    """Why there is nothing to fuse."""
    if not graph.softmax:
        return "no attention in this graph (it has no Softmax)"
    if graph.opset >= NATIVE_ATTENTION:
        return f"opset {graph.opset} has a native Attention, which is not fused further"
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
    save(proto, target)


def _drop_equal_sizes(node: onnx.NodeProto) -> None:
    """Three equal hidden sizes are what an Attention without the attribute takes for granted; with it, quantisers leave
    the node in float."""
    for attribute in list(node.attribute):
        if attribute.name == "qkv_hidden_sizes" and len(set(attribute.ints)) == 1:
            node.attribute.remove(attribute)
