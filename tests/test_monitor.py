"""Monitoring of live versions: `onward serve --monitor` rolls back what decays, and `onward monitor` judges records.

"No request is dropped" means: each request of a client gets an answer of the protocol, by the version that was live
when it ran. The failing version's own errors (500) are its answers. There is no refused connection, no time-out, and no
429 or 503.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from pyarrow import parquet

from onward.registry.artifact.manifest import content_digest, manifest_digest
from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.artifact.onnx_file import describe, digests
from onward.registry.evidence.records import Latency, Measurement, TensorSpec
from onward.registry.evidence.reports import BenchmarkReport, ExportReport
from onward.registry.host import hardware
from onward.registry.monitoring import recorded, reference
from onward.registry.monitoring.decay import Call
from onward.registry.monitoring.drift import FeatureResult
from onward.registry.monitoring.recorded import Row
from onward.registry.monitoring.watch import Alarm, Counts, Deployment, Watch
from onward.registry.names import tag_of
from onward.registry.operations import overview, promotion
from onward.registry.report.monitoring_page import render
from onward.registry.store import sqlite_reader
from onward.registry.store.connection import as_default, ensure_experiment
from onward.registry.store.monitor_tags import (
    ALARM,
    ENVIRONMENT,
    MODEL,
    MONITOR,
    ROLE,
    Recorded,
    about,
    by_environment,
    from_tag,
    to_tag,
)
from onward.registry.store.store import Store
from onward.registry.trust.entry_signatures import create_key
from onward.registry.watch import evidence, live, response
from onward.registry.watch.live import LiveMonitor
from tests.conftest import Command, not_none
from tests.store_factory import GOOD, add_candidate, fresh_store, stage
from tests.test_serve import Client, Running, wait_for

CPU = "CPUExecutionProvider"
SERVER = "0123456789abcdef"
# How much the slow version computes for nothing: products of square matrices of this size.
WORK = 700


def graph(kind: str, factor: float) -> onnx.ModelProto:
    """A model y = factor * x for float32[batch, 4].

    "failing": it fails if an input is over 50, which the recorded inputs are not. "slow": it computes more than needed.
    """
    constants: dict[str, Any] = {"factor": np.array([factor], np.float32)}
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    if kind == "failing":
        constants |= {"limit": np.float32(50), "all": np.array([-1], np.int64), "four": np.array([4], np.int64)}
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Greater", ["most", "limit"], ["over"]),
            helper.make_node("Cast", ["over"], ["one"], to=TensorProto.INT64),
            helper.make_node("Add", ["four", "one"], ["columns"]),
            helper.make_node("Concat", ["all", "columns"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["same"]),
            helper.make_node("Mul", ["same", "factor"], ["y"]),
        ]
    if kind == "slow":
        constants |= {"zero": np.float32(0), "size": np.array([WORK, WORK], np.int64)}
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "zero"], ["nothing"]),
            helper.make_node("Expand", ["nothing", "size"], ["a"]),
            helper.make_node("MatMul", ["a", "a"], ["b"]),
            helper.make_node("MatMul", ["b", "b"], ["c"]),
            helper.make_node("ReduceSum", ["c"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["x", "factor"], ["answer"]),
            helper.make_node("Add", ["answer", "sum"], ["y"]),
        ]
    made = helper.make_graph(
        nodes,
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def add(
    store: Store, kind: str, factor: float, p50_ms: float | None = None, watched: bool = False, parity: str = "passed"
) -> int:
    """Register a version of cnn, with a benchmark on this host if `p50_ms` is given, and a reference if `watched`."""
    client = store._client
    experiment = ensure_experiment(client, "onward")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    specs = [TensorSpec(name=name, dtype="float32", shape=["batch", 4]) for name in ("x", "y")]
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        file = here / "model.onnx"
        onnx.save(graph(kind, factor), file)
        (here / "bundle").mkdir()
        np.savez(here / "bundle" / "inputs.npz", x=x)
        np.savez(here / "bundle" / "outputs.npz", y=x * np.float32(factor))
        (here / "bundle" / "tolerance.json").write_text('{"rtol": 1e-3, "atol": 1e-5}')
        texts = {}
        if watched:
            samples = np.random.default_rng(1).normal(0, 1, (2000, 4)).astype(np.float32)
            texts[reference.PATH] = reference.build({"x": samples}, {"y": samples * np.float32(factor)}).to_json()
        build_folder(here / "model", [file], specs[:1], specs[1:], CPU, here / "bundle", texts=texts)
        run_id = client.create_run(experiment).info.run_id
        if p50_ms is not None:
            _benchmark(client, run_id, file, p50_ms, here)
        logged = client.create_logged_model(experiment, name="cnn-chosen", source_run_id=run_id)
        client.log_model_artifacts(logged.model_id, str(here / "model"))
        client.finalize_logged_model(logged.model_id, "READY")
        tags = {
            **GOOD, "parity": parity, "provider": CPU, "sha256": content_digest(digests(file)),
            "manifest": manifest_digest(here / "model"), "run_id": run_id,
        }  # fmt: skip
    with as_default(client):
        version = client.create_model_version(
            "cnn", source=f"models:/{logged.model_id}", run_id=run_id, model_id=logged.model_id, tags=tags
        )
    return int(version.version)


def _benchmark(client: Any, run_id: str, file: Path, p50_ms: float, here: Path) -> None:
    """Reports of a benchmark on this host, as the pipeline records them."""
    variant, runtime = GOOD["variant"], GOOD["runtime"]
    figures: dict[str, Any] = dict.fromkeys(("mean_ms", "std_ms", "min_ms", "max_ms", "p50_ms"), p50_ms)
    figures |= dict.fromkeys(("p90_ms", "p95_ms", "p99_ms"))
    latency = Latency(size="b2", sizes={"batch": 2}, samples=400, warmup=1, throughput=1.0, **figures)
    measurement = Measurement(
        runtime=runtime, variant=variant, provider=CPU, precision="float32", status="passed", latencies=[latency]
    )
    machine = hardware.describe()
    report = BenchmarkReport(model="cnn", status="passed", machine=machine, measurements=[measurement])
    export = ExportReport(model="cnn", status="passed", graph=describe(file))
    client.log_text(run_id, report.model_dump_json(), "reports/benchmark.json")
    client.log_text(run_id, export.model_dump_json(), "reports/export.json")
    columns = {"runtime": runtime, "variant": variant, "scenario": "single stream", "size": "b2"}
    table = {name: [value] * 400 for name, value in columns.items()}
    table |= {"latency_ms": list(np.random.default_rng(1).lognormal(np.log(p50_ms), 0.1, 400))}
    parquet.write_table(pa.table(table), here / "samples.parquet")
    client.log_artifact(run_id, str(here / "samples.parquet"), "reports")


POLICY: dict[str, Any] = {
    "staging": {
        "from": "candidate",
        "require": ["parity"],
        "on_decay": {"errors": "rollback", "latency": "rollback", "input_drift": "alert", "cooldown_hours": 1e-4},
    }
}


def write_policy(folder: Path, monkeypatch: pytest.MonkeyPatch, **on_decay: Any) -> None:
    """A params.yaml for this process and those that it starts."""
    section = {**POLICY["staging"], "on_decay": {**POLICY["staging"]["on_decay"], **on_decay}}
    (folder / "params.yaml").write_text(yaml.safe_dump({"environments": {"staging": section}}))
    monkeypatch.setenv("ONWARD_PARAMS", str(folder / "params.yaml"))


class Clients:
    """Threads that send requests without a pause, and keep each answer: status, version, and the text of an error."""

    def __init__(self, port: int, values: Any, count: int = 2) -> None:
        self.answers: list[tuple[int, str, str]] = []
        self.faults: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(port, values)) for _ in range(count)]

    def _ask(self, port: int, values: Any) -> None:
        client = Client(port)
        while not self._done.is_set():
            try:
                status, body = client.infer(values)
            except OSError as error:
                self.faults.append(repr(error))
                continue
            self.answers.append((status, str(body.get("model_version", "")), str(body.get("error", ""))))

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def newest(self) -> tuple[int, str]:
        return self.answers[-1][:2] if self.answers else (0, "")


@contextlib.contextmanager
def serving(*options: str) -> Iterator[int]:
    """A real server process; the port that it listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "onward.cli", "serve", "cnn@staging", "--port", str(port), "--poll", "0.2"]
    # A file, because a pipe that nothing reads is full after some errors, and the server would wait.
    with open("server.log", "w+") as log, subprocess.Popen([*command, *options], stdout=log, stderr=log) as process:
        try:
            client = Client(port)

            def ready() -> bool:
                assert process.poll() is None, Path("server.log").read_text()
                with contextlib.suppress(OSError):
                    return client.call("/v2/health/ready")[0] == 200
                return False

            wait_for(ready)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            print(Path("server.log").read_text())  # pytest shows it if the test fails
    assert "Traceback" not in Path("server.log").read_text()


