"""Bias correction: subtracts the mean error of each quantised layer from its bias.

Rounded weights and clipped activations shift the mean of a layer's output. Each layer gets float inputs, so the errors
of earlier layers are not corrected twice (Nagel et al., Data-Free Quantization, 2019, section 4.2, measured on
calibration samples).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onward.registry.artifact import onnx_file
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.graph_edit import readers_of
from onward.stages.transforms.sensitivity import TWIN, side_by_side

MEAN = "mean/"


def corrected(
    plain: onnx.ModelProto, rounded: onnx.ModelProto, operators: Sequence[str], feeds: Sequence[Feed]
) -> onnx.ModelProto:
    """Correct the biases of a float model by the mean errors of its quantised form.

    Args:
        plain: The float model, which is changed.
        rounded: Its quantised form, in QDQ.
        operators: Operator types that count as layers: Conv, Gemm and MatMul.
        feeds: Calibration inputs by name.

    Returns:
        The float model. A MatMul is corrected in the constant that an Add adds to it; without one, it is left.
    """
    errors = mean_errors(plain, rounded, operators, feeds)
    weights = {tensor.name: tensor for tensor in plain.graph.initializer}
    readers = readers_of(plain.graph)
    for node in plain.graph.node:
        error = errors.get(node.output[0]) if node.op_type in operators else None
        if error is None:
            continue
        if node.op_type == "MatMul":
            after = readers.get(node.output[0], [])
            if len(after) == 1 and after[0].op_type == "Add":
                slot = 1 - list(after[0].input).index(node.output[0])
                _subtract(plain.graph, after[0], slot, weights, readers, error)
        elif len(node.input) > 2:
            _subtract(plain.graph, node, 2, weights, readers, error)
        else:
            name = f"{node.output[0]}.bias"
            plain.graph.initializer.append(numpy_helper.from_array(-error, name))
            node.input.append(name)
    return plain


def mean_errors(
    plain: onnx.ModelProto, rounded: onnx.ModelProto, operators: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, npt.NDArray[np.float32]]:
    """Measure the mean error of each layer's output channels, given float inputs.

    Args:
        plain: The float model.
        rounded: Its quantised form, in QDQ.
        operators: Operator types that count as layers.
        feeds: Calibration inputs by name.

    Returns:
        The means [channels] by name of the layer's output.
    """
    import onnxruntime

    model, layers = side_by_side(plain, rounded, set(operators))
    sizes = {tensor.name: tensor.dims for tensor in plain.graph.initializer}
    layers = {name: node for name, node in layers.items() if node.input[1] in sizes}
    if not layers or not feeds:
        return {}
    del model.graph.output[:]
    for name, node in layers.items():
        model.graph.node.extend(_mean(name, node, len(sizes[node.input[1]]), onnx_file.opset(model), model.graph))
        model.graph.output.append(onnx.ValueInfoProto(name=MEAN + name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "means.onnx"
        onnx_file.save(model, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        runs = [session.run(None, dict(feed)) for feed in feeds]
    return {
        name: np.mean([run[index] for run in runs], axis=0, dtype=np.float64).astype(np.float32).reshape(-1)
        for index, name in enumerate(layers)
    }


def _mean(name: str, node: onnx.NodeProto, rank: int, version: int, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that compute the mean of a layer's error, TWIN - float, for each channel."""
    difference = f"shift/{name}"
    nodes = [helper.make_node("Sub", [TWIN + name, name], [difference])]
    if node.op_type == "Conv":
        source, axes = difference, [0, *range(2, rank)]
    else:  # a product may have any number of axes before its channels: flatten them, then reduce the first
        source, axes = f"flat/{name}", [0]
        nodes.append(helper.make_node("Flatten", [difference], [source], axis=-1))
    if version < 18:
        return [*nodes, helper.make_node("ReduceMean", [source], [MEAN + name], axes=axes, keepdims=0)]
    graph.initializer.append(numpy_helper.from_array(np.array(axes), f"axes/{name}"))
    return [*nodes, helper.make_node("ReduceMean", [source, f"axes/{name}"], [MEAN + name], keepdims=0)]


def _subtract(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    slot: int,
    weights: dict[str, onnx.TensorProto],
    readers: dict[str, list[Any]],
    error: npt.NDArray[np.float32],
) -> None:
    """Subtract an error from a constant input of a node, unless the constant is no vector of channels."""
    tensor = weights.get(node.input[slot])
    if tensor is None:
        return
    values = numpy_helper.to_array(tensor)
    if values.dtype != np.float32 or values.size not in (1, error.size) or values.shape[-1:] not in ((1,), error.shape):
        return
    shape = values.shape if values.size == error.size else error.shape
    changed = np.broadcast_to(values.reshape(-1), error.shape) - error
    name = f"{tensor.name}.corrected.{node.output[0]}"
    graph.initializer.append(numpy_helper.from_array(changed.reshape(shape), name))
    node.input[slot] = name
