"""Faults for correct models: each function takes the path of an .onnx file and modifies it in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Change = Callable[[Any], None]
MUTATIONS: dict[str, tuple[str, Callable[[Path], None]]] = {}


def spoils(base: str, label: str) -> Callable[[Change], Change]:
    """Register a change to the graph of `base`, or to its file if the parameter is annotated with Path."""

    def register(change: Change) -> Change:
        def on_file(path: Path) -> None:
            model = onnx.load(path)
            change(model)
            path.write_bytes(model.SerializeToString())

        MUTATIONS[label] = (base, change if change.__annotations__.get("path") == "Path" else on_file)
        return change

    return register


def nodes(graph: GraphProto, *kinds: str) -> list[NodeProto]:
    found = [node for node in graph.node if node.op_type in kinds]
    assert found, f"no {kinds} among {[node.op_type for node in graph.node]}"
    return found


def attribute(node: NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def get(node: NodeProto, name: str) -> AttributeProto:
    found: AttributeProto = next(a for a in node.attribute if a.name == name)
    return found


def edit(model: ModelProto, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """Replace a constant by the result of `change`."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(
                numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy())), name)
            )
            return
    for node in model.graph.node:
        if name in node.output and node.op_type == "Constant":
            array = change(numpy_helper.to_array(get(node, "value").t).copy())
            get(node, "value").t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array)))
            return
    raise AssertionError(f"{name} is no constant")


def nudged(array: np.ndarray) -> np.ndarray:
    array.flat[0] += 0.01
    return array


def weights(model: ModelProto, rank: int = 2) -> list[str]:
    return [t.name for t in model.graph.initializer if len(t.dims) == rank and t.data_type == TensorProto.FLOAT]


@spoils("mlp", "a weight changed by 0.01")
def _(model: ModelProto) -> None:
    edit(model, weights(model)[0], nudged)


@spoils("conv", "a kernel changed by 0.01")
def _(model: ModelProto) -> None:
    edit(model, weights(model, 4)[0], nudged)


@spoils("lstm", "an embedding row changed by 0.01")
def _(model: ModelProto) -> None:
    table = next(t for t in model.graph.initializer if tuple(t.dims) == (50, 8))
    edit(model, table.name, lambda a: a + 0.01 * (np.arange(50) == 49)[:, None])


@spoils("mlp", "a bias lost")
def _(model: ModelProto) -> None:
    edit(model, nodes(model.graph, "Gemm")[-1].input[2], np.zeros_like)


@spoils("mlp", "weights rounded to bfloat16")
def _(model: ModelProto) -> None:
    for name in weights(model):
        edit(model, name, lambda a: (a.view(np.uint32) & 0xFFFF0000).view(np.float32))


@spoils("mlp", "a weight that is NaN")
def _(model: ModelProto) -> None:
    edit(
        model, weights(model)[0], lambda a: np.where(np.arange(a.size).reshape(a.shape) == 3, np.nan, a).astype(a.dtype)
    )


@spoils("mlp", "weights of a layer transposed")
def _(model: ModelProto) -> None:
    square = next(t.name for t in model.graph.initializer if tuple(t.dims) == (16, 16))
    edit(model, square, np.transpose)


@spoils("mlp", "Relu swapped for Abs")
def _(model: ModelProto) -> None:
    nodes(model.graph, "Relu")[0].op_type = "Abs"


@spoils("mlp", "Sigmoid swapped for HardSigmoid")
def _(model: ModelProto) -> None:
    nodes(model.graph, "Sigmoid")[0].op_type = "HardSigmoid"


@spoils("mlp", "an unknown operator")
def _(model: ModelProto) -> None:
    nodes(model.graph, "Relu")[0].op_type = "Relux"


@spoils("attention", "Add swapped for Sub")
def _(model: ModelProto) -> None:
    nodes(model.graph, "Add")[-1].op_type = "Sub"


@spoils("attention", "the softmax's axis off by one")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "Softmax")[0], "axis", -2)


@spoils("attention", "the mask lost")
def _(model: ModelProto) -> None:
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == "mask":
                model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.int64), "no_mask"))
                node.input[position] = "no_mask"


@spoils("attention", "the scale of the scores lost")
def _(model: ModelProto) -> None:
    for node in nodes(model.graph, "Div", "Mul"):
        for name in node.input:
            known = [t for t in model.graph.initializer if t.name == name and not t.dims]
            if known and numpy_helper.to_array(known[0]) == 2.0:
                edit(model, name, np.ones_like)
                return
    raise AssertionError("no scale")