def test_a_failing_and_a_slow_version_are_rolled_back_and_no_request_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    write_policy(tmp_path, monkeypatch)
    store._client.create_registered_model("cnn")
    add(store, "good", 1, p50_ms=0.05)
    failing = add(store, "failing", 2, parity="failed")
    slow = add(store, "slow", 3, p50_ms=0.05, parity="failed")
    stage(store, 1)
    values = np.full((2, 4), 100, np.float32)

    def deployed() -> tuple[int, str]:
        entry = store.head("staging", "cnn").history.live
        assert entry is not None
        return entry.candidate_version, entry.actor

    with serving("--monitor", "--monitor-window", "0.5", "--record", str(tmp_path / "requests")) as port:
        with Clients(port, values) as clients:
            wait_for(lambda: len(clients.answers) > 50)
            for version, kind in ((failing, "errors"), (slow, "latency")):
                promoted = time.monotonic()
                promotion.promote("cnn", "staging", version, reason="in a hurry", force=True, actor="ann", store=store)
                wait_for(lambda: deployed() == (1, "monitor"))
                assert time.monotonic() - promoted < 60
                entry = store.head("staging", "cnn").history.live
                assert entry is not None
                assert entry.kind == "rollback"
                assert f"automatic rollback: {kind}: " in entry.reason
                before = len(clients.answers)
                wait_for(lambda before=before: len(clients.answers) > before and clients.newest() == (200, "1"))
            metrics = Client(port).call("/metrics")[1].decode()
        assert clients.faults == []
        assert {status for status, _, _ in clients.answers} == {200, 500}
        assert {version for status, version, _ in clients.answers if status == 200} == {"1", str(slow)}
        assert all("ONNX Runtime failed" in text for status, _, text in clients.answers if status == 500)
        assert f'onward_automatic_rollbacks{{model="cnn",version="{failing}"}} 1.0' in metrics
        assert f'onward_automatic_rollbacks{{model="cnn",version="{slow}"}} 1.0' in metrics
    actors = [entry.actor for entry in overview.history("cnn", "staging")["staging"].history.counted]
    assert actors == ["ann", "ann", "monitor", "ann", "monitor"]
    (state,) = overview.status()[0].environments
    assert state.decay is None  # the alarms were about versions that are not live any more
    rows, problems = recorded.read(tmp_path / "requests", "cnn@staging")
    assert problems == []
    assert {row.version for row in rows} == {"1", str(failing), str(slow)}
    assert {row.outcome for row in rows if row.version == str(failing)} == {"failed"}


