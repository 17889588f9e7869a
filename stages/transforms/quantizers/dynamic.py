"""Dynamic int8: the file stores int8 weights; activations are quantised at run time, each tensor with its own scale.

Convolutions stay in float: their dynamic form (ConvInteger) is slower than float. Small embedding tables stay in float,
too: an int8 table only makes the file smaller, and the whole table shares one scale. `reduce_range` limits weights to
7 bits, so that sums of products cannot saturate on CPUs without VNNI.

Options that recover accuracy: `smooth` divides the channels of a normalisation's output by their magnitude before they
are rounded, and `weights: mse` clips outliers of weights.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx

from onward.registry.artifact import onnx_file
from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import (
    WORTHWHILE_SHARE,
    Feed,
    finish,
    named,
    producer_nodes,
    quiet,
    too_small,
    unsuitable,
)
from onward.stages.transforms.recovery import weight_ranges

OPTIONS = {
    "scales": ("per_channel", "per_tensor"),
    "weights": ("minmax", "mse"),
    "smooth": (0.0, 0.25, 0.5, 0.75),
    "reduce_range": (False, True),
}
ACCURACY_ONLY = ("weights", "smooth", "reduce_range")
COARSER = {"scales": ("per_tensor", "per_channel")}

# Least share of the weights in an embedding table. For a smaller table, the saved bytes do not justify its error.
TABLE_SHARE = 0.05

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention", "Gather", "EmbedLayerNormalization")


def precision(options: Options) -> str:
    """Return the precision of the weights."""
    return "int8"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why int8 makes nothing faster; empty if it may."""
    share = (graph.products + graph.recurrent) / max(graph.weights, 1)
    if share < WORTHWHILE_SHARE:
        return f"only {share:.0%} of the weights are in matrix products; dynamic convolutions are slower than float"
    return too_small(graph)


def float_steps(options: Options) -> list[str]:
    """Name the steps that change the float graph before it is quantised."""
    return [f"smooth:{options['smooth']}"] if options["smooth"] else []


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Quantise the weights of matrix products to signed int8; needs no calibration."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quiet()
    model = named(source)
    excluded = {*producer_nodes(model, keep), *unsuitable(model), *_small_tables(model.graph)}
    extra: dict[str, Any] = {"MatMulConstBOnly": True, "DefaultTensorType": 1}
    if options.get("weights") == "mse" and options["scales"] == "per_channel":
        bits = 7 if options["reduce_range"] else 8
        extra["TensorQuantOverrides"] = weight_ranges.by_channel(model, ("MatMul", "Gemm"), excluded, bits)
    size = sum(file.stat().st_size for file in onnx_file.files(source))
    quantize_dynamic(
        model,
        str(target),
        per_channel=options["scales"] == "per_channel",
        reduce_range=bool(options["reduce_range"]),
        weight_type=QuantType.QInt8,
        nodes_to_exclude=sorted(excluded),
        op_types_to_quantize=list(OPERATORS),
        use_external_data_format=size > onnx_file.EXTERNAL_DATA_BYTES,
        extra_options=extra,
    )
    finish(target)


def _small_tables(graph: onnx.GraphProto) -> list[str]:
    """Names of the Gather nodes that read a small embedding table."""
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer}
    smallest = TABLE_SHARE * sum(sizes.values())
    return [
        node.name for node in graph.node if node.op_type == "Gather" and sizes.get(node.input[0], smallest) < smallest
    ]
