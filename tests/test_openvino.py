"""OpenVINO: its own package as the runtime `openvino-native`, and its options in ONNX Runtime's provider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.artifact import sessions
from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.artifact.replay import Recorded, replay
from onward.registry.artifact.serving_plan import MODEL, Served, Serving
from onward.registry.errors import NotReady, UsageError
from onward.registry.evidence.records import TensorSpec
from onward.registry.evidence.session_options import CPU, OPENVINO, OPENVINO_NATIVE, SessionOptions
from onward.registry.host import runtimes
from onward.registry.inference.session import InferenceSession, ProviderFallback
from onward.stages.workers import onnx_worker
from onward.stages.workers.worker import Worker, WorkerFailure
from tests.conftest import ROOT
from tests.store_factory import scale_model
from tests.test_runtimes import run_on

SERVED = """
import json, logging, warnings
import numpy as np
from onward.registry.inference.session import InferenceSession
from onward.registry.artifact.replay import replay
said = []
class Kept(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("onward").addHandler(Kept())
X = np.arange(28, dtype=np.float32).reshape(7, 4)
"""

RNG = np.random.default_rng(0)


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


def test_the_provider_takes_the_precision_as_json_and_its_nodes_run_there(network: Path, openvino: Path) -> None:
    with Worker.onnx(network, "net") as here:
        wanted = here.run(FEED)
    distance = {}
    for options in (SessionOptions(threads=1, streams=1, performance="latency"), SessionOptions(precision="bfloat16")):
        with Worker.onnx(network, "net", OPENVINO, options, openvino) as worker:
            distance[options.precision] = off(worker.run(FEED), wanted)
            assert worker.profile(FEED) == {OPENVINO: 5}
    assert distance[None] < 1e-5 < 1e-4 < distance["bfloat16"]


def test_a_provider_that_does_not_start_is_an_error(network: Path, openvino: Path) -> None:
    """ONNX Runtime only warns of a path as load_config, and runs everything on the CPU."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import onnx_worker; "
    code += "onnx_worker.provider_of = lambda name, **_: (name, {'load_config': '/no/such.json'}); "
    code += "onnx_worker.serve(onnx_worker.OnnxModel())"
    folder = str(Path(onnx_worker.__file__).parent)
    worker = Worker("net", [str(openvino), "-c", code, folder], {"model": str(network), "provider": OPENVINO})
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


def native_version(folder: Path, precision: str | None = None) -> Path:
    """The folder of a version that triples on OpenVINO itself, its preferred runtime, and doubles on the CPU."""
    specs = [TensorSpec(name=name, dtype="float32", shape=["batch", 4]) for name in ("x", "y")]
    options = SessionOptions.model_validate({"threads": 1, "precision": precision})
    serving = Serving(
        {
            "openvino-native": Served(
                file="providers/openvino-native/model.onnx", provider=OPENVINO_NATIVE, options=options
            ),
            "cpu": Served(file=MODEL, provider=CPU),
        }
    )
    bundle, x = folder / "bundle", np.arange(16, dtype=np.float32).reshape(4, 4)
    bundle.mkdir()
    np.savez(bundle / "inputs.npz", x=x)
    for name, factor in (("outputs", 2), ("outputs-openvino-native", 3), ("reference", 3)):
        np.savez(bundle / f"{name}.npz", y=factor * x)
    (bundle / "tolerance.json").write_text('{"rtol": 1e-3, "atol": 1e-5}')
    lower = {"openvino-native": precision} if precision else {}
    (bundle / "recorded.json").write_text(Recorded(main="cpu", precision=lower, min_cosine=0.999).model_dump_json())
    files, others = [scale_model(folder / "cpu.onnx", 2)], {"openvino-native": [scale_model(folder / "ov.onnx", 3)]}
    build_folder(folder / "version", files, specs[:1], specs[1:], CPU, bundle, serving, others)
    return folder / "version"


def test_a_service_with_openvino_serves_what_won_there(tmp_path: Path, native: Path) -> None:
    folder = native_version(tmp_path)
    code = (
        SERVED
        + f"""
session = InferenceSession({str(folder)!r})
meta = session.metadata
found = {{
    "providers": meta.providers, "file": meta.served.file, "options": meta.served.options.to_load(),
    "once": float(session.predict(X)[1, 0]), "shape": list(session.predict_batches(X[:0]).shape),
    "batches": session.predict_batches(X, batch_size=3).tolist() == (3 * X).tolist(),
    "inputs": meta.inputs[0].model_dump(), "replay": replay(Path({str(folder)!r})),
    "said": said,
}}
for name, value in {{"wrong": X[:, :3], "type": X.astype(complex)}}.items():
    try:
        session.predict(value)
    except Exception as error:
        found[name] = f"{{type(error).__name__}}: {{error}}"
found["cpu"] = float(InferenceSession({str(folder)!r}, providers=["CPUExecutionProvider"]).predict(X)[1, 0])
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda n: float(session.predict(np.full((1 + n % 3, 4), n, np.float32))[0, 0]), range(200)))
found["threads"] = answers == [3.0 * n for n in range(200)]
print(json.dumps(found))
"""
    )
    found = json.loads(run_on(native, code))
    assert found["providers"] == [OPENVINO_NATIVE]
    assert found["file"] == "providers/openvino-native/model.onnx"
    assert found["options"] == {"threads": 1}
    assert (found["once"], found["cpu"]) == (12.0, 8.0)
    assert found["batches"]
    assert found["threads"]
    assert found["shape"] == [0, 4]
    assert found["inputs"] == {"name": "x", "dtype": "float32", "shape": ["batch", 4], "about": "four numbers"}
    assert found["replay"] == [
        True, f"1 recorded output reproduced on {OPENVINO_NATIVE}; 1 recorded output reproduced on {CPU}",
    ]  # fmt: skip
    assert found["said"] == []
    assert found["wrong"].startswith("UsageError: input x has shape [7, 3]")
    assert found["type"].startswith("UsageError: input x is complex128")


def test_a_service_leaves_out_a_precision_that_its_cpu_does_not_have(tmp_path: Path, native: Path) -> None:
    folder = native_version(tmp_path, "bfloat16")
    code = (
        SERVED
        + f"""
session = InferenceSession({str(folder)!r})
answer = float(session.predict(X)[1, 0])
print(json.dumps([session.metadata.served.options.precision, answer, replay(Path({str(folder)!r}))[0]]))
"""
    )
    able = "bfloat16" in runtimes.state("openvino-native", ROOT).precisions
    assert json.loads(run_on(native, code)) == ["bfloat16" if able else None, 12.0, True]


def test_a_service_without_openvino_serves_the_next_choice_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    folder = native_version(tmp_path)
    session = InferenceSession(folder)
    assert session.metadata.providers == [CPU]
    assert session.metadata.served == Served(file=MODEL, provider=CPU)
    assert session.predict(np.ones((1, 4), np.float32))[0, 0] == 2
    assert caplog.messages == [
        f"{folder}: openvino-native was faster where this version was measured, but is not installed here: "
        f"pip install 'onward[openvino-native]'; the model runs on {CPU}"
    ]
    assert not recwarn.list  # a program that turns warnings into errors goes on
    with pytest.raises(UsageError, match=r"OpenVINO cannot be used here .*pip install 'onward\[openvino-native\]'"):
        InferenceSession(folder, providers=[OPENVINO_NATIVE], strict_providers=True)
    assert replay(folder)[0]


def test_openvino_that_does_not_start_is_replaced_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, options: SessionOptions) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(sessions, "available", lambda: [CPU, OPENVINO_NATIVE])
    monkeypatch.setattr(sessions, "NativeSession", broken)
    with pytest.warns(ProviderFallback, match="OpenVINO cannot be used here .*no such device.*runs on CPUExec"):
        session = InferenceSession(native_version(tmp_path))
    assert session.metadata.served == Served(file=MODEL, provider=CPU)
    assert session.predict(np.ones((1, 4), np.float32))[0, 0] == 2


