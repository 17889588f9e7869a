"""onnxslim: folds constants, fuses what is redundant, removes common subexpressions."""

from __future__ import annotations

from pathlib import Path

import onnx

from registry.onnx_file import save
from stages.optimizers import FOLDED
from stages.techniques import Options
from stages.traits import Traits
from stages.variants import NotApplicable


def unfit(graph: Traits, options: Options, runtimes: list[str]) -> str:
    """Why there is nothing to simplify."""
    return FOLDED if graph.folded else ""


def optimize(source: Path, target: Path, options: Options) -> None:
    """Slim a graph."""
    import onnxslim

    model = onnxslim.slim(onnx.load(source))
    if model is None:
        raise NotApplicable("onnxslim gave nothing back")
    save(model, target)
