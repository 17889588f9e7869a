"""Compares the fastest acceptable variant with what the host can do: peaks of products and of bandwidth, as measured.

The peaks are measured in the same kind of process, on the same runtime and with the same number of threads as the
variant: small graphs that do nothing but multiply two matrices, or add two long vectors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onward.registry.evidence.headroom import Headroom, OperatorShare
from onward.registry.evidence.records import Measurement
from onward.stages.measuring.race import Feed
from onward.stages.transforms import graph_profile
from onward.stages.workers.worker import Worker, WorkerFailure

# The sides of the square matrices. Large enough for every kernel's best speed, and 30 ms on two cores without AMX.
SIDE = 1024
# Floats in each of the two vectors: 64 MB, more than the caches of a CPU.
LENGTH = 1 << 24
# Seconds of measuring for each peak, and runs before it that are not counted.
SECONDS, WARMUPS = 0.4, 2
# Operators that multiply with weights, in ONNX Runtime's names.
PRODUCTS = {
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "ConvTranspose", "NhwcFusedConv", "LSTM", "GRU",
    "RNN", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "QLinearConv",
    "ConvInteger", "DynamicQuantizeLSTM", "Attention", "QAttention", "MatMulNBits",
}  # fmt: skip

Start = Callable[[Path, Measurement], Worker]


def headroom(
    winner: Measurement, weights: int, plain: Path, feeds: Mapping[str, Feed], worker: Worker, start: Start
) -> list[Headroom]:
    """Compare a variant with the host's peaks, at every size.

    Args:
        winner: The variant, with its latencies.
        weights: Bytes of its files.
        plain: The plain export, whose multiplications are counted.
        feeds: The inputs by size.
        worker: A worker of the variant.
        start: Starts a worker of another file with the runtime and options of a measurement.

    Returns:
        One comparison per size; empty if a peak could not be measured, or if the multiplications are none or unknown.
    """
    integer = winner.precision.startswith("int")
    try:
        with tempfile.TemporaryDirectory(prefix="onward-") as folder:
            peak = SIDE**3 / _fastest(_product(Path(folder), integer), winner, start) / 1e6
            bandwidth = 3 * 4 * LENGTH / _fastest(_sum(Path(folder)), winner, start) / 1e6
    except WorkerFailure:  # the runtime lacks one of the operators
        return []
    found = []
    for latency in winner.latencies:
        feed = feeds[latency.size]
        graph = graph_profile.describe(plain, {name: np.shape(array) for name, array in feed.tensors.items()})
        work = graph.multiplications
        if not work or graph.uncounted:
            continue
        bound = max(work / peak / 1e6, weights / bandwidth / 1e6)
        found.append(
            Headroom(
                variant=winner.variant,
                runtime=winner.runtime,
                precision=winner.precision,
                size=latency.size,
                p50_ms=latency.p50_ms,
                multiplications=work,
                bytes=weights,
                peak_gmacs=round(peak, 1),
                bandwidth_gbs=round(bandwidth, 1),
                bound_ms=bound,
                share=bound / latency.p50_ms,
                operators=_operators(worker, feed),
            )
        )
    return found


def _operators(worker: Worker, feed: Feed) -> list[OperatorShare]:
    try:
        times = worker.operator_times(feed.tensors)
    except WorkerFailure:  # the figures of the whole call remain
        return []
    total = sum(times.values()) or 1.0
    ranked = sorted(times.items(), key=lambda item: -item[1])
    return [OperatorShare(operator=name, share=time / total, products=name in PRODUCTS) for name, time in ranked[:8]]


def _fastest(graph: tuple[Path, dict[str, Any]], winner: Measurement, start: Start) -> float:
    """The fastest call of a graph, in ms: other processes only make calls slower."""
    path, inputs = graph
    with start(path, winner) as worker:
        return min(worker.measure(inputs, SECONDS, WARMUPS))


def _product(folder: Path, integer: bool) -> tuple[Path, dict[str, Any]]:
    """A product of two square matrices: the right one is a weight, the left one an input."""
    rng = np.random.default_rng(0)
    weight: Any
    if integer:
        weight = rng.integers(-64, 64, (SIDE, SIDE)).astype(np.int8)
        given: Any = rng.integers(0, 127, (SIDE, SIDE)).astype(np.uint8)
        kinds = TensorProto.UINT8, TensorProto.INT32
    else:
        weight, given = (rng.standard_normal((SIDE, SIDE)).astype(np.float32) for _ in range(2))
        kinds = TensorProto.FLOAT, TensorProto.FLOAT
    node = helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])
    return _written(folder / "product.onnx", node, [given], kinds, [numpy_helper.from_array(weight, "w")])


def _sum(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A sum of two long vectors, which reads two and writes one."""
    given = [np.ones(LENGTH, np.float32) for _ in range(2)]
    node = helper.make_node("Add", ["x", "z"], ["y"])
    return _written(folder / "sum.onnx", node, given, (TensorProto.FLOAT, TensorProto.FLOAT), [])


def _written(
    path: Path, node: onnx.NodeProto, given: list[Any], kinds: tuple[int, int], weights: list[onnx.TensorProto]
) -> tuple[Path, dict[str, Any]]:
    """Write a graph of one node; returns its path and its inputs."""
    names = ["x", "z"][: len(given)]
    shape = list(given[0].shape)
    inputs = [helper.make_tensor_value_info(name, kinds[0], shape) for name in names]
    outputs = [helper.make_tensor_value_info("y", kinds[1], shape)]
    graph = helper.make_graph([node], "peak", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path, dict(zip(names, given, strict=True))
