"""Graphs that ONNX Runtime's quantisers fail on or leave in float: each is normalised, unchanged in its answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.stages.config import techniques
from onward.stages.config.techniques import Option, TechniqueSpec
from onward.stages.transforms import normalize
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.graph_edit import captured, sort_nodes
from onward.stages.transforms.sources import Sources, Unavailable
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import Worker, WorkerFailure

node = helper.make_node
HIDDEN = 32


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def made(
    nodes: list[onnx.NodeProto], shape: list[Any], opset: int = 17, ir: int = 8, **weights: Any
) -> onnx.ModelProto:
    """A graph from x [shape] to y."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if ir < 4:  # as old files have them
        inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in tensors]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def gemm(bias: Any, **factors: Any) -> onnx.ModelProto:
    return made([node("Gemm", ["x", "w", "b"], ["y"], **factors)], [4, 64], w=normal(64, 32), b=bias)


def branch(name: str, nodes: list[onnx.NodeProto], **weights: Any) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], tensors)


def with_if() -> onnx.ModelProto:
    """An If whose bodies read a value that a quantiser may rename, and that is computed after the condition."""
    then = branch("t", [node("MatMul", ["h", "v"], ["t"])], v=normal(32, 32))
    other = branch("e", [node("Relu", ["h"], ["e"])])
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "never"], ["c"]),
        node("Gemm", ["x", "w", "b"], ["h0"]),
        node("Relu", ["h0"], ["h"]),
        node("If", ["c"], ["y0"], then_branch=then, else_branch=other),
        node("MatMul", ["y0", "w2"], ["y"]),
    ]
    weights: dict[str, Any] = {
        "w": normal(64, 32),
        "b": normal(1, 32),
        "never": np.float32(1e9),
        "w2": normal(32, 32, seed=2),
    }
    return made(nodes, ["n", 64], **weights)