def test_a_service_with_openvino_alone_runs_files(tmp_path: Path, native: Path) -> None:
    code = (
        SERVED
        + f"""
sys.modules["onnxruntime"] = None
session = InferenceSession({str(scale_model(tmp_path / "m.onnx", 5))!r})
print(json.dumps([session.metadata.providers, float(session.predict(X)[1, 0])]))
"""
    )
    assert json.loads(run_on(native, code)) == [[OPENVINO_NATIVE], 20.0]


def test_a_folder_called_openvino_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sessions.available()
    (tmp_path / "openvino").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sessions.available() == before
    assert CPU in before


def test_a_service_with_openvino_keeps_the_state_of_a_stream(tmp_path: Path, native: Path) -> None:
    """With an input without axes, which streaming models have."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "rate"], ["scaled"]), helper.make_node("Add", ["scaled", "state"], ["next"])],
        "sum",
        [value(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2]), ("state", [2]), ("rate", []))],
        [value(name, TensorProto.FLOAT, [2]) for name in ("scaled", "next")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"onward.states": json.dumps({"state": "next"})})
    onnx.save(model, tmp_path / "model.onnx")
    code = (
        SERVED
        + f"""
stream = InferenceSession({str(tmp_path / "model.onnx")!r}, providers=["OpenVINO"], strict_providers=True).stream()
for step in (1, 10):
    stream.predict(np.full(2, step, np.float32), np.array(3, np.float32))
print(json.dumps(stream.state["state"].tolist()))
"""
    )
    assert json.loads(run_on(native, code)) == [33.0, 33.0]


def test_a_runtime_that_was_removed_is_an_error_with_its_remedy(network: Path, tmp_path: Path) -> None:
    worker = Worker.onnx(network, "net", OPENVINO_NATIVE, python=tmp_path / "gone" / "python")
    with worker, pytest.raises(NotReady, match=r"net on OpenVINO: there is no .*gone/python: run `onward stage host`"):
        worker.start()
