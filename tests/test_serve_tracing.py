"""What is told about each request: lines of the log and OpenTelemetry spans, with identifier and version."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from onward.registry.cli.serving import _JsonLines
from onward.registry.errors import UsageError
from onward.registry.serve import tracing
from onward.registry.serve.tracing import Spans
from tests.store_factory import three_candidates
from tests.test_serve import Grpc, Running


def test_nothing_is_traced_unless_a_variable_names_an_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing.from_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert tracing.from_environment() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    found = tracing.from_environment()
    assert isinstance(found, Spans)
    found.close()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.from_environment() is None


def test_an_exporter_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setattr(tracing, "entry_points", lambda **_: ())
    with pytest.raises(UsageError, match="pip install opentelemetry-exporter-otlp-proto-http"):
        tracing.from_environment()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "other")
    with pytest.raises(UsageError, match="the exporter 'other' is not installed"):
        tracing.from_environment()


def test_each_request_becomes_a_span_with_its_version_and_identifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_candidates(tmp_path, monkeypatch)
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "from_environment", lambda: Spans(exporter))
    with Running() as server:
        assert server.client.infer()[0] == 200
        assert server.client.infer(np.zeros((2, 3)))[0] == 400
    good, bad = exporter.get_finished_spans()
    assert good.name == "infer cnn"
    facts = dict(good.attributes or {})
    assert (facts["onward.version"], facts["onward.request_id"], facts["onward.outcome"]) == ("1", "7", "success")
    assert good.end_time is not None
    assert good.start_time is not None
    assert 0 < good.end_time - good.start_time < 60e9
    assert (bad.status.is_ok, dict(bad.attributes or {})["onward.outcome"]) == (False, "invalid")


def test_each_request_is_a_line_of_the_log_with_its_identifier_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    three_candidates(tmp_path, monkeypatch)
    with caplog.at_level(logging.DEBUG, "onward.serve.requests"), Running(grpc_port=0) as server:
        assert server.client.infer()[0] == 200
        assert server.client.infer(np.zeros((2, 3)))[0] == 400
        assert Grpc(server.server.grpc_port).infer(id="a\nb").id == "a\nb"
    records = [record for record in caplog.records if record.name == "onward.serve.requests"]
    texts = [record.getMessage().partition(" in ")[0] for record in records]
    good = "request 7: cnn version 1: success"
    assert texts == [good, "request 7: cnn version 1: invalid", "request a\\nb: cnn version 1: success"]
    found = json.loads(_JsonLines().format(records[0]))
    assert (found["request"], found["model"], found["version"], found["outcome"]) == ("7", "cnn", "1", "success")


def test_requests_are_not_logged_unless_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_candidates(tmp_path, monkeypatch)
    with Running() as server:
        assert server.server.models["cnn"].observers == []
