"""Imported files: their float64 reference, their spread, and the majority among differing implementations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.ops import _op_list

from onward.stages.config.schema import Tolerance
from onward.stages.exporting import localize_torch
from onward.stages.parity import opinions
from onward.stages.parity.cases import Case
from onward.stages.parity.compare import compare
from onward.stages.parity.opinions import Question, settle
from onward.stages.workers import evaluator, operators
from onward.stages.workers.jitter import jittered_file
from tests.conftest import not_none
from tests.onnx_models import linear

RNG = np.random.default_rng(0)


def model_of(nodes: list[Any], weights: dict[str, Any], x: list[Any], y: list[Any], opset: int = 17) -> onnx.ModelProto:
    """A model of x to y, float32."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normalised(opset: int) -> onnx.ModelProto:
    """A batch normalization with statistics far from those of a batch, and with a momentum."""
    weights = {
        name: RNG.uniform(0.5, 1.5, 4).astype(np.float32) + offset
        for name, offset in (("s", 0), ("b", 0), ("m", np.float32(3)), ("v", np.float32(2)))
    }
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn_1", momentum=0.6)
    return model_of([node], weights, ["batch", 4], ["batch", 4], opset)


def interpolated() -> onnx.ModelProto:
    """F.interpolate(size=64, mode="nearest") of 26 pixels, as the torch exporter writes it."""
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], name="up", mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    return model_of([node], {"sizes": np.array([1, 1, 64])}, [1, 1, 26], [1, 1, 64])


def answers(model: onnx.ModelProto, x: Any) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return {"y": session.run(None, {"x": x})[0]}


def settled(model: onnx.ModelProto, x: Any, folder: Path, outputs: Any = None) -> list[opinions.Dissent]:
    onnx.save(model, folder / "m.onnx")
    question = Question("normal0@b1", {"x": x}, outputs or answers(model, x), {})
    return settle(folder / "m.onnx", [question], 1e-3, 1e-5)


@pytest.mark.parametrize("opset", [9, 11, 13, 15])
def test_batch_normalisation_of_any_opset_is_evaluated_as_onnx_runtime_computes_it(opset: int, tmp_path: Path) -> None:
    model, x = normalised(opset), RNG.standard_normal((5, 4)).astype(np.float32)
    onnx.save(model, tmp_path / "m.onnx")
    truth = evaluator.Wide(evaluator.read(tmp_path / "m.onnx")).run({"x": x})["y"]
    assert truth.dtype == np.float64
    np.testing.assert_allclose(truth, answers(model, x)["y"], rtol=1e-5)


def test_the_majority_finds_the_batch_normalization_of_onnx_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    # Without the PyTorch operator, the node is converted to an opset that the ONNX evaluator computes correctly.
    monkeypatch.delitem(operators.OPERATORS, "BatchNormalization")
    (found,) = settled(normalised(9), x, tmp_path)
    assert found.ruling == "other"
    assert found.words.startswith(
        "ONNX's reference evaluator computes BatchNormalization 'bn_1' (opset 9) differently from ONNX Runtime, ONNX "
        "Runtime at opset 22 and ONNX's reference evaluator at opset 22, which agree"
    )
    assert found.words.endswith("ONNX's reference evaluator is wrong there")


def test_a_wrong_operator_is_outvoted_with_pytorch_as_third_opinion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(operators.OPERATORS, "Relu", lambda node, x: x + 1)
    node = helper.make_node("Relu", ["x"], ["y"], name="r")
    (found,) = settled(model_of([node], {}, [3], [3]), np.ones(3, np.float32), tmp_path)
    assert found.ruling == "other"
    assert (
        "PyTorch computes Relu 'r' (opset 17) differently from ONNX Runtime and ONNX's reference evaluator"
        in found.words
    )


def test_two_implementations_outvote_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators.OPERATORS, "Relu", lambda node, x: x + 2)
    monkeypatch.setattr(_op_list.Relu, "_run", lambda self, x: (x + np.float32(2),))
    nodes = [helper.make_node("Neg", ["x"], ["h"]), helper.make_node("Relu", ["h"], ["y"], name="r")]
    (found,) = settled(model_of(nodes, {}, [3], [3]), np.ones(3, np.float32), tmp_path)
    assert found.ruling == "runtime"
    assert found.words.startswith("ONNX Runtime computes Relu 'r' (opset 17) differently from PyTorch and ONNX's")


def test_without_a_majority_both_implementations_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_op_list.Celu, "_run", lambda self, x, alpha=None: (x + np.float32(1),))
    node = helper.make_node("Celu", ["x"], ["y"], name="c")
    (found,) = settled(model_of([node], {}, [3], [3]), np.ones(3, np.float32), tmp_path)
    assert found.ruling == "open"
    assert found.words.startswith(
        "ONNX Runtime and ONNX's reference evaluator differ at Celu 'c' (opset 17) (by up to 1"
    )


def test_if_all_operators_agree_rounding_is_named_as_the_cause(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="r")
    (found,) = settled(model_of([node], {}, [3], [3]), np.ones(3, np.float32), tmp_path)
    assert found.ruling == "other"
    assert "the graph enlarges rounding" in found.words


def test_wrong_nearest_pixels_of_onnx_runtime_are_located_at_resize(tmp_path: Path) -> None:
    x = np.arange(26, dtype=np.float32).reshape(1, 1, 26)
    wanted = np.floor(np.arange(64) * 26 / 64).astype(np.float32)
    if np.array_equal(answers(interpolated(), x)["y"].ravel(), wanted):
        pytest.skip("this ONNX Runtime picks the right pixels")
    found = settled(interpolated(), x, tmp_path)
    assert found[-1].ruling == "runtime"
    assert "Resize 'up'" in found[-1].words


