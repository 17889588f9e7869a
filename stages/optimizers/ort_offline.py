"""ONNX Runtime's own graph optimisations, applied once and saved, so that sessions need not repeat them.

Level "extended": what "all" adds are memory layouts for the CPU at hand, which other machines cannot read.
"""

from __future__ import annotations

from pathlib import Path

from stages.runtime.worker import OnnxModel


def optimize(source: Path, target: Path) -> None:
    """Let ONNX Runtime write the graph that it would run."""
    OnnxModel().optimize(str(source), str(target), "extended")
