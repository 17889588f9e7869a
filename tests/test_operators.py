"""Operators implemented in PyTorch, compared with ONNX Runtime on small graphs and with themselves in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from onward.stages.workers import operators

RNG = np.random.default_rng(0)


def draws(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def in_onnxruntime(node: onnx.NodeProto, opset: int, inputs: list[Any]) -> list[Any]:
    """Run a single node in ONNX Runtime without optimizations."""
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[Any] = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    return found


IMAGE, LINE = draws(2, 4, 11, 9), draws(2, 4, 13)
NORM = [IMAGE, draws(4), draws(4), draws(4), np.abs(draws(4)) + 0.1]
SEQUENCE = draws(5, 3, 6)


def recurrent(gates: int, directions: int, states: int) -> list[Any]:
    shapes = [(directions, gates * 7, 6), (directions, gates * 7, 7), (directions, 2 * gates * 7)]
    lengths = np.array([5, 2, 4], dtype=np.int32)
    return [SEQUENCE, *(0.3 * draws(*s) for s in shapes), lengths, *(draws(directions, 3, 7) for _ in range(states))]


CASES: list[tuple[str, int, list[Any], dict[str, Any]]] = [
    ("Conv", 11, [IMAGE, draws(6, 2, 3, 3), draws(6)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", 11, [IMAGE, draws(6, 4, 3, 3)], {"dilations": [2, 3], "auto_pad": "VALID"}),
    ("Conv", 11, [IMAGE, draws(6, 4, 4, 2)], {"strides": [1, 2], "auto_pad": "SAME_LOWER"}),
    ("Conv", 11, [LINE, draws(3, 4, 5)], {"auto_pad": "SAME_UPPER", "strides": [3]}),
    ("Conv", 11, [draws(1, 2, 5, 6, 7), draws(3, 2, 2, 2, 2)], {}),
    ("ConvTranspose", 11, [IMAGE, draws(4, 3, 3, 3), draws(3)], {"strides": [2, 3], "pads": [1, 0, 0, 2]}),
    ("ConvTranspose", 11, [IMAGE, draws(4, 3, 3, 3)], {"group": 2, "strides": [2, 2], "output_padding": [1, 0]}),
    ("MatMul", 13, [draws(3, 1, 4, 5), draws(2, 5, 6)], {}),
    ("Gemm", 13, [draws(5, 4), draws(6, 5), draws(1, 6)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    *(("BatchNormalization", opset, NORM, {"epsilon": 1e-3, "momentum": 0.6}) for opset in (9, 11, 13, 14, 15)),
    ("BatchNormalization", 9, [LINE, *NORM[1:]], {}),
    ("InstanceNormalization", 6, NORM[:3], {}),
    ("LayerNormalization", 17, [IMAGE, draws(11, 9), draws(11, 9)], {"axis": 2}),
    ("LayerNormalization", 17, [IMAGE, draws(9)], {"epsilon": 0.1}),
    ("LRN", 13, [IMAGE], {"size": 3, "alpha": 0.1}),
    ("Softmax", 11, [IMAGE], {}),
    ("Softmax", 11, [IMAGE], {"axis": 2}),
    ("Softmax", 13, [IMAGE], {"axis": 1}),
    ("LogSoftmax", 13, [IMAGE], {}),
    ("MaxPool", 12, [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", 12, [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [2, 1]}),
    ("MaxPool", 12, [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", 11, [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", 11, [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", 11, [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", 11, [LINE], {"kernel_shape": [4], "strides": [3], "ceil_mode": 1}),
    ("GlobalAveragePool", 1, [IMAGE], {}),
    ("GlobalMaxPool", 1, [IMAGE], {}),
    ("Einsum", 12, [draws(2, 3, 4), draws(2, 4, 5)], {"equation": "bij, bjk -> bik"}),
    ("Gelu", 20, [IMAGE], {"approximate": "tanh"}),
    ("HardSigmoid", 6, [IMAGE], {"alpha": 0.3}),
    ("Pad", 13, [IMAGE, np.array([0, 0, 1, 2, 0, 0, 3, -1])], {}),
    ("GatherElements", 13, [IMAGE, RNG.integers(-4, 4, (2, 2, 11, 9))], {"axis": 1}),
    ("GatherND", 13, [IMAGE, RNG.integers(-2, 2, (5, 2))], {}),
    ("ScatterND", 16, [IMAGE, np.array([[0, 1], [1, 3]]), draws(2, 11, 9)], {}),
    ("GridSample", 16, [IMAGE, draws(2, 5, 6, 2)], {"mode": "bilinear", "align_corners": 1}),
    ("LSTM", 14, recurrent(4, 2, 2), {"hidden_size": 7, "direction": "bidirectional"}),
    ("LSTM", 14, recurrent(4, 1, 2), {"hidden_size": 7, "direction": "reverse"}),
    ("GRU", 14, recurrent(3, 1, 1), {"hidden_size": 7, "linear_before_reset": 1}),
    ("GRU", 14, recurrent(3, 2, 1), {"hidden_size": 7, "direction": "bidirectional"}),
    ("RNN", 14, recurrent(1, 1, 1), {"hidden_size": 7}),
    *(
        ("Resize", 13, [IMAGE, None, np.array([1, 1, 2, 1.5], np.float32)], {
            "mode": mode, "coordinate_transformation_mode": where,
        })
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "asymmetric", "pytorch_half_pixel")
    ),
    ("Resize", 13, [IMAGE, None, None, np.array([2, 4, 6, 21])], {
        "mode": "linear", "coordinate_transformation_mode": "align_corners",
    }),
]  # fmt: skip
OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


def made(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> onnx.NodeProto:
    names = ["" if value is None else f"i{number}" for number, value in enumerate(inputs)]
    return helper.make_node(operator, names, [f"o{n}" for n in range(OUTPUTS.get(operator, 1))], **attributes)


@pytest.mark.parametrize(
    ("operator", "opset", "inputs", "attributes"), CASES, ids=[f"{c[0]}-{c[1]}-{c[3]}" for c in CASES]
)
def test_an_operator_computes_what_onnx_runtime_does(
    operator: str, opset: int, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    node = made(operator, inputs, attributes)
    wanted, got = in_onnxruntime(node, opset, inputs), operators.apply(node, opset, inputs)
    for one, other in zip(wanted, got, strict=False):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5)
    wide = operators.apply(node, opset, [x.astype(np.float64) if _is_float(x) else x for x in inputs])
    for one, other in zip(got, wide, strict=True):
        assert other.dtype == np.float64
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def _is_float(value: Any) -> bool:
    return value is not None and value.dtype == np.float32


def test_unsupported_operators_are_reported() -> None:
    for operator, inputs, attributes in (
        ("Nonsense", [IMAGE], {}),
        ("MaxPool", [IMAGE.astype(np.int8)], {"kernel_shape": [2, 2]}),
        ("Conv", [draws(2, 4), draws(3, 4)], {}),
    ):
        with pytest.raises(NotImplementedError):
            operators.apply(made(operator, inputs, attributes), 13, inputs)
    training = made("BatchNormalization", NORM, {"training_mode": 1})
    with pytest.raises(NotImplementedError):
        operators.apply(training, 15, NORM)
