"""onnxscript's optimiser: folds constants, inlines functions, removes redundant nodes.

torch's exporter already applies it to its own exports. Graphs from other sources may gain.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.optimizers import FOLDED


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why there is nothing to fold; empty if there may be."""
    return FOLDED if graph.folded else ""


def optimize(source: Path, target: Path, options: Options) -> None:
    """Optimise a graph until it no longer changes."""
    import onnx_ir as ir
    from onnxscript.optimizer import optimize as fold

    model = ir.from_proto(onnx.load(source))
    fold(model)
    save(ir.to_proto(model), target)
