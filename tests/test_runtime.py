"""Workers: a crash of native code is reported, and the main process survives."""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.errors import UsageError
from onward.registry.evidence.session_options import SessionOptions
from onward.stages.config.schema import Tolerance
from onward.stages.parity.cases import Case
from onward.stages.parity.check import Expected, answers, check
from onward.stages.workers import isolated_call
from onward.stages.workers import worker as pool
from onward.stages.workers.worker import Killed, Worker, WorkerFailure
from tests.onnx_models import linear


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    """An LSTM: with an empty batch, ONNX Runtime aborts the whole process."""
    rng = np.random.default_rng(0)
    weights = {"w": (1, 16, 3), "r": (1, 16, 4)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=4)],
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "batch", 4])],
        [onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    path = tmp_path / "lstm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def case(name: str, batch: int) -> Case:
    inputs = {"x": np.ones((2, batch, 3), np.float32)}
    return Case(name, 0, {"batch": batch}, inputs)


def test_after_a_native_abort_the_remaining_cases_still_run(lstm: Path) -> None:
    cases = [case("one", 1), case("empty", 0), case("two", 2)]
    with Worker.onnx(lstm, "lstm") as reference:
        expected = answers(reference, [cases[0], cases[2]])
    expected.insert(1, Expected(cases[1], {"y": np.empty((1, 0, 4), np.float32)}))
    with Worker.onnx(lstm, "lstm") as worker:
        results = check(worker, expected, Tolerance())
    assert [result.verdict for result in results] == ["ok", "aborted", "ok"]
    assert results[1].signal == "SIGABRT"
    assert "case empty: lstm on CPUExecutionProvider: the process died of SIGABRT" in results[1].reason


def test_an_input_of_the_wrong_shape_reports_the_message_of_the_runtime(tmp_path: Path) -> None:
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m") as worker:
        with pytest.raises(WorkerFailure, match="m on CPUExecutionProvider: run: InvalidArgument") as caught:
            worker.run({"x": np.ones((2, 7), np.float32)})
        assert caught.value.kind == "error"
        assert worker.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)


def test_a_hang_is_reported_as_a_timeout(tmp_path: Path) -> None:
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m", timeout=1.0) as worker:
        worker.run({"x": np.ones((2, 4), np.float32)})
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGSTOP)
        with pytest.raises(WorkerFailure, match="no answer within 1 s") as caught:
            worker.run({"x": np.ones((2, 4), np.float32)})
        assert caught.value.kind == "timed out"
        assert worker.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)


def test_a_killed_worker_names_the_signal_and_restarts(tmp_path: Path) -> None:
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m") as worker:
        worker.start()
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGSEGV)
        with pytest.raises(WorkerFailure, match="SIGSEGV") as caught:
            worker.run({"x": np.ones((2, 4), np.float32)})
        assert (caught.value.kind, caught.value.signal) == ("segfault", "SIGSEGV")
        assert worker.measure({"x": np.ones((2, 4), np.float32)}, 0.01, 1)


