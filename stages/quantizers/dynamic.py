"""Dynamic int8: weights are int8 in the file, activations are quantised as they come, with a scale of their own.

Convolutions are left in float: their dynamic form (ConvInteger) is slower than no quantisation.
"""

from __future__ import annotations

from pathlib import Path

from stages.quantizers import Feed, quiet, require_weights

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention", "Gather", "EmbedLayerNormalization")
WEIGHTED = ("MatMul", "Gemm", "LSTM", "Attention")


def quantize(source: Path, target: Path, calibration: list[Feed]) -> None:
    """Quantise the weights of matrix products to signed int8, per tensor; needs no calibration."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quiet()
    require_weights(source, WEIGHTED)
    quantize_dynamic(
        str(source),
        str(target),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=list(OPERATORS),
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": 1},
    )