def test_traffic_with_drift_raises_an_alarm_and_no_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    write_policy(tmp_path, monkeypatch)
    store._client.create_registered_model("cnn")
    stage(store, add(store, "good", 1, watched=True))
    stage(store, add(store, "good", 2, watched=True))
    monkeypatch.setattr(live, "LEAST_SAMPLES", 20)
    chance = np.random.default_rng(2)
    with Running("cnn@staging") as running:
        monitor = LiveMonitor(running.server.models.values(), running.server.metrics, 0.5)
        running.server.observe(monitor)

        def alarmed(shift: float) -> bool:
            running.client.infer(chance.normal(shift, 1, (20, 4)).astype(np.float32))
            (state,) = monitor._served.values() or [None]
            return state is not None and bool(state.alarms)

        def windows() -> int:
            return max((len(state.windows) for state in monitor._served.values()), default=0)

        while windows() < 3:
            assert not alarmed(0.0)
        wait_for(lambda: alarmed(2.0))
        wait_for(lambda: overview.status()[0].environments[0].decay)
        assert 'onward_drift{model="cnn",version="2"}' in running.client.call("/metrics")[1].decode()
        assert running.client.infer()[1]["model_version"] == "2"
    alarms = not_none(overview.status()[0].environments[0].decay).alarms
    kinds = {text.partition(":")[0] for text in alarms}
    assert {"input_drift"} <= kinds <= {"input_drift", "output_drift"}
    assert [entry.actor for entry in overview.history("cnn", "staging")["staging"].entries()] == ["ann", "ann"]
    code, out, _ = onward("status")
    assert (code, out.count("! ALARM: "), "input x" in out) == (0, 1, True)
    facts = json.loads(onward("status", "--json")[1])[0]["environments"]["staging"]["decay"]
    assert facts
    assert sqlite_reader.alarms() == store.alarms() != {}


