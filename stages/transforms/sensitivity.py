"""Measures the error of each quantised layer alone: its output compared with float, given float inputs.

The float graph and the quantised one are joined in one model. If both have a value of the same name, every node reads
the float graph's. So one run gives each layer's own error, without the errors of earlier layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx

from onward.registry.artifact import onnx_file
from onward.registry.artifact.graph_nodes import origin
from onward.registry.evidence.records import LayerCost
from onward.stages.transforms.builder import Feed
from onward.stages.workers.worker import Worker

# Prefixes of names in the quantised half, and of the outputs with sums of squares.
TWIN, SIGNAL, NOISE = "quantised/", "signal/", "noise/"


def layer_costs(plain: Path, quantised: Path, operators: Iterable[str], feeds: list[Feed]) -> list[LayerCost]:
    """Rank quantised layers by their own error.

    Args:
        plain: The float ONNX file.
        quantised: The quantised ONNX file, made from `plain`.
        operators: Operator types in `plain` that count as layers.
        feeds: Calibration inputs by name. Squares are summed over all of them.

    Returns:
        The layers that `quantised` changes, lowest signal-to-noise ratio (dB) first.

    Raises:
        WorkerFailure: The joined model does not run.
    """
    base = onnx.load(plain)
    model, layers = side_by_side(base, onnx.load(quantised), set(operators))
    if not layers:
        return []
    signal, noise = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "side_by_side.onnx"
        onnx_file.save(model, path)
        with Worker.onnx(path, "float and quantised side by side", timeout=300) as worker:
            for feed in feeds:
                for name, value in worker.run(feed).items():
                    sums = signal if name.startswith(SIGNAL) else noise
                    sums[name.partition("/")[2]] += float(value)
    costs = [
        LayerCost(
            value=value,
            operator=node.op_type,
            module=origin(node)[0],
            snr_db=_decibels(signal[value], noise[value]),
        )
        for value, node in layers.items()
    ]
    return sorted(costs, key=lambda cost: (cost.snr_db, cost.value))


def side_by_side(
    plain: onnx.ModelProto, quantised: onnx.ModelProto, operators: set[str]
) -> tuple[onnx.ModelProto, dict[str, onnx.NodeProto]]:
    """Join a float graph and its quantised form in one model.

    Args:
        plain: The float model.
        quantised: The quantised model, made from `plain`.
        operators: Operator types in `plain` that count as layers.

    Returns:
        The joined model, and the float node of each layer by the name of its output. For each layer the model outputs
        two scalars: the sum of squares of the float output (SIGNAL) and of its change by quantising (NOISE).
    """
    given = {name: node for node in plain.graph.node for name in node.output if name}
    outer = {value.name for value in plain.graph.input} | set(given)
    model = onnx.ModelProto()
    model.CopyFrom(quantised)
    del model.graph.node[:], model.graph.output[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.initializer.extend(plain.graph.initializer)
    for tensor in quantised.graph.initializer:
        twin = model.graph.initializer.add()
        twin.CopyFrom(tensor)
        twin.name = TWIN + tensor.name
    model.graph.node.extend(plain.graph.node)
    layers: dict[str, onnx.NodeProto] = {}
    for node in quantised.graph.node:
        if any(_same(node, given.get(name)) for name in node.output):
            continue
        twin = model.graph.node.add()
        twin.CopyFrom(node)
        twin.name = TWIN + node.name
        twin.input[:] = [name if name in outer or not name else TWIN + name for name in node.input]
        twin.output[:] = [TWIN + name if name else "" for name in node.output]
        for name in node.output:
            if name in given and given[name].op_type in operators and _is_float(plain, given[name]):
                layers[name] = given[name]
    for name in layers:
        model.graph.node.extend(
            [
                onnx.helper.make_node("Sub", [name, TWIN + name], [f"difference/{name}"]),
                onnx.helper.make_node("ReduceSumSquare", [f"difference/{name}"], [NOISE + name], keepdims=0),
                onnx.helper.make_node("ReduceSumSquare", [name], [SIGNAL + name], keepdims=0),
            ]
        )
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(kind + name, onnx.TensorProto.FLOAT, []) for kind in (NOISE, SIGNAL)
        )
    return model, layers


def _same(node: onnx.NodeProto, other: onnx.NodeProto | None) -> bool:
    """Whether both nodes have the same operator and inputs."""
    return other is not None and (node.op_type, list(node.input)) == (other.op_type, list(other.input))


def _is_float(plain: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a layer's first input is float: a Gather of positions or shapes is no layer."""
    kinds = {tensor.name: tensor.data_type for tensor in plain.graph.initializer}
    return all(kinds[name] == onnx.TensorProto.FLOAT for name in node.input[:1] if name in kinds)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def heads_first(layers: list[LayerCost], graph: onnx.GraphProto, outputs: Iterable[str]) -> list[LayerCost]:
    """Move the last layers before some outputs to the front of a ranking.

    Nothing after a head averages its rounding error away. A head of boxes or values has few channels, so it costs
    little time in float, although its own error is often not the largest.

    Args:
        layers: The layers, costliest first.
        graph: The float graph.
        outputs: Names of outputs with values.

    Returns:
        The heads, then the other layers, each costliest first. The order is unchanged if every layer is a head.
    """
    made = {name: node for node in graph.node for name in node.output if name}
    ranked = {layer.value for layer in layers}
    waiting, seen, heads = list(outputs), set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in ranked:
            heads.add(name)
        elif name in made:
            waiting += [given for given in made[name].input if given]
    return sorted(layers, key=lambda layer: layer.value not in heads)


def fewest(layers: int, holds: Callable[[int], bool]) -> int | None:
    """Find the smallest number of costliest layers to leave in float.

    Tries half of the layers first, so that a hopeless graph costs one try; then 1, 2, 4 and so on, because few layers
    usually suffice; then bisects.

    Args:
        layers: Number of layers.
        holds: Whether the quality budget holds with this many layers in float. It must be monotone.

    Returns:
        The smallest number for which `holds` is true; None if half of the layers is too few.
    """
    most = layers // 2
    if most == 0 or not holds(most):
        return None
    low, high = 0, 1
    while high < most and not holds(high):
        low, high = high, high * 2
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
