"""Static int8 (QDQ): scales of weights and activations are fixed beforehand, from the calibration set.

Activations are unsigned and weights signed and per channel: with signed activations, which is the default of
`quantize_static`, the CPU kernels are slower than float. `reduce_range` keeps the kernels of CPUs without VNNI from
saturating.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader

from stages.quantizers import Feed, quiet, require_weights

OPERATORS = ("Conv", "MatMul", "Gemm")


class SampleReader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the calibration feeds over one by one, and again after `rewind`."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.rewind()

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left: Iterator[Feed] = iter(self.feeds)


def quantize(source: Path, target: Path, calibration: list[Feed]) -> None:
    """Quantise convolutions and matrix products, after shape inference and BatchNorm folding."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quiet()
    require_weights(source, OPERATORS)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            SampleReader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=list(OPERATORS),
        )
