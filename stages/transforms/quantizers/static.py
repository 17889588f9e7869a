"""Static int8: the scales of weights and activations are fixed in advance, from the calibration set.

By default activations are unsigned, and weights are signed with a scale per channel. Signed activations, the default of
`quantize_static`, make the kernels of x86 CPUs slower than float. `reduce_range` limits weights to 7 bits, so that
kernels cannot saturate on CPUs without VNNI; elsewhere it costs no speed and little accuracy.

`layers: all` also quantises the operators between layers with weights, such as sums and pools, so that values stay int8
from layer to layer. A ResNet became 5 % faster by it, and lost 2 dB.

Options that recover accuracy at the same speed: `calibrate` chooses the ranges of activations, `clip_weights` those of
weights, `correct_bias` removes the mean error of each layer, `equalize` and `smooth` scale channels of the float graph
(onward/stages/transforms/recovery).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onward.registry.artifact import onnx_file
from onward.stages.config.techniques import Options
from onward.stages.transforms import calibration as ranges
from onward.stages.transforms.builder import NotApplicable
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, finish, named, producer_nodes, quiet, too_small, unsuitable
from onward.stages.transforms.recovery import bias, weight_ranges

OPTIONS = {
    "layers": ("weighted", "all"),
    "form": ("qdq", "qoperator"),
    "activations": ("uint8", "int8", "uint16"),
    "calibrate": ("minmax", "entropy", "percentile", "mse"),
    "clip_weights": (False, True),
    "correct_bias": (False, True),
    "equalize": (False, True),
    "smooth": (0.0, 0.25, 0.5, 0.75),
    "reduce_range": (True, False),
}
ACCURACY_ONLY = ("calibrate", "clip_weights", "correct_bias", "equalize", "smooth", "reduce_range")
COARSER = {"layers": ("all", "weighted")}
PREPARED = True
RANKED_AS = {"form": "qdq"}  # the other form has no float values between layers

OPERATORS = ("Conv", "MatMul", "Gemm")


def precision(options: Options) -> str:
    """Return the precision of the weights."""
    return "int8"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why int8 makes nothing faster; empty if it may."""
    if graph.attention:
        return "attention: static scales are slower and less accurate here than dynamic ones"
    if graph.recurrent > graph.products + graph.convolutions:
        return "recurrent: ONNX Runtime has no static int8 form of these layers"
    return too_small(graph)


def float_steps(options: Options) -> list[str]:
    """Name the steps that change the float graph before it is quantised."""
    steps = ["equalize"] if options["equalize"] else []
    return [*steps, f"smooth:{options['smooth']}"] if options["smooth"] else steps


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Quantise convolutions and matrix products of a pre-processed graph.

    Raises:
        NotApplicable: No layer can be quantised.
    """
    quiet()
    model = named(source)
    if options.get("correct_bias"):
        with tempfile.TemporaryDirectory() as folder:
            rounded = Path(folder) / "rounded.onnx"
            shown = {**options, "form": "qdq", "layers": "weighted"}
            _quantize(model, source, rounded, calibration, keep, shown)
            some = ranges.some_feeds(source, calibration, OPERATORS)
            model = bias.corrected(named(source), onnx.load(rounded), OPERATORS, some)
    _quantize(model, source, target, calibration, keep, options)


def _quantize(
    model: onnx.ModelProto, source: Path, target: Path, feeds: list[Feed], keep: list[str], options: Options
) -> None:
    """Quantise a model with the ranges of `source`, which differs from it in biases at most."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, save_tensors_data

    operators = OPERATORS if options["layers"] == "weighted" else ()
    found = ranges.ranges(source, feeds, str(options["calibrate"]), operators)
    excluded = {*producer_nodes(model, keep), *unsuitable(model)}
    excluded |= {node.name for node in model.graph.node if found.unbounded & {*node.input, *node.output}}
    layers = OPERATORS if operators else (*OPERATORS, "ConvTranspose")
    if not any(node.op_type in layers and node.name not in excluded for node in model.graph.node):
        raise NotApplicable("it has no layer that can be quantised")
    extra: dict[str, Any] = {}
    if options.get("clip_weights"):
        bits = 7 if options["reduce_range"] else 8
        extra["TensorQuantOverrides"] = weight_ranges.by_channel(model, OPERATORS, excluded, bits)
    limits = {name: tuple(np.float32(end) for end in ends) for name, ends in found.known.items()}
    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8, "uint16": QuantType.QUInt16}
    size = sum(file.stat().st_size for file in onnx_file.files(source))
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "ranges.json"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, limits), known)
        quantize_static(
            model,
            str(target),
            calibration_cache_path=known,
            quant_format=QuantFormat.QDQ if options["form"] == "qdq" else QuantFormat.QOperator,
            activation_type=types[str(options["activations"])],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=bool(options["reduce_range"]),
            nodes_to_exclude=sorted(excluded),
            op_types_to_quantize=list(operators) or None,
            use_external_data_format=size > onnx_file.EXTERNAL_DATA_BYTES,
            extra_options=extra,
        )
    finish(target)
