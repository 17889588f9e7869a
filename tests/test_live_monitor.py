"""The monitor inside the server, one request after the other, without a server and without a store."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from onward.registry.errors import StoreUnreachable, UsageError
from onward.registry.serve.metrics import Metrics
from onward.registry.serve.observer import Observation
from onward.registry.watch import evidence, live, response, results
from onward.registry.watch.live import LiveMonitor

TARGET = "cnn@production"


class Fakes:
    """What the monitor calls instead of the store: what it was asked for, and what it is answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.asked: list[tuple[int, list[str]]] = []
        self.written: list[tuple[int, list[str], str]] = []
        self.answer: Any = response.Response("rolled back", True)
        self.unreachable = False
        loaded: Any = SimpleNamespace(origin={"entry": 1}, path=tmp_path / "model.onnx", providers=["cpu"], evidence={})
        self.model: Any = SimpleNamespace(
            target=TARGET, name="cnn", session=SimpleNamespace(loaded=loaded), shadow=None,
            sizes=SimpleNamespace(batching=SimpleNamespace(delay_s=0.0)),
        )  # fmt: skip
        monkeypatch.setattr(live, "Store", lambda **_: None)
        monkeypatch.setattr(evidence, "this_host", lambda _: evidence.Host("f", "cpu"))
        monkeypatch.setattr(evidence, "baseline", lambda *_: (None, "latency: no benchmark"))
        monkeypatch.setattr(response, "wanted", lambda alarms, _: list(alarms))
        monkeypatch.setattr(response, "respond", self.respond)
        monkeypatch.setattr(results, "write", self.write)
        self.monitor = LiveMonitor(cast(Any, [self.model]), Metrics(), 1.0)

    def respond(self, _: Any, __: str, ___: str, entry: int, alarms: Any) -> Any:
        self.asked.append((entry, [alarm.kind for alarm in alarms]))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def write(self, _: Any, __: str, ___: str, found: Any, ____: float, text: str, *_____: Any) -> None:
        if self.unreachable:
            raise StoreUnreachable("no answer")
        self.written.append((found.deployment.entry, [alarm.kind for alarm in found.alarms], text))

    def send(self, count: int, outcome: str = "success", entry: int = 1, **changes: Any) -> None:
        """Let the monitor see requests, one per second."""
        self.model.session.loaded.origin["entry"] = entry
        for number in range(count):
            fields: dict[str, Any] = {
                "model": "cnn", "target": TARGET, "version": str(entry), "sha256": str(entry) * 64, "entry": entry,
                "request": "", "arrived": 1e9 * entry + number, "latency_us": 900.0, "queue_us": 0.0,
                "compute_us": 900.0, "outcome": outcome, "inputs": {"x": np.ones((1, 4), np.float32)},
                "outputs": {"y": np.ones((1, 4), np.float32)} if outcome == "success" else None,
            }  # fmt: skip
            self.monitor.handle(Observation(**{**fields, **changes}))
        self.monitor.tick(last=False)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fakes:
    return Fakes(monkeypatch, tmp_path)


def test_a_rollback_is_asked_for_once_and_the_next_deployment_begins_anew(fakes: Fakes) -> None:
    fakes.send(200)
    assert fakes.asked == []
    fakes.send(20, "failed", entry=2)
    assert fakes.asked == [(2, ["errors"])]
    fakes.send(20, "failed", entry=2)
    assert len(fakes.asked) == 1
    assert fakes.written[-1] == (2, ["errors"], "rolled back")
    fakes.send(200, entry=3)
    assert len(fakes.asked) == 1
    fakes.send(5, entry=2)  # requests of the old version that finish late
    (found,) = fakes.monitor.judgements()
    assert (found.deployment.entry, found.requests, found.alarms) == (3, 200, ())
    fakes.send(30, "failed", entry=4)  # the measure is entry 3, and not the failed entry 2
    assert fakes.asked[-1] == (4, ["errors"])
    counters = fakes.monitor._metrics.counters["onward_automatic_rollbacks"]
    assert counters == {("cnn", "2"): 1.0, ("cnn", "4"): 1.0}


def test_an_alarm_that_was_not_answered_is_tried_again_later(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    fakes.answer = response.Response("no automatic rollback: cool-down")
    fakes.send(200)
    fakes.send(20, "failed", entry=2)
    fakes.send(1, "failed", entry=2)
    assert len(fakes.asked) == 1
    monkeypatch.setattr(live, "_AGAIN_S", 0.0)
    fakes.send(1, "failed", entry=2)
    assert len(fakes.asked) == 2
    assert caplog.text.count("cool-down") == 1
    fakes.answer = response.Response("rolled back", True)
    fakes.send(1, "failed", entry=2)
    fakes.send(1, "failed", entry=2)
    assert len(fakes.asked) == 3


@pytest.mark.parametrize("fault", [StoreUnreachable("no answer"), UsageError("params.yaml: wrong")])
def test_a_store_that_does_not_answer_stops_nothing(
    fakes: Fakes, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.answer, fakes.unreachable = fault, True
    fakes.send(200)
    for _ in range(3):
        fakes.send(20, "failed", entry=2)
    assert caplog.text.count("could not be written to MLflow") == 2  # once for each entry
    assert caplog.text.count(f"no automatic rollback: {fault}") == 1
    fakes.unreachable = False
    fakes.send(200, entry=3)
    fakes.monitor.tick(last=True)
    assert fakes.written[-1][0] == 3


def test_requests_of_others_and_refused_ones_do_not_count(fakes: Fakes) -> None:
    fakes.send(50)
    fakes.send(50, "failed", cause="canary")
    fakes.send(50, "failed", cause="shadow")
    fakes.send(50, "failed", target="cnn@staging")
    fakes.send(50, "refused")
    (found,) = fakes.monitor.judgements()
    assert (found.requests, found.failures) == (50, 0)
    assert fakes.asked == []


def test_a_shadow_that_differs_is_an_alarm_about_this_live_version_only(fakes: Fakes) -> None:
    fakes.send(10)
    shadow = SimpleNamespace(requests=300, live_sha256="1" * 64, version="5", faults=["output y: changed 0.3"])
    fakes.model.shadow = SimpleNamespace(evidence=shadow)
    (found,) = fakes.monitor.judgements()
    assert [str(alarm) for alarm in found.alarms] == [
        "shadow: the candidate, version 5, differs from it on 300 requests: output y: changed 0.3"
    ]
    others: list[dict[str, Any]] = [{"requests": 299}, {"live_sha256": "2" * 64}, {"faults": []}]
    for changes in others:
        fakes.model.shadow = SimpleNamespace(evidence=SimpleNamespace(**{**vars(shadow), **changes}))
        assert fakes.monitor.judgements()[0].alarms == ()


def test_the_sample_of_a_window_is_bounded_in_bytes(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_WINDOW_BYTES", 150 * 20_000)
    large = {"x": np.ones((1, 5000), np.float32), "huge": np.ones(10**6, np.float32)}
    fakes.send(1000, inputs=large, outputs={})
    (state,) = fakes.monitor._served.values()
    assert len(state.sample.items) in (0, 150)
    assert all(set(inputs) == {"x"} for _, inputs, _ in state.sample.items)