def test_an_invalid_model_file_is_an_error_without_a_path(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"nothing")
    with Worker.onnx(path, "m") as worker, pytest.raises(WorkerFailure) as caught:
        worker.start()
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_provider_is_an_error_and_not_a_silent_fallback(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    worker = Worker.onnx(path, "m", provider="CUDAExecutionProvider")
    with worker, pytest.raises(WorkerFailure, match="this onnxruntime has no CUDAExecutionProvider"):
        worker.start()


def test_a_profile_says_which_provider_ran_the_nodes(tmp_path: Path) -> None:
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m", options=SessionOptions(graph_level="disabled")) as worker:
        assert worker.profile({"x": np.ones((2, 4), np.float32)}) == {"CPUExecutionProvider": 2}


def test_peak_memory_excludes_the_parent_process(tmp_path: Path) -> None:
    ballast = np.ones(64 * 2**20, np.uint8) * 3
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m") as worker:
        assert 10 < worker.peak_memory_mb() < 200
    assert ballast[-1] == 3


def test_a_timed_worker_frees_the_processors_for_the_next(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((512, 512), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 512])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    x = {"x": np.ones((64, 512), np.float32)}
    with Worker.onnx(tmp_path / "m.onnx", "m", options=SessionOptions(threads=2)) as worker:
        worker.measure(x, 0.02, 1)
        assert worker._process is not None
        process = psutil.Process(worker._process.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(0.2)
        # A spinning thread pool uses 40 ms; the process clock has a resolution of 10 ms.
        assert sum(process.cpu_times()[:2]) - before < 0.025


def test_a_full_disk_is_not_a_verdict_on_a_model(tmp_path: Path) -> None:
    script = "import json; input(); print(json.dumps({'ok': True})); input(); print(json.dumps({'ok': False, "
    script += "'kind': 'OSError', 'error': 'No space left on device', 'errno': 28}))"
    with Worker("m", [sys.executable, "-c", script], {}) as worker, pytest.raises(OSError, match="No space left"):
        worker.run({"x": np.ones(1)})
    with pytest.raises(OSError, match="No space left"):
        isolated_call.call(30, raises, RuntimeError("native: write failed: No space left on device"))


def dies(number: int) -> None:
    faulthandler.disable()  # the crash is intended; a stack dump would look like a failure
    os.kill(os.getpid(), number)


def raises(error: Exception) -> None:
    raise error


def is_stopped(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_STOPPED


@pytest.mark.skipif(not pool.STOPPABLE, reason="processes are stopped on Linux alone")
def test_a_measured_worker_uses_no_processor_until_the_next_call(tmp_path: Path) -> None:
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m") as worker:
        feed = {"x": np.ones((2, 4), np.float32)}
        for measured in (lambda: worker.measure(feed, 0.01, 1), lambda: worker.measure_callers(feed, 2, 0.01)):
            measured()
            assert worker._process is not None
            process = psutil.Process(worker._process.pid)
            wait_for(functools.partial(is_stopped, process))
            before = process.cpu_times()
            time.sleep(0.1)
            assert process.cpu_times()[:2] == before[:2]
        assert set(worker.run(feed)) == {"y"}
        assert process.status() != psutil.STATUS_STOPPED


@pytest.mark.skipif(not pool.STOPPABLE, reason="processes are stopped on Linux alone")
def test_a_stopped_worker_ends_with_its_parent_process(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from onward.stages.workers.worker import Worker\n"
        f"worker = Worker.onnx(Path({str(linear(tmp_path / 'm.onnx'))!r}), 'm'); worker.start()\n"
        "print(worker._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = int(done.stdout)
    wait_for(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)


def wait_for(what: Callable[[], bool], seconds: float = 10) -> None:
    give_up = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_an_isolated_call_returns_the_result() -> None:
    assert isolated_call.call(30, divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGABRT, "aborted"), (signal.SIGSEGV, "segfault"), (signal.SIGFPE, "aborted")]
)
def test_an_isolated_call_that_dies_names_the_signal(number: signal.Signals, kind: str) -> None:
    with pytest.raises(WorkerFailure, match=number.name) as caught:
        isolated_call.call(30, dies, number)
    assert caught.value.kind == kind


def quotient(pair: tuple[int, int]) -> int:
    if pair[1] == 0:
        dies(signal.SIGFPE)
    return pair[0] // pair[1]


def test_calls_begun_together_end_in_order_and_a_crash_affects_only_its_own() -> None:
    pairs = [(7, 2), (1, 0), (9, 3), (8, 0), (6, 3)]
    with isolated_call.Isolated(quotient, 30, "a quotient") as process:
        for pair in pairs:
            process.begin(pair)
        found = [process.finish() for _ in pairs]
    assert [f if isinstance(f, int) else getattr(f.error, "kind", None) for f in found] == [
        3,
        "aborted",
        3,
        "aborted",
        2,
    ]


def test_a_model_that_needs_too_much_memory_fails_and_the_worker_survives(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
         helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )  # fmt: skip
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    worker = Worker.onnx(path, "large")
    worker.memory_bytes = 2**30

    def feed(n: int) -> dict[str, np.ndarray]:
        return {"x": np.ones(1, np.float32), "shape": np.array([n])}

    with worker:
        with pytest.raises(WorkerFailure, match="large on CPUExecutionProvider: run:") as caught:
            worker.run(feed(2**30))
        assert caught.value.kind == "out of memory"
        assert worker.run(feed(3))["y"].shape == (3,)


def test_an_out_of_memory_kill_is_distinguished_from_a_manual_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pool.kernel_kills()
    assert isinstance(pool.death("m", -signal.SIGKILL, kills=before), Killed)
    monkeypatch.setattr(pool, "kernel_kills", lambda: before + 1)
    ended = pool.death("m", -signal.SIGKILL, kills=before)
    assert isinstance(ended, WorkerFailure)
    assert ended.kind == "out of memory"


def test_a_kill_from_outside_is_not_a_verdict_on_a_model(tmp_path: Path) -> None:
    with pytest.raises(Killed, match="SIGKILL"):
        isolated_call.call(30, dies, signal.SIGKILL)
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m") as worker:
        worker.start()
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(Killed, match="m on CPUExecutionProvider: the process was killed"):
            worker.run({"x": np.ones((2, 4), np.float32)})


def test_an_isolated_call_that_hangs_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(WorkerFailure, match="no result within"):
        isolated_call.call(0.5, time.sleep, 60)
    assert time.monotonic() - began < 50  # it would have slept for 60


def test_an_abandoned_process_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def late(seconds: float) -> bytes:
        time.sleep(seconds)
        return bytes(1_000_000)

    def unpicklable(_: None) -> Callable[[], None]:
        return lambda: None

    with isolated_call.Isolated(late, 10, "late") as process:
        process.begin(0.05)  # it answers after the pipe is closed
    with isolated_call.Isolated(unpicklable, 10, "a function cannot be handed over") as other:
        outcome = other.call(None)
    assert isinstance(outcome, isolated_call.Failed)
    assert "pickle" in str(outcome.error).lower()
    with pytest.raises(WorkerFailure, match="KeyError"):
        isolated_call.call(10, raises, KeyError("x"))
    assert capfd.readouterr() == ("", "")


def test_a_failure_names_the_line_in_the_project_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONWARD_PROJECT", str(tmp_path))
    (tmp_path / "model.py").write_text("def build():\n    raise ValueError('no')\n")
    namespace: dict[str, Callable[[], None]] = {}
    exec(compile((tmp_path / "model.py").read_text(), str(tmp_path / "model.py"), "exec"), namespace)
    with pytest.raises(WorkerFailure, match=r"ValueError: no \(model\.py:2\)"):
        isolated_call.call(10, namespace["build"])


def test_an_isolated_call_passes_on_usage_errors_and_wraps_other_errors() -> None:
    with pytest.raises(UsageError, match="look here"):
        isolated_call.call(30, raises, UsageError("look here"))
    with pytest.raises(WorkerFailure, match="KeyError: 'x'"):
        isolated_call.call(30, raises, KeyError("x"))
    with pytest.raises(OSError, match="No space left"):
        isolated_call.call(30, raises, OSError(28, "No space left on device"))
