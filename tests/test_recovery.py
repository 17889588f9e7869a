"""What recovers the accuracy of int8: float graphs stay the same, and each method repairs the fault it is made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.evidence.records import LayerCost
from onward.stages.config import techniques
from onward.stages.config.techniques import TechniqueSpec
from onward.stages.transforms import calibration
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.recovery import weight_ranges
from onward.stages.transforms.recovery.equalize import equalize
from onward.stages.transforms.recovery.smooth import smooth
from onward.stages.transforms.sensitivity import heads_first
from onward.stages.transforms.sources import Sources
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import Worker

node = helper.make_node
Floats = npt.NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def made(nodes: list[onnx.NodeProto], shape: list[Any], **weights: Any) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [result], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def unequal_channels() -> onnx.ModelProto:
    """Channels of very different size between convolutions, one of them depthwise, and before a Gemm."""
    size = np.exp2(np.random.default_rng(0).integers(-4, 4, 16)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4, group=16),
        node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    weights = {"w1": normal(16, 3, 3, 3) * size[:, None, None, None], "b1": normal(16) * size}
    weights |= {"w2": normal(16, 1, 3, 3), "b2": normal(16, seed=1) * size}
    columns = np.repeat(1 / size, 4)
    return made(nodes, ["n", 3, 8, 8], **weights, w3=normal(10, 64) * columns, b3=normal(10))


def outlier_channels() -> onnx.ModelProto:
    """A normalisation with three large channels; the second one also feeds a residual."""
    scale = np.ones(64, np.float32)
    scale[[3, 17, 40]] = 80
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["l"], axis=-1),
        node("MatMul", ["l", "w1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "w2"], ["z"]),
        node("LayerNormalization", ["z", "g", "b"], ["l2"], axis=-1),
        node("MatMul", ["l2", "w3"], ["o"]),
        node("Add", ["o", "l2"], ["y"]),
    ]
    weights = {"w1": normal(64, 128), "w2": normal(128, 64), "w3": normal(64, 64)}
    return made(nodes, ["n", 64], g=scale, b=normal(64), **weights)


def decomposed_norm() -> onnx.ModelProto:
    """A normalisation that ends with a Mul and an Add of vectors, as converters before opset 17 write it."""
    scale = np.ones(64, np.float32)
    scale[5] = 100
    nodes = [
        node("Tanh", ["x"], ["t"]),
        node("Mul", ["t", "g"], ["m"]),
        node("Add", ["m", "b"], ["l"]),
        node("Gemm", ["l", "w"], ["y"], transB=1),
    ]
    return made(nodes, ["n", 64], g=scale, b=normal(64), w=normal(32, 64))


def shifted() -> onnx.ModelProto:
    """Inputs that are always positive: the error of rounded weights does not average out."""
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        node("MatMul", ["s", "w1"], ["h"]),
        node("Add", ["h", "b1"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "w2"], ["y"]),
    ]
    w1, w2 = normal(256, 64), normal(64, 16)
    w1[0], w2[0] = 60, 60  # outliers that leave the other weights few steps
    return made(nodes, ["n", 256], w1=w1, b1=normal(64), w2=w2)


def outlier_weights() -> onnx.ModelProto:
    """One large weight among many, so that 7 bits leave the others few steps."""
    weights = normal(32768, 4)
    weights[7] = 11
    return made([node("MatMul", ["x", "w"], ["y"])], ["n", 32768], w=weights)


def one_product() -> onnx.ModelProto:
    return made([node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])], ["n", 64], w=normal(64, 64))


def answers(path: Path, x: Floats) -> Floats:
    with Worker.onnx(path, path.name) as worker:
        return worker.run({"x": x})["y"]


def feeds(*shape: int) -> list[Feed]:
    return [{"x": normal(*shape, seed=seed)} for seed in range(1, 5)]


def snr_db(path: Path, expected: Floats, x: Floats) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(answers(path, x) - expected).sum()))


@pytest.mark.parametrize(
    ("model", "step", "words"),
    [
        (unequal_channels(), "equalize", "2 pairs of layers equalised"),
        (outlier_channels(), "smooth", "activations smoothed: 1 in a normalisation, 1 by a Mul"),
        (decomposed_norm(), "smooth", "activations smoothed: 1 in a normalisation, 0 by a Mul"),
    ],
)
def test_a_float_graph_computes_the_same_after_its_channels_are_scaled(
    tmp_path: Path, model: onnx.ModelProto, step: str, words: str
) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "scaled.onnx"
    onnx.save(model, source)
    shape = [dim.dim_value or 8 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if step == "equalize":
        changes = isolated_call.call(60, equalize, source, target)
    else:
        changes = isolated_call.call(60, smooth, source, target, feeds(*shape), 0.5)
    assert changes == [words]
    x = normal(*shape, seed=9)
    expected = answers(source, x)
    np.testing.assert_allclose(answers(target, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (source, target)
    )
    assert any(name not in before or not np.array_equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize(
    ("model", "candidate", "gain_db"),
    [
        (unequal_channels(), {"static": {"equalize": True}}, 6),
        (outlier_channels(), {"dynamic": {"smooth": 0.5}}, 6),
        (shifted(), {"static": {"correct_bias": True}}, 4),
        (shifted(), {"static": {"form": "qoperator", "correct_bias": True}}, 4),
        (outlier_weights(), {"dynamic": {"weights": "mse", "reduce_range": True}}, 1),
        (outlier_weights(), {"static": {"weights": "mse"}}, 1),
        (one_product(), {"static": {"activations": "uint16"}}, 1.5),
    ],
)
def test_each_method_repairs_the_fault_that_it_is_made_for(
    tmp_path: Path, model: onnx.ModelProto, candidate: dict[str, dict[str, Any]], gain_db: float
) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(model, source)
    shape = [dim.dim_value or 32 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    samples, x = feeds(*shape), normal(*shape, seed=9)
    expected, sources, found = answers(source, x), Sources(tmp_path, samples, 60), []
    ((name, options),) = candidate.items()
    kept = ("form", "reduce_range")
    for chosen in ({key: value for key, value in options.items() if key in kept}, options):
        spec = TechniqueSpec.model_validate({name: chosen})
        module, complete = techniques.module("quantize", spec), techniques.complete("quantize", spec)
        path = sources.of("base", source, module, complete)
        isolated_call.call(60, module.quantize, path, tmp_path / "int8.onnx", samples, [], complete)
        found.append(snr_db(tmp_path / "int8.onnx", expected, x))
    assert found[1] >= found[0] + gain_db, found


@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_a_rare_outlier_among_the_samples_costs_less_if_it_is_clipped(tmp_path: Path, method: str) -> None:
    source, samples = tmp_path / "float.onnx", feeds(4096, 64)
    onnx.save(one_product(), source)
    samples[0]["x"][0, 0] = 20
    x = normal(64, 64, seed=9)
    found = []
    for calibrate in ("minmax", method):
        spec = TechniqueSpec.model_validate({"static": {"calibrate": calibrate, "reduce_range": False}})
        module, options = techniques.module("quantize", spec), techniques.complete("quantize", spec)
        isolated_call.call(60, module.quantize, source, tmp_path / "int8.onnx", samples, [], options)
        found.append(snr_db(tmp_path / "int8.onnx", answers(source, x), x))
    assert found[1] >= found[0] + 2, found


def test_a_layer_whose_output_something_else_reads_is_not_equalized(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w1"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w2"], ["d"]),
        node("Add", ["d", "r"], ["y"]),
    ]
    source = tmp_path / "float.onnx"
    onnx.save(made(nodes, ["n", 4, 4, 4], w1=normal(4, 4, 1, 1) * 9, w2=normal(4, 4, 1, 1)), source)
    assert isolated_call.call(60, equalize, source, tmp_path / "scaled.onnx") == []


def test_a_clipped_activation_is_not_equalized(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w1"], ["c"]),
        node("Clip", ["c", "low", "high"], ["r"]),
        node("Conv", ["r", "w2"], ["y"]),
    ]
    ends = {"low": np.float32(0), "high": np.float32(6)}
    source = tmp_path / "float.onnx"
    onnx.save(made(nodes, ["n", 4, 4, 4], w1=normal(4, 4, 1, 1) * 9, w2=normal(4, 4, 1, 1), **ends), source)
    assert isolated_call.call(60, equalize, source, tmp_path / "scaled.onnx") == []


def test_the_range_of_least_error_clips_outliers_and_no_others() -> None:
    rows = normal(2, 4096)
    rows[1, 0] = 12
    limits = weight_ranges.least_error(rows, bits=5)
    assert 0.6 * np.abs(rows[0]).max() < limits[0] <= np.abs(rows[0]).max()
    assert 3 < limits[1] < 7


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_ranges_clip_a_rare_outlier(tmp_path: Path, method: str) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(made([node("MatMul", ["x", "w"], ["y"])], ["n", 64], w=normal(64, 8)), source)
    samples = [{"x": normal(4096, 64, seed=seed)} for seed in range(2)]
    samples[0]["x"][0, 0] = 1000
    widest = isolated_call.call(60, calibration.ranges, source, samples, "minmax").known["x"]
    low, high = isolated_call.call(60, calibration.ranges, source, samples, method).known["x"]
    assert widest[1] == 1000
    assert widest[0] <= low < -1
    assert 1 < high < 900


def test_activations_are_read_in_groups_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Relu", ["x" if i == 0 else f"h{i - 1}"], [f"h{i}"]) for i in range(6)]
    model = made([*nodes, node("Relu", ["h5"], ["y"])], ["n", 64])
    together: list[int] = []

    class Session:
        def run(self, wanted: list[str], feed: Feed) -> list[Floats]:
            together.append(len(wanted))
            return [np.asarray(feed["x"]) for _ in wanted]

    monkeypatch.setattr(calibration, "_extended", lambda *_: Session())
    monkeypatch.setattr(calibration, "GROUP_BYTES", 3 * 4 * 64 * 8)
    names = [f"h{i}" for i in range(6)]
    found = list(calibration.each_value(model, str(tmp_path), names, feeds(8, 64), dict.fromkeys(names, 64 * 8)))
    assert len(found) == 6 * 4
    assert set(together) == {3}


def test_infinite_and_empty_activations_are_reported(tmp_path: Path) -> None:
    nodes = [node("Log", ["x"], ["l"]), node("Exp", ["l"], ["e"]), node("Relu", ["x"], ["y"])]
    source = tmp_path / "float.onnx"
    onnx.save(made(nodes, ["n", 4]), source)
    found = isolated_call.call(60, calibration.ranges, source, [{"x": np.zeros((2, 4), np.float32)}], "minmax")
    assert found.unbounded == {"l"}
    assert found.known["y"] == (0.0, 0.0)


def test_the_last_layer_before_values_stays_float_first() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["trunk"]),
        node("Conv", ["trunk", "w"], ["box_conv"]),
        node("Reshape", ["box_conv", "s"], ["boxes"]),
        node("Conv", ["trunk", "w"], ["score_conv"]),
        node("Softmax", ["score_conv"], ["scores"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    layers = [
        LayerCost(value=value, operator="Conv", snr_db=decibels)
        for value, decibels in (("trunk", 10.0), ("score_conv", 20.0), ("box_conv", 30.0))
    ]
    assert [layer.value for layer in heads_first(layers, graph, ["boxes"])] == ["box_conv", "trunk", "score_conv"]
    assert heads_first(layers, graph, []) == layers
