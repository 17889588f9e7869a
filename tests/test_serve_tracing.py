"""OpenTelemetry spans of requests: off by default, and with the version that answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from onward.registry.errors import UsageError
from onward.registry.serve import tracing
from onward.registry.serve.tracing import Spans
from tests.store_factory import three_candidates
from tests.test_serve import Running


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
