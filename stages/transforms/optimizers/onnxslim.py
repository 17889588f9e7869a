"""onnxslim: folds constants, fuses what is redundant, removes common subexpressions."""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.optimizers import FOLDED


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Why there is nothing to simplify."""
    return FOLDED if graph.folded else ""


def optimize(source: Path, target: Path, options: Options) -> None:
    """Slim a graph."""
    import onnxslim

    model = onnxslim.slim(onnx.load(source))
    if model is None:
        raise NotApplicable("onnxslim gave nothing back")
    save(model, target)