@spoils("attention", "the norm's epsilon of another framework")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "LayerNormalization")[0], "epsilon", 1e-2)


@spoils("causal", "the causal mask lost")
def _(model: ModelProto) -> None:
    softmax = nodes(model.graph, "Softmax")[0]
    add = next(n for n in model.graph.node if softmax.input[0] in n.output)
    assert add.op_type == "Add"
    softmax.input[0] = add.input[0]


@spoils("feedforward", "GELU by tanh in place of the exact one")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "Gelu")[0], "approximate", "tanh")


@spoils("conv", "a stale BatchNorm statistic")
def _(model: ModelProto) -> None:
    # torch folds BatchNorm into the convolution: a stale mean is a shifted bias.
    edit(model, nodes(model.graph, "Conv")[0].input[2], lambda a: a + np.float32(0.05))


@spoils("residual", "BatchNorm in training mode")
def _(model: ModelProto) -> None:
    conv = nodes(model.graph, "Conv")[0]
    for name, value in (("s", 1.0), ("b", 0.0), ("m", 0.0), ("v", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(3, value, np.float32), name))
    made = helper.make_node(
        "BatchNormalization", ["raw", "s", "b", "m", "v"], [conv.output[0], "rm", "rv"], training_mode=1
    )
    conv.output[0] = "raw"
    model.graph.node.insert(list(model.graph.node).index(conv) + 1, made)


@spoils("mlp", "Dropout in training mode")
def _(model: ModelProto) -> None:
    relu = nodes(model.graph, "Relu")[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "ratio"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))
    made = helper.make_node("Dropout", ["raw", "ratio", "on"], [relu.output[0]])
    relu.output[0] = "raw"
    model.graph.node.insert(list(model.graph.node).index(relu) + 1, made)


@spoils("mlp", "noise")
def _(model: ModelProto) -> None:
    relu = nodes(model.graph, "Relu")[0]
    at = list(model.graph.node).index(relu)
    kept, relu.output[0] = relu.output[0], "raw"
    model.graph.node.insert(at + 1, helper.make_node("RandomNormalLike", ["raw"], ["noise"], scale=0.01))
    model.graph.node.insert(at + 2, helper.make_node("Add", ["raw", "noise"], [kept]))


@spoils("depthwise", "padding on one side")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "Conv")[0], "pads", [0, 0, 2, 2])


@spoils("depthwise", "ReLU6 clipped at 5")
def _(model: ModelProto) -> None:
    edit(model, nodes(model.graph, "Clip")[0].input[2], lambda a: a - 1)


@spoils("residual", "a dilation lost")
def _(model: ModelProto) -> None:
    conv = nodes(model.graph, "Conv")[0]
    attribute(conv, "dilations", [1, 1])
    attribute(conv, "pads", [1, 1, 1, 1])


@spoils("residual", "the mean over one axis less")
def _(model: ModelProto) -> None:
    reduce = nodes(model.graph, "ReduceMean")[0]
    edit(model, reduce.input[1], lambda a: a[:1])


@spoils("conv", "the average in place of the maximum")
def _(model: ModelProto) -> None:
    pool = nodes(model.graph, "MaxPool")[0]
    pool.op_type = "AveragePool"
    kept = [a for a in pool.attribute if a.name in ("kernel_shape", "strides", "pads")]
    del pool.attribute[:]
    pool.attribute.extend(kept)


@spoils("lstm", "the gates of the LSTM in PyTorch's order")
def _(model: ModelProto) -> None:
    edit(model, nodes(model.graph, "LSTM")[0].input[1], lambda a: np.roll(a, 12, axis=1))


@spoils("bidirectional", "the backward direction twice forward")
def _(model: ModelProto) -> None:
    lstm = nodes(model.graph, "LSTM")[0]
    for position in (1, 2, 3):
        edit(model, lstm.input[position], lambda a: a[::-1])


@spoils("gru", "linear_before_reset lost")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "GRU")[0], "linear_before_reset", 0)


@spoils("einsum", "inputs of equal size swapped")
def _(model: ModelProto) -> None:
    one, other = model.graph.input
    one.name, other.name = other.name, one.name


@spoils("several", "outputs of equal size swapped")
def _(model: ModelProto) -> None:
    one, other = model.graph.output[0], model.graph.output[1]
    swap = {one.name: "held", other.name: one.name}
    for names in (swap, {"held": other.name}):
        for node in model.graph.node:
            for values in (node.input, node.output):
                for position, name in enumerate(values):
                    values[position] = names.get(name, name)


