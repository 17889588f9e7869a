"""OpenVINO: its own package as the runtime `openvino-native`, and its options in ONNX Runtime's provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.evidence.session_options import OPENVINO, OPENVINO_NATIVE, SessionOptions
from onward.registry.host import runtimes
from onward.stages.workers import onnx_worker
from onward.stages.workers.worker import Worker, WorkerFailure
from tests.conftest import ROOT

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def native() -> Path:
    """The interpreter of the environment with the package openvino, which is created if it is missing."""
    runtimes.install("openvino-native", ROOT)
    return runtimes.python("openvino-native", ROOT)


@pytest.fixture(scope="module")
def provider() -> Path:
    """The interpreter of the environment with ONNX Runtime's OpenVINO provider."""
    runtimes.install("openvino", ROOT)
    return runtimes.python("openvino", ROOT)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two matrix products, with outputs of three types, an input that nothing uses, and a scalar output."""
    weights = [
        numpy_helper.from_array((RNG.standard_normal((64, 128)) / 8).astype(np.float32), "w1"),
        numpy_helper.from_array((RNG.standard_normal((128, 16)) / 11).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["top"], axis=1, keepdims=0),
        helper.make_node("ReduceMax", ["y"], ["peak"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, ["batch", 64]), value("unused", TensorProto.INT64, ["batch"])],
        [
            value("y", TensorProto.FLOAT, ["batch", 16]),
            value("top", TensorProto.INT64, ["batch"]),
            value("peak", TensorProto.FLOAT, []),
        ],
        weights,
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


FEED: dict[str, Any] = {"x": RNG.standard_normal((8, 64)).astype(np.float32), "unused": np.zeros(8, np.int64)}


def off(got: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference of y, relative to its largest magnitude."""
    return float(np.abs(got["y"] - wanted["y"]).max() / np.abs(wanted["y"]).max())


def test_openvino_itself_is_a_runtime_that_is_probed(native: Path) -> None:
    found = runtimes.state("openvino-native", ROOT)
    assert found.usable, found.reason
    assert found.version.startswith("2026.4")
    assert found.providers == [OPENVINO_NATIVE]
    assert found.node_share["float32"] == 1.0
    assert found.int8_exact is not None
    assert runtimes.state("openvino-native", ROOT / "docs").reason == (
        "not installed: onward runtimes install openvino-native"
    )


def test_the_worker_of_openvino_answers_like_the_one_of_onnx_runtime(network: Path, native: Path) -> None:
    with Worker.onnx(network, "net") as here:
        wanted = here.run(FEED)
    with Worker.onnx(network, "net", OPENVINO_NATIVE, python=native) as worker:
        loaded = worker.start()
        got = worker.run(FEED)
        assert list(got) == ["y", "top", "peak"]
        assert [(v.dtype, v.shape) for v in got.values()] == [(v.dtype, v.shape) for v in wanted.values()]
        assert off(got, wanted) < 1e-5
        assert np.array_equal(got["top"], wanted["top"])
        assert loaded["session_ms"] > 0
        assert loaded["providers"] == [OPENVINO_NATIVE]
        assert loaded["inputs"] == [["x", "tensor(float)", [None, 64]], ["unused", "tensor(int64)", [None]]]
        assert worker.profile(FEED)[OPENVINO_NATIVE] > 1
        assert len(worker.measure(FEED, 0.001, 1)) >= 1
        latencies, wall = worker.measure_callers(FEED, 3, 0.01)
        assert len(latencies) >= 3
        assert wall > 0
        assert worker.peak_memory_mb() > 10
        with pytest.raises(WorkerFailure, match="the inputs are x, unused, not x"):
            worker.run({"x": FEED["x"]})
        assert off(worker.run(FEED), wanted) < 1e-5  # a rejected call breaks nothing


def test_openvino_computes_in_float32_unless_another_precision_is_set(network: Path, native: Path) -> None:
    with Worker.onnx(network, "net") as here:
        wanted = here.run(FEED)
    distance = {}
    for options in (
        SessionOptions(),
        SessionOptions(threads=1, streams=1, performance="throughput"),
        SessionOptions(precision="bfloat16"),
    ):
        with Worker.onnx(network, "net", OPENVINO_NATIVE, options, native) as worker:
            distance[str(options)] = off(worker.run(FEED), wanted)
    assert distance.pop("precision bfloat16") > 1e-4
    assert len(distance) == 2
    assert max(distance.values()) < 1e-5


def test_a_precision_that_openvino_ignores_is_an_error(network: Path, native: Path) -> None:
    """OpenVINO computes in float32 without a word if the CPU has no float16."""
    if "float16" in runtimes.state("openvino-native", ROOT).precisions:
        with Worker.onnx(network, "net", OPENVINO_NATIVE, SessionOptions(precision="float16"), native) as worker:
            assert off(worker.run(FEED), worker.run(FEED)) == 0
        return
    with (
        Worker.onnx(network, "net", OPENVINO_NATIVE, SessionOptions(precision="float16"), native) as worker,
        pytest.raises(WorkerFailure, match="OpenVINO does not compute in float16 on this CPU"),
    ):
        worker.start()


def test_a_graph_that_openvino_cannot_run_is_an_error(tmp_path: Path, native: Path) -> None:
    node = helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=opsets)
    onnx.save(model, tmp_path / "model.onnx")
    with (
        Worker.onnx(tmp_path / "model.onnx", "odd", OPENVINO_NATIVE, python=native) as worker,
        pytest.raises(WorkerFailure, match="Unheard"),
    ):
        worker.start()


def test_the_provider_takes_the_precision_as_json_and_its_nodes_run_there(network: Path, provider: Path) -> None:
    with Worker.onnx(network, "net") as here:
        wanted = here.run(FEED)
    distance = {}
    for options in (SessionOptions(threads=1, streams=1, performance="latency"), SessionOptions(precision="bfloat16")):
        with Worker.onnx(network, "net", OPENVINO, options, provider) as worker:
            distance[options.precision] = off(worker.run(FEED), wanted)
            assert worker.profile(FEED) == {OPENVINO: 5}
    assert distance[None] < 1e-5 < 1e-4 < distance["bfloat16"]


def test_a_provider_that_does_not_start_is_an_error(network: Path, provider: Path) -> None:
    """ONNX Runtime only warns of a path as load_config, and runs everything on the CPU."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import onnx_worker; "
    code += "onnx_worker.provider_of = lambda name, **_: (name, {'load_config': '/no/such.json'}); "
    code += "onnx_worker.serve(onnx_worker.OnnxModel())"
    folder = str(Path(onnx_worker.__file__).parent)
    worker = Worker("net", [str(provider), "-c", code, folder], {"model": str(network), "provider": OPENVINO})
    with worker, pytest.raises(WorkerFailure, match=f"fell back to CPU: {OPENVINO} did not start"):
        worker.start()


@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(),
        SessionOptions(precision="bfloat16", threads=2),
        SessionOptions(precision="float16", streams=2, performance="throughput"),
        SessionOptions(tf32=True, nhwc=False),
    ],
)
def test_worker_and_service_give_a_provider_the_same_options(options: SessionOptions) -> None:
    given = options.to_load()
    for name in (OPENVINO, "CUDAExecutionProvider", "CPUExecutionProvider"):
        assert onnx_worker.provider_of(name, **given) == options.to_provider(name)
