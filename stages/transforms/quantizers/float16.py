"""float16 for the whole graph, except its inputs and outputs."""

from __future__ import annotations

from pathlib import Path

from onward.registry.artifact.onnx_file import save
from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, named, no_half, producer_nodes, quiet


def precision(options: Options) -> str:
    """Return the precision of the weights."""
    return "float16"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why half precision makes nothing faster; empty if it may."""
    return no_half(runtimes)


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Convert all nodes except those of the values in `keep`; needs no calibration."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    quiet()
    model = named(source)
    save(convert_float_to_float16(model, keep_io_types=True, node_block_list=producer_nodes(model, keep)), target)