def test_weights_move_by_one_ulp_and_shape_constants_do_not(tmp_path: Path) -> None:
    weights = {
        "w": np.array([0.1, 2.0, np.inf, -0.3], np.float32),
        "half": np.array([0.5], np.float32),
        "one": np.array([1.0], np.float32),
        "n": np.array([1, 2]),
    }
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["h"]),
        helper.make_node("Concat", ["one", "half"], ["scales"], axis=0),
        helper.make_node("Resize", ["h", "", "scales"], ["r"]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([0.7], np.float32))),
        helper.make_node("Add", ["r", "c"], ["y"]),
    ]
    onnx.save(model_of(nodes, weights, [1, 4], [1, 2]), tmp_path / "m.onnx")
    assert jittered_file(tmp_path / "m.onnx", tmp_path / "j.onnx", 1)
    assert jittered_file(tmp_path / "m.onnx", tmp_path / "again.onnx", 1)
    assert (tmp_path / "j.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    graph = onnx.load(tmp_path / "j.onnx").graph
    moved = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    plain = [0, 1, 3]
    step = np.abs(moved["w"][plain] - weights["w"][plain])
    assert list(step) == [np.spacing(np.float32(0.1)), 0, np.spacing(np.float32(0.3))]
    assert moved["w"][2] == np.inf
    assert all(np.array_equal(moved[name], weights[name]) for name in ("half", "one", "n"))
    constant = numpy_helper.to_array(next(n for n in graph.node if n.op_type == "Constant").attribute[0].t)
    assert abs(constant[0] - np.float32(0.7)) == np.spacing(np.float32(0.7))


def test_a_graph_with_branches_is_converted_to_float64_inside_the_branches(tmp_path: Path) -> None:
    third = np.float32(1) / np.float32(3)

    def branch(name: str, value: Any) -> onnx.GraphProto:
        return helper.make_graph(
            [
                helper.make_node("Constant", [], [f"{name}_c"], value=numpy_helper.from_array(np.asarray(value))),
                helper.make_node("Mul", ["h", f"{name}_c"], [name]),
            ],
            name,
            [],
            [onnx.ValueInfoProto(name=name)],
        )

    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["h"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("t", third), else_branch=branch("e", -third)),
    ]
    onnx.save(model_of(nodes, {"zero": np.float32(0)}, [3], [3]), tmp_path / "m.onnx")
    wide = evaluator.Wide(evaluator.read(tmp_path / "m.onnx"))
    x = np.array([0.1, 0.7, 0.9], np.float32)
    for sign in (np.float32(1), np.float32(-1)):
        got = wide.run({"x": sign * x})["y"]
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, x.astype(np.float64) * np.float64(third), rtol=1e-15)


def test_quantized_random_and_unknown_operators_are_distinguished(tmp_path: Path) -> None:
    weights = {"s": np.float32(0.1), "z": np.uint8(3)}
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    onnx.save(model_of(pair, weights, [3], [3]), tmp_path / "m.onnx")
    assert "QuantizeLinear" in evaluator.why_not_wide(evaluator.read(tmp_path / "m.onnx"))
    noise = model_of([helper.make_node("RandomNormalLike", ["x"], ["y"])], {}, [3], [3])
    unknown = model_of([helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")], {}, [3], [3])
    unknown.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for model, words in ((noise, "draws random numbers"), (unknown, "QuickGelu")):
        with pytest.raises(evaluator.Unsupported, match=words):
            evaluator.Wide(model)


def test_optimizations_are_blamed_only_after_both_levels_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = SimpleNamespace(tolerance=Tolerance())
    case = Case("normal0@b2", 0, {"batch": 2}, {"x": np.ones((2, 4), np.float32)})
    plain = linear(tmp_path / "m.onnx")
    assert "change no output" in localize_torch._by_level(plain, case, settings)
    monkeypatch.setattr(
        localize_torch, "_outputs", lambda plain, case, options: {"y": np.full(3, float(options.graph_level == "all"))}
    )
    assert localize_torch._by_level(plain, case, settings).endswith("y differs: they change the result")


def test_the_spread_explains_the_error_of_a_cancelling_sum(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((8, 64, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    model = model_of([node], {"w": weight}, [1, 64, 60, 60], [1, 8, 58, 58])
    onnx.save(model, tmp_path / "m.onnx")
    x = 1e3 * rng.standard_normal((1, 64, 60, 60)).astype(np.float32)
    y = answers(model, x)["y"]
    truth = evaluator.Wide(evaluator.read(tmp_path / "m.onnx")).run({"x": x})["y"]
    squares = np.zeros(y.shape)
    for seed in range(4):
        jittered_file(tmp_path / "m.onnx", tmp_path / "j.onnx", seed)
        squares += np.square(answers(onnx.load(tmp_path / "j.onnx"), x)["y"].astype(np.float64) - y)
    # Another order of summation, as in another convolution layout: few elements differ, all of them near zero.
    other = sum(answers(model_of([node], {"w": weight[:, part]}, [1, 16, 60, 60], [1, 8, 58, 58]), x[:, part])["y"]
                for part in (slice(0, 16), slice(16, 32), slice(32, 48), slice(48, 64)))  # fmt: skip
    assert 0 < not_none(compare("y", y, other, 1e-5, 1e-5).share_out) < 0.1
    assert compare("y", y, other, 1e-5, 1e-5, truth, np.sqrt(squares / 4)).verdict == "ok"
    wrong = other.copy()
    wrong[0, 0, 0, 0] *= 1.01
    assert compare("y", y, wrong, 1e-5, 1e-5, truth, np.sqrt(squares / 4)).verdict == "out of tolerance"
