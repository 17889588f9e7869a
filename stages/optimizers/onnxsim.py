"""onnxsim: folds constants, infers shapes and removes what is redundant."""

from __future__ import annotations

import sys
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
    """Simplify a graph. Its own check is one run on random inputs; the stage's checks are what counts."""
    # Its training helpers import torch, which takes seconds and which simplifying has no use for.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import onnxsim

    model, same = onnxsim.simplify(onnx.load(source))
    if not same:
        raise NotApplicable("onnxsim's own check found different outputs")
    save(model, target)
