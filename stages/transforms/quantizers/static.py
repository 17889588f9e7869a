"""Static int8: scales of weights and activations are fixed beforehand, from the calibration set.

By default activations are unsigned and weights signed and per channel: with signed activations, which is the default
of `quantize_static`, the kernels of x86 CPUs are slower than float. `reduce_range` leaves weights 7 bits, which keeps
the kernels of CPUs without VNNI from saturating: it costs nothing in speed and little in accuracy elsewhere.

`layers: all` takes in sums, pools and whatever else lies between the layers with weights, so that values stay int8 from
one to the next: a ResNet gains another twentieth in speed, and loses 2 dB.
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
RANKED_AS = {"form": "qdq"}  # the other form joins layers without a float in between

OPERATORS = ("Conv", "MatMul", "Gemm")


def precision(options: Options) -> str:
    return "int8"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Why int8 cannot pay."""
    if graph.attention:
        return "attention: scales fixed beforehand are slower than dynamic ones here, and further off"
    if graph.recurrent > graph.products + graph.convolutions:
        return "recurrent: there is no static int8 form of it"
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
        """Hands the calibration feeds over one by one, and again after `rewind`."""

        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Feed | None:
            return next(self._left, None)

        def rewind(self) -> None:
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
