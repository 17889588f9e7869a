"""What the server measures, in Prometheus' text format. Metrics that Triton has, too, have Triton's names.

Source of the names: Triton Inference Server's documentation of metrics. Durations are sums in µs, as there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

Labels = tuple[str, str]  # model, version

_COUNTED = {
    "nv_inference_request_success": "Requests that got an answer",
    "nv_inference_request_failure": "Requests that got an error",
    "nv_inference_count": "Samples that were computed",
    "nv_inference_exec_count": "Runs of the model",
    "nv_inference_request_duration_us": "Sum of the durations of requests in µs",
    "nv_inference_queue_duration_us": "Sum of the waiting times in the queue in µs",
    "nv_inference_compute_infer_duration_us": "Sum of the durations of runs of the model in µs",
    "onward_swaps": "Changes to another version",
    "onward_refused_versions": "Versions that became live and could not be loaded, or did not repeat their answers",
    "onward_recorded_requests": "Requests that were recorded",
    "onward_recording_dropped": "Requests that the recorder dropped, because its queue was full or the disk failed",
    "onward_monitor_dropped": "Requests that the monitor dropped, because its queue was full",
    "onward_automatic_rollbacks": "Rollbacks by the monitor of this server",
}
_GAUGES = {
    "onward_ready": "1 if the model is loaded, warmed up and replayed",
    "onward_live_entry": "The number of the live entry in the environment's log",
    "onward_registry_reachable": "1 if the last look at the registry succeeded",
    "onward_queued_requests": "Requests that wait or run",
    "onward_drift": "Measures of drift that raise an alarm",
    "onward_decay": "Alarms about errors and latency",
}


@dataclass(eq=False)
class Metrics:
    """Counters and gauges of all models. Every method may be called from any thread."""

    counters: dict[str, dict[Labels, float]] = field(default_factory=lambda: {name: {} for name in _COUNTED})
    gauges: dict[str, dict[Labels, float]] = field(default_factory=lambda: {name: {} for name in _GAUGES})
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def count(self, labels: Labels, **amounts: float) -> None:
        """Add to counters, by name, of a model and version."""
        with self._lock:
            for name, amount in amounts.items():
                self.counters[name][labels] = self.counters[name].get(labels, 0.0) + amount

    def set(self, labels: Labels, **values: float) -> None:
        """Set gauges, by name, of a model and version; values of the model's other versions are dropped."""
        with self._lock:
            for name, value in values.items():
                series = self.gauges[name]
                for other in [other for other in series if other[0] == labels[0]]:
                    del series[other]
                series[labels] = value

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All series, for prometheus_client."""
        with self._lock:
            counted = {name: dict(series) for name, series in self.counters.items()}
            gauges = {name: dict(series) for name, series in self.gauges.items()}
        for name, sums in counted.items():
            # As a "counter", the library would add `_total` to the name, which Triton's metrics do not have.
            metric = Metric(name, _COUNTED[name], "unknown")
            for (model, version), value in sums.items():
                metric.add_sample(name, {"model": model, "version": version}, value)
            yield metric
        for name, values in gauges.items():
            gauge = GaugeMetricFamily(name, _GAUGES[name], labels=("model", "version"))
            for labels, value in values.items():
                gauge.add_metric(labels, value)
            yield gauge
