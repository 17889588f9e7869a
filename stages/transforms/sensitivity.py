"""What quantising each layer alone costs: its output against float, when its inputs are those of the float graph.

The float graph and the quantised one are put side by side in one: where both have a value of the same name, every node
reads the float graph's. So one run gives each layer's own error, free of the errors of those before it.
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

# Names in the quantised half, and the sums of squares that are asked for.
TWIN, SIGNAL, NOISE = "quantised/", "signal/", "noise/"


def layer_costs(plain: Path, quantised: Path, operators: Iterable[str], feeds: list[Feed]) -> list[LayerCost]:
    """The layers of `plain` of these operators that `quantised` computes otherwise, the costliest first.

    Raises:
        WorkerFailure: the two side by side do not run.
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
    """(a model whose outputs are, for each layer, the sums of squares of its float output and of what quantising
    changes in it; the layers: the float node by the value that it gives)."""
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
    return other is not None and (node.op_type, list(node.input)) == (other.op_type, list(other.input))


def _is_float(plain: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """A Gather of positions or shapes is no layer."""
    kinds = {tensor.name: tensor.data_type for tensor in plain.graph.initializer}
    return all(kinds[name] == onnx.TensorProto.FLOAT for name in node.input[:1] if name in kinds)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def fewest(layers: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number of costliest layers to leave in float with which `holds` is true; None where half of them is
    too few: what is left is not worth the search.

    Half is tried first, so that a hopeless graph costs one try; then 1, 2, 4 ..., for it is few, mostly; then the gap
    is halved. Holding is taken for monotone.
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
