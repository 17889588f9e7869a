"""ONNX Runtime's transformers optimiser: fuses attention, layer normalisation and GELU in patterns of many exporters.

With `num_heads: 0` and `hidden_size: 0` it reads both from the graph, which works for patterns like BERT's.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile

OPTIONS = {
    "model_type": (
        "bert",
        "bart",
        "clip",
        "conformer",
        "gpt2",
        "gpt_neox",
        "phi",
        "qwen3",
        "swin",
        "t5",
        "tnlr",
        "vit",
    ),
    "num_heads": (0,),
    "hidden_size": (0,),
}

MICROSOFT = "com.microsoft"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why there is nothing to fuse; empty if there may be."""
    return "" if graph.softmax else "no attention in this graph (it has no Softmax)"


def optimize(source: Path, target: Path, options: Options) -> None:
    """Apply the fusion patterns of a model type.

    Raises:
        NotApplicable: No pattern matched.
    """
    import onnxruntime
    from onnxruntime.transformers.optimizer import optimize_model

    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    found = optimize_model(
        str(source),
        model_type=str(options["model_type"]),
        num_heads=int(options["num_heads"]),
        hidden_size=int(options["hidden_size"]),
        opt_level=0,
    )
    if not any(found.get_fused_operator_statistics().values()):
        raise NotApplicable("no fusion matched")
    if not any(entry.domain == MICROSOFT for entry in found.model.opset_import):
        found.model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))  # the optimiser may not declare it
    save(found.model, target)
