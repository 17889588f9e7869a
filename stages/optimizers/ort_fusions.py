"""onnxscript's rewriter for ONNX Runtime: fuses attention, layer normalisation and GELU of today's transformers.

ONNX Runtime's transformers optimiser looks for the patterns of older exporters, and fuses no attention in a graph
that torch exports today.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from registry.onnx_file import save
from stages.variants import NotApplicable

# From opset 23 on, torch exports a native Attention, which these rules leave alone.
NATIVE_ATTENTION = 23


def optimize(source: Path, target: Path) -> None:
    """Fuse what the rules find.

    Raises:
        NotApplicable: there is no softmax to make attention of, or no rule matched.
    """
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    proto = onnx.load(source)
    if not any(node.op_type == "Softmax" for node in proto.graph.node):
        raise NotApplicable("no attention in this graph (it has no Softmax)")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset >= NATIVE_ATTENTION:
        raise NotApplicable(f"opset {opset} has a native Attention, which is not fused further")
    model, fused = optimize_for_ort(ir.from_proto(proto))
    if not any(fused.values()):
        raise NotApplicable("no fusion rule matched")
    save(ir.to_proto(model), target)
