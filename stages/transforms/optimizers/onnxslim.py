"""onnxslim: folds constants, fuses redundant nodes, removes common subexpressions."""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.optimizers import FOLDED


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why there is nothing to simplify; empty if there may be."""
    return FOLDED if graph.folded else ""


def optimize(source: Path, target: Path, options: Options) -> None:
    """Slim a graph.

    Raises:
        NotApplicable: onnxslim returned no model.
    """
    import onnxslim

    model = onnxslim.slim(onnx.load(source))
    if model is None:
        raise NotApplicable("onnxslim returned no model")
    save(model, target)