def record(
    folder: Path, store: Store, count: int, *, entry: int, shift: float = 0.0, ms: float = 1.0, start: float = 1e9,
    failing: int = 0, host: str = "another CPUExecutionProvider x1",
) -> float:  # fmt: skip
    """Record requests of an entry, one per second, and return when the last one arrived."""
    found = store.entry("staging", "cnn", entry)
    chance = np.random.default_rng(entry)
    rows = []
    for number in range(count):
        x = chance.normal(shift, 1, (2, 4)).astype(np.float32)
        failed = failing and number % failing == 0
        rows.append(
            Row(
                "cnn@staging", str(found.candidate_version), found.sha256, entry, host, f"r{number}", start + number,
                1000 * ms, 0.0, 1000 * ms, "failed" if failed else "success", "live", 8,
                (recorded.to_tensor("x", x, "keep", 10**6),),
                () if failed else (recorded.to_tensor("y", x * np.float32(entry), "keep", 10**6),),
            )
        )  # fmt: skip
    recorded.write(folder, "cnn@staging", rows, start, SERVER)
    return start + count


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Version 1, and then version 2, were promoted to staging; entry 2 is live."""
    store = fresh_store(tmp_path, monkeypatch)
    write_policy(tmp_path, monkeypatch, latency="alert")
    store._client.create_registered_model("cnn")
    for factor in (1, 2):
        stage(store, add(store, "good", factor, p50_ms=1.0, watched=True))
    return store


def test_the_job_finds_no_alarm_in_sound_requests(two: Store, tmp_path: Path, onward: Command) -> None:
    folder = tmp_path / "requests"
    then = record(folder, two, 100, entry=1)
    record(
        folder, two, 300, entry=2, start=then, host=str(evidence.Host(hardware.fingerprint(hardware.describe()), CPU))
    )
    code, out, err = onward("monitor", "cnn@staging", "--recorded", str(folder), "--window", "60")
    assert (code, err) == (0, "")
    assert "cnn@staging, version 2, entry 2: 300 requests, 0 failed" in out
    assert "times that of the release's benchmark" in out
    code, out, _ = onward("monitor", "cnn@staging", "--recorded", str(folder), "--window", "60", "--json")
    facts = json.loads(out)
    assert (facts["alarm"], facts["entry"], facts["latency_from"]) == (False, 2, "the release's benchmark")
    (run,) = two._client.search_runs([not_none(two.files.experiment("staging"))], "tags.`onward.role` = 'monitor'")
    assert run.info.run_name == "cnn: monitoring"
    points = two._client.get_metric_history(run.info.run_id, "monitor/p50_ratio")
    assert len({point.step for point in points}) >= 4
    assert any(name.startswith("monitor/drift/") for name in run.data.metrics)
    page = two._client.download_artifacts(run.info.run_id, "monitoring.html", str(tmp_path))
    assert "no alarm" in Path(page).read_text()


def test_the_job_rolls_back_once_and_then_waits(
    two: Store, tmp_path: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_policy(tmp_path, monkeypatch, cooldown_hours=5)
    folder, report = tmp_path / "requests", tmp_path / "page.html"
    then = record(folder, two, 200, entry=1)
    then = record(folder, two, 200, entry=2, start=then, failing=3)
    command = ("monitor", "cnn@staging", "--recorded", str(folder), "--window", "60", "--report", str(report))
    assert onward(*command, "--dry-run")[0] == 1
    assert two.head("staging", "cnn").history.base == 2
    monkeypatch.setenv("ONWARD_NO_ROLLBACK", "1")
    code, out, _ = onward(*command)
    assert (code, "no automatic rollback: ONWARD_NO_ROLLBACK is set" in out) == (1, True)
    monkeypatch.delenv("ONWARD_NO_ROLLBACK")
    write_policy(tmp_path, monkeypatch, cooldown_hours=5, paused=True)
    assert "on_decay.paused is true" in onward(*command)[1]
    write_policy(tmp_path, monkeypatch, cooldown_hours=5)
    code, out, _ = onward(*command)
    assert (code, "rolled back to version 1, entry 3" in out) == (1, True)
    assert "rolled back to version 1" in report.read_text()
    code, out, _ = onward("history", "cnn")
    assert "monitor rolled back to version 1 (sha256" in out
    assert "automatic rollback: errors: 67 of 200 requests failed (33.5%)" in out
    code, out, _ = onward(*command)
    assert (code, "no recorded request is of the live version, entry 3" in out) == (0, True)
    promotion.promote("cnn", "staging", 2, reason="again", store=two)
    record(folder, two, 200, entry=4, start=then, failing=2)
    code, out, _ = onward(*command)
    assert "at most 2.6% is acceptable (the version before)" in out  # entry 1, because entry 2 was rolled back
    assert (code, "entry 3 was an automatic rollback, and the next one is possible at" in out) == (1, True)
    assert two.head("staging", "cnn").history.base == 4
    (state,) = overview.status(two)[0].environments
    assert state.decay is not None
    assert any("no automatic rollback" in text for text in state.decay.alarms)


def test_drift_in_recorded_requests_is_an_alarm_and_never_a_rollback(
    two: Store, tmp_path: Path, onward: Command
) -> None:
    folder = tmp_path / "requests"
    record(folder, two, 400, entry=2, shift=2.0)
    code, out, _ = onward("monitor", "cnn@staging", "--recorded", str(folder), "--window", "60")
    assert (code, "ALARM: input_drift: differences from the reference: input x" in out) == (1, True)
    assert two.head("staging", "cnn").history.base == 2


def test_what_is_missing_is_said_and_is_no_traceback(
    two: Store, tmp_path: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "requests"

    def look(*options: str, target: str = "cnn@staging") -> tuple[int, str]:
        code, out, err = onward("monitor", target, *options)
        assert "Traceback" not in out + err
        return code, out + err

    code, text = look()
    assert (code, "ONWARD_RECORDED" in text) == (2, True)
    code, text = look("--recorded", str(folder))
    assert (code, "there is no such folder" in text) == (2, True)
    folder.mkdir()
    code, text = look("--recorded", str(folder))
    assert (code, "has no recorded requests of cnn@staging" in text) == (2, True)
    assert look("--recorded", str(folder), target="cnn/1")[0] == 2
    assert look("--recorded", str(folder), target="cnn@nowhere")[0] == 2
    assert look("--recorded", str(folder), "--once", "--every", "5")[0] == 2
    monkeypatch.setenv("ONWARD_RECORDED", str(folder))
    record(folder, two, 5, entry=2)
    code, text = look()
    assert (code, "too few requests: 5 are recorded" in text, "drift: 5 answered requests" in text) == (0, True, True)
    bad = recorded.folder_of(folder, "cnn@staging") / f"20260101T000000Z-{SERVER}.parquet"
    bad.write_bytes(b"PAR1 half a file")
    code, text = look("--dry-run")
    assert (code, "cannot be read and is left out" in text) == (0, True)
    stage(two, add(two, "good", 5))
    record(folder, two, 300, entry=3, start=2e9)
    code, text = look("--window", "60")
    assert (code, "the version has no reference" in text, "latency: the version's run has no reports" in text) == (
        0, True, True,
    )  # fmt: skip


def test_a_signed_log_needs_a_key_of_the_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    ann, monitor = tmp_path / "ann.pem", tmp_path / "monitor.pem"
    signers = {"ann": create_key(ann), "monitor": create_key(monitor)}
    section = {**POLICY["staging"], "signers": signers}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"environments": {"staging": section}}))
    monkeypatch.setenv("ONWARD_PARAMS", str(tmp_path / "params.yaml"))
    monkeypatch.setenv("ONWARD_SIGNING_KEY", str(ann))
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
        stage(store, factor)
    alarms = [Alarm("errors", "9 of 9 requests failed")]
    monkeypatch.delenv("ONWARD_SIGNING_KEY")
    found = response.respond(store, "cnn", "staging", 2, alarms)
    assert (found.rolled_back, "set ONWARD_SIGNING_KEY" in found.text) == (False, True)
    monkeypatch.setenv("ONWARD_SIGNING_KEY", str(ann))
    found = response.respond(store, "cnn", "staging", 2, alarms)
    assert (found.rolled_back, "add a signer named monitor" in found.text) == (False, True)
    monkeypatch.setenv("ONWARD_SIGNING_KEY", str(monitor))
    assert (
        response.respond(store, "cnn", "staging", 1, alarms).text == "no automatic rollback: entry 1 is no longer live"
    )
    assert response.respond(store, "cnn", "staging", 2, [Alarm("input_drift", "x")]) == response.Response()
    assert response.respond(store, "cnn", "staging", 2, alarms).rolled_back
    entry = store.head("staging", "cnn").history.live
    assert entry is not None
    assert (entry.actor, entry.signer, entry.restores) == ("monitor", "monitor", 1)


def test_the_report_escapes_what_it_shows_and_its_charts_have_the_figures() -> None:
    hostile = "<script>alert(1)</script>"
    watch = Watch(Deployment("cnn@production", hostile, "a" * 64, 7), Counts(1000, 3))
    for number in range(100):
        watch.add(1.7e9 + number, "failed" if number % 2 else "success", Call(8, 5.0) if number % 2 == 0 else None)
    watch.features = (FeatureResult(f"input {hostile}: mean", "input", "PSI", 0.4, 0.1, 0.2, True, (True,) * 5),)
    page = render([watch.judgement(notes=[hostile])], f"rolled back {hostile}")
    assert hostile not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    text = page.partition('id="specs">')[2].partition("</script>")[0]
    specs = json.loads(text)
    assert set(specs) == {"d0-errors", "d0-latency"}
    assert {round(one["value"]) for one in specs["d0-errors"]["data"]["values"]} == {50}
    assert "50 of 100 requests failed (50.0%)" in page


def test_alarms_of_several_monitors_stand_together_and_old_ones_are_left_out() -> None:
    now = datetime(2026, 11, 28, tzinfo=UTC)
    one = Recorded(7, now.isoformat(), ("errors: 3 of 9", "latency: slow"))
    other = Recorded(7, (now - timedelta(hours=1)).isoformat(), ("errors: 3 of 9", "shadow: differs"))
    earlier = Recorded(6, now.isoformat(), ("errors: of another entry",))
    old = Recorded(7, (now - timedelta(days=3)).isoformat(), ("errors: long ago",))
    tags = {
        tag_of(ALARM, name): to_tag(each) for name, each in (("a", one), ("b b", other), ("c", earlier), ("d", old))
    }
    tags |= {
        tag_of(ALARM, "none"): to_tag(Recorded(7, now.isoformat(), ())),
        tag_of(ALARM, "bad"): '{"entry": 7}',
        ROLE: MONITOR,
    }
    found = by_environment([{**tags, ENVIRONMENT: "production", MODEL: "cnn"}])
    together = about(found["production", "cnn"], 7, now)
    assert together == Recorded(7, now.isoformat(), ("errors: 3 of 9", "latency: slow", "shadow: differs"))
    assert about(found["production", "cnn"], 8, now) is None


def test_a_tag_has_room_for_many_alarms_in_any_language() -> None:
    recorded = Recorded(7, "2026-11-28T00:00:00+00:00", tuple(f"input_drift: {'漢' * 5000} {n}" for n in range(20)))
    assert len(to_tag(recorded)) < 8000
    assert (from_tag(to_tag(recorded)) or recorded).alarms[-1] == "further alarms: see the run"


def test_beside_other_runs_a_call_may_take_as_long_as_the_benchmark_says(two: Store, tmp_path: Path) -> None:
    rows = 200 * [("single stream", "b2", 2.0), ("single stream", "b8", 6.0), ("4 callers", "b2", 3.0)]
    columns = dict(zip(("scenario", "size", "latency_ms"), map(list, zip(*rows, strict=True)), strict=True))
    table = {"variant": ["v"] * 600, "runtime": ["cpu"] * 600, **columns}
    file = tmp_path / "samples.parquet"
    parquet.write_table(pa.table(table), file)
    for workers, expected in ((1, {(8, 2.0), (32, 6.0)}), (3, {(8, 3.0), (32, 9.0)}), (8, None)):
        calls = evidence._calls(file, "v", "cpu", {"b2": 8, "b8": 32}, workers)
        assert (None if calls is None else {(call.size, call.ms) for call in calls}) == expected
    tags = not_none(two.candidate("cnn", 2)).evidence
    here = evidence.Host(hardware.fingerprint(hardware.describe()), CPU)
    assert evidence.parse_host(str(here)) == here
    assert evidence.parse_host("something else") is None
    for host, words in (
        (here, ""), (replace(here, workers=4), "did not measure 4 runs"), (replace(here, joined=True), "joined"),
        (replace(here, fingerprint="0"), "not the one of the release's benchmark"),
        (replace(here, provider="CUDAExecutionProvider"), "not the one of the release's benchmark"),
    ):  # fmt: skip
        found, note = evidence.baseline(two, tags, host)
        assert (found is None, words in note) == (bool(words), True)
