"""onnxoptimizer: removes identities, fuses transposes, folds BatchNorm into Conv.

`passes: guide` applies the eight passes in GUIDE, `passes: all` every fusion and elimination pass.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options

OPTIONS = {"passes": ("guide", "all")}

GUIDE = [
    "eliminate_identity",
    "eliminate_nop_transpose",
    "eliminate_nop_pad",
    "eliminate_unused_initializer",
    "fuse_consecutive_transposes",
    "fuse_transpose_into_gemm",
    "fuse_bn_into_conv",
    "fuse_add_bias_into_conv",
]


def optimize(source: Path, target: Path, options: Options) -> None:
    """Apply each pass once, in order."""
    import onnxoptimizer

    passes = GUIDE if options["passes"] == "guide" else onnxoptimizer.get_fuse_and_elimination_passes()
    save(onnxoptimizer.optimize(onnx.load(source), passes), target)
