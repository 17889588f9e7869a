"""onnxoptimizer with the passes of the ONNX export guide: identities out, transposes fused, BatchNorm into Conv."""

from __future__ import annotations

from pathlib import Path

import onnx

from registry.onnx_file import save

PASSES = [
    "eliminate_identity",
    "eliminate_nop_transpose",
    "eliminate_nop_pad",
    "eliminate_unused_initializer",
    "fuse_consecutive_transposes",
    "fuse_transpose_into_gemm",
    "fuse_bn_into_conv",
    "fuse_add_bias_into_conv",
]


def optimize(source: Path, target: Path) -> None:
    """Apply the passes, in order, once."""
    import onnxoptimizer

    save(onnxoptimizer.optimize(onnx.load(source), PASSES), target)
