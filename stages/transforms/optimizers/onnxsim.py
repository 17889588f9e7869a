"""onnxsim: folds constants, infers shapes and removes redundant nodes."""

from __future__ import annotations

import sys
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
    """Simplify a graph.

    Raises:
        NotApplicable: onnxsim's own check, one run on random inputs, found different outputs.
    """
    # onnxsim's training helpers import torch, which takes seconds. Simplifying does not need them.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import onnxsim

    model, same = onnxsim.simplify(onnx.load(source))
    if not same:
        raise NotApplicable("onnxsim's own check found different outputs")
    save(model, target)
