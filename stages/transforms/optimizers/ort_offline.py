"""ONNX Runtime's own graph optimisations, applied once and saved, so that sessions need not repeat them.

`all` adds memory layouts for the CPU at hand, which other machines may not read: a choice for a graph that is served
where it was made, and never a default.
"""

from __future__ import annotations

from pathlib import Path

from onward.stages.config.techniques import Options
from onward.stages.workers.onnx_worker import OnnxModel

OPTIONS = {"level": ("extended", "basic", "all")}


def optimize(source: Path, target: Path, options: Options) -> None:
    """Let ONNX Runtime write the graph that it would run."""
    OnnxModel().optimize(str(source), str(target), str(options["level"]))
