"""ONNX Runtime's own graph optimisations, applied once and saved, so that sessions need not repeat them.

`level: all` adds memory layouts for this machine's CPU, which other machines may not support. It suits graphs that are
served where they were made, and is never the default.
"""

from __future__ import annotations

from pathlib import Path

from onward.stages.config.techniques import Options
from onward.stages.workers.onnx_worker import OnnxModel

OPTIONS = {"level": ("extended", "basic", "all")}


def optimize(source: Path, target: Path, options: Options) -> None:
    """Save the graph that ONNX Runtime would run."""
    OnnxModel().optimize(str(source), str(target), str(options["level"]))
