"""OpenTelemetry traces: one span per request, with the model, the version and the request's identifier.

Off unless the standard variables name an exporter: OTEL_TRACES_EXPORTER (such as "otlp"), or an address in
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT. The exporter of OTLP is a package of its own
(opentelemetry-exporter-otlp-proto-http or -grpc); the SDK is installed with MLflow's client. Spans are made from
observations, so the path of a request does not change.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from onward.registry.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from onward.registry.serve.observer import Observation

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# The names under which packages register their exporters, by the value of OTEL_TRACES_EXPORTER.
_PACKAGES = {"otlp": ("otlp_proto_http", "otlp_proto_grpc", "otlp")}


class Spans:
    """Exports one span per request (an Observer), in batches and from a thread of its own.

    Args:
        exporter: receives the spans.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "onward")})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("onward.serve")

    def seen(self, request: Observation) -> None:
        """Make the span of a request.

        Args:
            request: the request.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        begun = int(request.arrived * 1e9)
        facts: dict[str, Any] = {
            "onward.model": request.model,
            "onward.target": request.target,
            "onward.version": request.version,
            "onward.sha256": request.sha256,
            "onward.entry": request.entry,
            "onward.request_id": request.request,
            "onward.outcome": request.outcome,
            "onward.cause": request.cause,
            "onward.queue_us": request.queue_us,
            "onward.compute_us": request.compute_us,
        }
        span = self._tracer.start_span(
            f"infer {request.model}", kind=SpanKind.SERVER, attributes=facts, start_time=begun
        )
        if request.outcome != "success":
            span.set_status(Status(StatusCode.ERROR, request.outcome))
        span.end(begun + int(request.latency_us * 1e3))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def from_environment() -> Spans | None:
    """The spans that the environment variables ask for; None if they name no exporter.

    Raises:
        UsageError: the exporter is not installed.
    """
    name = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not name and any(os.environ.get(variable) for variable in _ENDPOINTS):
        name = "otlp"
    if name in ("", "none") or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    wanted = _PACKAGES.get(name, (name,))
    for known in wanted:
        for found in entry_points(group="opentelemetry_traces_exporter", name=known):
            return Spans(found.load()())
    hint = ": pip install opentelemetry-exporter-otlp-proto-http" if name == "otlp" else ""
    raise UsageError(f"OTEL_TRACES_EXPORTER: the exporter {name!r} is not installed{hint}")
