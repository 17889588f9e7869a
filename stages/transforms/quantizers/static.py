"""Static int8: the scales of weights and activations are fixed in advance, from the calibration set.

By default activations are unsigned, and weights are signed with a scale per channel. Signed activations, the default of
`quantize_static`, make the kernels of x86 CPUs slower than float. `reduce_range` limits weights to 7 bits, so that
kernels cannot saturate on CPUs without VNNI; elsewhere it costs no speed and little accuracy.

`layers: all` also quantises the operators between layers with weights, such as sums and pools, so that values stay int8
from layer to layer. A ResNet became 5 % faster by it, and lost 2 dB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, named, producer_nodes, quiet, too_small

OPTIONS = {
    "layers": ("weighted", "all"),
    "form": ("qdq", "qoperator"),
    "activations": ("uint8", "int8"),
    "calibrate": ("minmax", "entropy", "percentile"),
    "reduce_range": (True, False),
}
ACCURACY_ONLY = ("calibrate", "reduce_range")
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


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Quantise convolutions and matrix products of a pre-processed graph."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Returns the calibration feeds one by one, and again after `rewind`."""

        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Feed | None:
            """Return the next feed; None at the end."""
            return next(self._left, None)

        def rewind(self) -> None:
            """Start again with the first feed."""
            self._left: Iterator[Feed] = iter(calibration)

    quiet()
    model = named(source)
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    quantize_static(
        model,
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ if options["form"] == "qdq" else QuantFormat.QOperator,
        activation_type=QuantType.QUInt8 if options["activations"] == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=bool(options["reduce_range"]),
        calibrate_method=methods[str(options["calibrate"])],
        nodes_to_exclude=producer_nodes(model, keep),
        op_types_to_quantize=list(OPERATORS) if options["layers"] == "weighted" else None,
    )