@spoils("several", "an output lost")
def _(model: ModelProto) -> None:
    del model.graph.output[-1]


@spoils("ranking", "the smallest in place of the largest")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "TopK")[0], "largest", 0)


@spoils("ranking", "a class off by one")
def _(model: ModelProto) -> None:
    best = next(n for n in model.graph.node if "best" in n.output)
    best.output[0] = "raw"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
    model.graph.node.append(helper.make_node("Add", ["raw", "one"], ["best"]))


@spoils("running", "an exclusive sum")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "CumSum")[0], "exclusive", 1)


@spoils("scatter", "additions that overwrite")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "ScatterElements")[0], "reduction", "none")


@spoils("gather", "an index off by one")
def _(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == "at":
                node.input[position] = "other"
    model.graph.node.insert(0, helper.make_node("Sub", ["one", "at"], ["other"]))


@spoils("resize", "nearest in place of linear")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "Resize")[0], "mode", "nearest")


@spoils("resize", "corners aligned")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "Resize")[0], "coordinate_transformation_mode", "align_corners")


@spoils("windows", "axes permuted otherwise")
def _(model: ModelProto) -> None:
    attribute(nodes(model.graph, "Transpose")[0], "perm", [0, 1, 3, 4, 2, 5])


@spoils("signal", "padding on the wrong side")
def _(model: ModelProto) -> None:
    edit(model, nodes(model.graph, "Pad")[0].input[1], lambda a: np.where(a == 1, [0, 2, 0, 0], 0) + np.roll(a, 2) * 0)


@spoils("conditional", "the branches swapped")
def _(model: ModelProto) -> None:
    branch = nodes(model.graph, "If")[0]
    get(branch, "then_branch").name = "held"
    get(branch, "else_branch").name = "then_branch"
    get(branch, "held").name = "else_branch"


@spoils("masked", "the mask turned round")
def _(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Not", ["on"], ["off"]))
    for node in list(model.graph.node)[1:]:
        for position, name in enumerate(node.input):
            if name == "on":
                node.input[position] = "off"


@spoils("mlp", "a batch frozen in the input")
def _(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


@spoils("mlp", "a batch frozen in a reshape")
def _(model: ModelProto) -> None:
    gemm = nodes(model.graph, "Gemm")[-1]
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 16]), "frozen"))
    at = list(model.graph.node).index(gemm)
    model.graph.node.insert(at, helper.make_node("Reshape", [gemm.input[0], "frozen"], ["reshaped"]))
    gemm.input[0] = "reshaped"


@spoils("mlp", "an output of another dtype")
def _(model: ModelProto) -> None:
    last = next(n for n in model.graph.node if "y" in n.output)
    last.output[0] = "raw"
    model.graph.node.append(helper.make_node("Cast", ["raw"], ["y"], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@spoils("mlp", "an output with an axis more")
def _(model: ModelProto) -> None:
    last = next(n for n in model.graph.node if "y" in n.output)
    last.output[0] = "raw"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    model.graph.node.append(helper.make_node("Unsqueeze", ["raw", "axis"], ["y"]))
    model.graph.output[0].type.tensor_type.ClearField("shape")


@spoils("mlp", "an internal value with the output's name")
def _(model: ModelProto) -> None:
    relu = nodes(model.graph, "Relu")[0]
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == relu.output[0]:
                node.input[position] = "y"
    relu.output[0] = "y"


@spoils("mlp", "an opset that no runtime knows")
def _(model: ModelProto) -> None:
    model.opset_import[0].version = 99


@spoils("mlp", "a truncated file")
def _(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@spoils("mlp", "an empty file")
def _(path: Path) -> None:
    path.write_bytes(b"")


@spoils("mlp", "external data that is missing")
def _(path: Path) -> None:
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    (path.parent / "model.onnx.data").unlink()


@spoils("mlp", "external data cut short")
def _(path: Path) -> None:
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    data = path.parent / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100])


@spoils("mlp", "external data outside its folder")
def _(path: Path) -> None:
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    (path.parent / "model.onnx.data").rename(path.parent.parent / "model.onnx.data")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    path.write_bytes(model.SerializeToString())


@spoils("mlp", "a declared shape that contradicts the graph")
def _(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


@spoils("attention", "matrices that do not fit")
def _(model: ModelProto) -> None:
    square = next(t.name for t in model.graph.initializer if tuple(t.dims) == (16, 48))
    edit(model, square, lambda a: a[:, :-1])
