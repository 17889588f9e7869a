"""The headroom of a variant: its latency beside the host's own peaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.evidence.records import Latency, Measurement
from onward.registry.evidence.session_options import CPU
from onward.stages.measuring import headroom as module
from onward.stages.measuring.headroom import headroom
from onward.stages.measuring.race import Feed
from onward.stages.workers.worker import Worker


def product(path: Path, side: int) -> None:
    weight = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", side]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_call_is_compared_with_the_peaks_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(module, "SIDE", 256)
    monkeypatch.setattr(module, "LENGTH", 1 << 16)
    monkeypatch.setattr(module, "SECONDS", 0.05)
    plain = tmp_path / "plain.onnx"
    product(plain, 64)
    feeds = {"b2": Feed({"batch": 2}, {"x": np.ones((2, 64), np.float32)})}
    latency = Latency.model_construct(size="b2", sizes={"batch": 2}, p50_ms=1.0)
    winner = Measurement.model_construct(
        variant="plain", runtime="cpu", provider=CPU, precision=precision, latencies=[latency]
    )

    def start(path: Path, measurement: Measurement) -> Worker:
        return Worker.onnx(path, "a peak", measurement.provider)

    with Worker.onnx(plain, "plain") as worker:
        (found,) = headroom(winner, plain.stat().st_size, plain, feeds, worker, start)
    assert found.multiplications == 2 * 64 * 64
    assert found.peak_gmacs > 0.1
    assert found.bound_ms == pytest.approx(
        max(found.multiplications / found.peak_gmacs / 1e6, found.bytes / found.bandwidth_gbs / 1e6), rel=0.1
    )
    assert found.share == pytest.approx(found.bound_ms / 1.0)
    shares = {one.operator: one for one in found.operators}
    assert shares["MatMul"].products
    assert not shares["Softmax"].products
    assert sum(one.share for one in found.operators) == pytest.approx(1)
    assert "GMAC/s" in str(found)
    assert "Softmax" in str(found)