def old_file() -> onnx.ModelProto:
    """Opset 9, initializers that are inputs, BatchNormalization with momentum."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        node("BatchNormalization", ["c", "s", "b2", "m", "v"], ["d"], momentum=0.9),
        node("Relu", ["d"], ["e"]),
        node("Flatten", ["e"], ["f"]),
        node("MatMul", ["f", "w2"], ["y"]),
    ]
    vectors: dict[str, Any] = {"b": normal(8), "s": normal(8, seed=1), "b2": normal(8, seed=2), "m": normal(8, seed=3)}
    weights: dict[str, Any] = {
        "w": normal(8, 3, 3, 3),
        **vectors,
        "v": np.abs(normal(8)) + np.float32(0.5),
        "w2": normal(512, 16),
    }
    return made(nodes, [1, 3, 8, 8], opset=9, ir=3, **weights)


def unfolded_lstm() -> onnx.ModelProto:
    """The weights of an LSTM behind nodes, as exporters write them."""
    axis = np.array([0])
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        node("Unsqueeze", ["wi", "ax"], ["W"]),
        node("Unsqueeze", ["wh", "ax"], ["R"]),
        node("Concat", ["bi", "bh"], ["bb"], axis=0),
        node("Unsqueeze", ["bb", "ax"], ["B"]),
        node("LSTM", ["xt", "W", "R", "B"], ["h", "", ""], hidden_size=HIDDEN),
        node("Squeeze", ["h", "ax1"], ["hs"]),
        node("MatMul", ["hs", "w"], ["y"]),
    ]
    gates: dict[str, Any] = {"wi": normal(4 * HIDDEN, 16) / 4, "wh": normal(4 * HIDDEN, HIDDEN) / 4}
    biases: dict[str, Any] = {"bi": normal(4 * HIDDEN) / 4, "bh": normal(4 * HIDDEN, seed=1) / 4}
    return made(nodes, ["n", 5, 16], **gates, **biases, ax=axis, ax1=np.array([1]), w=normal(HIDDEN, 8))


def shared_lstm() -> onnx.ModelProto:
    """Two LSTMs with one recurrent matrix, which the quantiser reshapes in place."""
    nodes = [
        node("LSTM", ["x", "W", "R", "B"], ["h", "", ""], hidden_size=HIDDEN),
        node("Squeeze", ["h", "one"], ["hs"]),
        node("LSTM", ["hs", "W2", "R", "B"], ["h2", "", ""], hidden_size=HIDDEN),
        node("MatMul", ["h2", "w"], ["y"]),
    ]
    weights: dict[str, Any] = {"W": normal(1, 4 * HIDDEN, 16) / 4, "W2": normal(1, 4 * HIDDEN, HIDDEN) / 4}
    recurrent: dict[str, Any] = {"R": normal(1, 4 * HIDDEN, HIDDEN) / 4, "B": normal(1, 8 * HIDDEN) / 4}
    return made(nodes, [5, 2, 16], **weights, **recurrent, one=np.array([1]), w=normal(HIDDEN, 8))


def tied() -> onnx.ModelProto:
    """An embedding table that is also the matrix of the last product."""
    nodes = [
        node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        node("Gather", ["table", "ids"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Transpose", ["table"], ["tt"], perm=[1, 0]),
        node("MatMul", ["r", "tt"], ["y"]),
    ]
    return made(nodes, [4], table=normal(100, 64))


def behind_nodes() -> onnx.ModelProto:
    nodes = [
        node("Constant", [], ["w0"], value=numpy_helper.from_array(normal(32 * 64))),
        node("Constant", [], ["shape"], value_ints=[32, 64]),
        node("Reshape", ["w0", "shape"], ["w1"]),
        node("Transpose", ["w1"], ["w2"], perm=[1, 0]),
        node("Identity", ["w2"], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    return made(nodes, ["n", 64])


def shared_convolution() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w", "b"], ["y"], pads=[1] * 4),
    ]
    return made(nodes, ["n", 8, 8, 8], w=normal(8, 8, 3, 3), b=10 * normal(8))


CLASH = made(
    [node("MatMul", ["x", "w"], ["h"]), node("Mul", ["h", "w_scale"], ["y"])],
    ["n", 64],
    w=normal(64, 32),
    w_scale=normal(32),
)
EMPTY = made([node("Conv", ["x", "w", ""], ["y"], pads=[1] * 4)], ["n", 8, 8, 8], w=normal(8, 8, 3, 3))
# Graph, shape of x, words of the change, and an int8 operator that each quantiser must give.
GRAPHS: dict[str, tuple[onnx.ModelProto, tuple[int, ...], str, dict[str, tuple[str, int]]]] = {
    "row": (gemm(normal(1, 32)), (4, 64), "Gemm", {"qdq": ("QuantizeLinear", 2), "qoperator": ("QGemm", 1)}),
    "scalar": (gemm(np.float32(3)), (4, 64), "Gemm", {"qdq": ("QuantizeLinear", 2), "qoperator": ("QGemm", 1)}),
    "rows": (gemm(normal(4, 1)), (4, 64), "Gemm", {"qdq": ("QuantizeLinear", 2), "qoperator": ("QGemm", 1)}),
    "factors": (gemm(normal(32), alpha=0.5, beta=2.0), (4, 64), "Gemm", {"dynamic": ("MatMulInteger", 1)}),
    "opset 9": (old_file(), (1, 3, 8, 8), "opset 9 raised to 13", {"qdq": ("QuantizeLinear", 4)}),
    "if": (with_if(), (4, 64), "visible", {"qdq": ("QuantizeLinear", 4), "qoperator": ("QGemm", 1)}),
    "lstm": (unfolded_lstm(), (2, 5, 16), "folded", {"dynamic": ("DynamicQuantizeLSTM", 1)}),
    "shared": (shared_lstm(), (5, 2, 16), "copies", {"dynamic": ("DynamicQuantizeLSTM", 2)}),
    "tied": (tied(), (4,), "folded", {"dynamic": ("MatMulInteger", 1)}),
    "behind nodes": (behind_nodes(), (4, 64), "stored", {"dynamic": ("MatMulInteger", 1)}),
    "shared convolution": (shared_convolution(), (2, 8, 8, 8), "copies", {"qoperator": ("QLinearConv", 2)}),
    "clash": (CLASH, (4, 64), "renamed", {"dynamic": ("MatMulInteger", 1), "qdq": ("QuantizeLinear", 2)}),
    "empty": (EMPTY, (2, 8, 8, 8), "empty inputs", {"qoperator": ("QLinearConv", 1)}),
}
FORMS = {"qdq": {"static": {}}, "qoperator": {"static": {"form": "qoperator"}}, "dynamic": {"dynamic": {}}}


def given(shape: tuple[int, ...]) -> Feed:
    return {"x": np.array([1, 5, 7, 20], np.float32) if shape == (4,) else normal(*shape, seed=9)}


def run(path: Path, feed: Feed) -> npt.NDArray[Any]:
    with Worker.onnx(path, path.name) as worker:
        return worker.run(feed)["y"]


def quantized(source: Path, target: Path, form: str, feed: Feed) -> None:
    """Quantise as the stage does: normalised, prepared if the technique asks for it, in a process of its own."""
    candidate = TechniqueSpec.model_validate(FORMS[form])
    module, options = techniques.module("quantize", candidate), techniques.complete("quantize", candidate)
    path = Sources(source.parent, [feed, feed], 60).of(f"{source.stem}-{form}", source, module, options)
    isolated_call.call(60, module.quantize, path, target, [feed, feed], [], options)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_quantized_after_it_is_normalized(tmp_path: Path, name: str) -> None:
    model, shape, words, wanted = GRAPHS[name]
    source, feed = tmp_path / "float.onnx", given(shape)
    onnx.save(model, source)
    expected = run(source, feed)
    changes = isolated_call.call(60, normalize.normalize, source, tmp_path / "normal.onnx", [feed])
    assert words in "; ".join(changes)
    np.testing.assert_allclose(run(tmp_path / "normal.onnx", feed), expected, rtol=1e-4, atol=1e-4)
    for form, (operator, count) in wanted.items():
        quantized(source, tmp_path / f"{form}.onnx", form, feed)
        operators = Counter(one.op_type for one in onnx.load(tmp_path / f"{form}.onnx").graph.node)
        assert operators[operator] >= count, (form, operators)
        noise = np.square(run(tmp_path / f"{form}.onnx", feed) - expected).sum() / np.square(expected).sum()
        assert 10 * np.log10(1 / noise) > 28, form


UNSUITABLE = {
    "batched matrix": (made([node("MatMul", ["x", "w"], ["y"])], [2, 3, 4, 64], w=normal(3, 64, 32)), (2, 3, 4, 64)),
    "vector": (made([node("MatMul", ["x", "w"], ["y"])], [2, 8, 64], w=normal(64)), (2, 8, 64)),
    "computed bias": (
        made(
            [node("ReduceMean", ["x"], ["b"], axes=[0, 2, 3], keepdims=0), node("Conv", ["x", "w", "b"], ["y"])],
            [2, 8, 8, 8],
            w=normal(8, 8, 3, 3),
        ),
        (2, 8, 8, 8),
    ),
    "huge range": (
        made(
            [node("Add", ["x", "mask"], ["m"]), node("Relu", ["m"], ["r"]), node("MatMul", ["x", "w"], ["h"]),
             node("Add", ["h", "mask2"], ["y0"]), node("MatMul", ["y0", "w2"], ["y1"]), node("Tanh", ["y1"], ["y"])],
            [4, 64],
            mask=np.array([-3.4e38] + [0] * 63, np.float32),
            mask2=np.array([-3.4e38] + [0] * 31, np.float32),
            w=normal(64, 32),
            w2=normal(32, 8),
        ),
        (4, 64),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", UNSUITABLE)
def test_layers_that_a_quantizer_cannot_handle_stay_float(tmp_path: Path, name: str, form: str) -> None:
    model, shape = UNSUITABLE[name]
    source, target, feed = tmp_path / "float.onnx", tmp_path / "int8.onnx", given(shape)
    onnx.save(model, source)
    failure = ""
    try:
        quantized(source, target, form, feed)
    except WorkerFailure as error:
        failure = str(error)
    if failure:
        assert "NotApplicable: it has no layer that can be quantised" in failure
    else:
        np.testing.assert_allclose(run(target, feed), run(source, feed), rtol=0.1, atol=0.5)


def test_a_rewrite_that_changes_the_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def double(model: onnx.ModelProto) -> str:
        (weight,) = model.graph.initializer
        weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
        return "doubled"

    monkeypatch.setattr(normalize, "_store_constants", double)
    source = tmp_path / "float.onnx"
    onnx.save(made([node("MatMul", ["x", "w"], ["y"])], [4, 64], w=normal(64, 8)), source)
    sources = Sources(tmp_path, [given((4, 64))], 60)
    assert sources.normalized("base", source) == source
    assert "could not be normalised: NotTheSame: the rewritten graph computes another y" in sources.notes["base"]


def test_a_plain_graph_is_used_as_it_is(tmp_path: Path) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(made([node("MatMul", ["x", "w"], ["y"])], [4, 64], w=normal(64, 8)), source)
    sources = Sources(tmp_path, [given((4, 64))], 60)
    assert sources.normalized("base", source) == source
    assert sources.notes == {}


def test_a_step_with_nothing_to_do_says_so(tmp_path: Path) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(made([node("MatMul", ["x", "w"], ["y"])], [4, 64], w=normal(64, 8)), source)
    candidate = TechniqueSpec.model_validate({"static": {"equalize": True}})
    module, options = techniques.module("quantize", candidate), techniques.complete("quantize", candidate)
    with pytest.raises(Unavailable, match="there is nothing to equalise"):
        Sources(tmp_path, [given((4, 64))], 60).of("base", source, module, options)


def test_large_constants_are_not_expanded(tmp_path: Path) -> None:
    nodes = [
        node("ConstantOfShape", ["sizes"], ["big"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("Mul", ["x", "big"], ["y"]),
    ]
    model, _ = isolated_call.call(60, normalize.rewrite, made(nodes, [1000, 1000], sizes=np.array([1000, 1000])))
    assert [one.op_type for one in model.graph.node] == ["ConstantOfShape", "Mul"]


def test_nodes_are_sorted_behind_what_their_bodies_read() -> None:
    graph = with_if().graph
    nodes = [onnx.NodeProto.FromString(one.SerializeToString()) for one in graph.node]
    del graph.node[:]
    graph.node.extend([nodes[0], nodes[1], nodes[4], nodes[5], nodes[2], nodes[3]])
    assert captured(graph) == {"h"}
    assert sort_nodes(graph)
    assert [one.op_type for one in graph.node] == ["ReduceSum", "Greater", "Gemm", "Relu", "If", "MatMul"]
    assert not sort_nodes(graph)


def test_external_weights_are_normalized_and_quantized(tmp_path: Path) -> None:
    source, feed = tmp_path / "float.onnx", given((4, 64))
    onnx.save(gemm(normal(1, 32)), source, save_as_external_data=True, location="weights", size_threshold=0)
    expected = run(source, feed)
    quantized(source, tmp_path / "int8.onnx", "qdq", feed)
    assert np.abs(run(tmp_path / "int8.onnx", feed) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("value", [True, 0.5, "mse"])
def test_options_of_every_type_are_accepted(value: Option) -> None:
    name = {bool: "correct_bias", float: "smooth", str: "weights"}[type(value)]
    candidate = TechniqueSpec.model_validate({"static": {name: value}})
    assert list(techniques.problems("quantize", [candidate])) == []
    assert techniques.complete("quantize", candidate)[name] == value
