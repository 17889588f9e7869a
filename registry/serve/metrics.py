"""What the server measures, in Prometheus' text format. Metrics that Triton has, too, have Triton's names.

Source of the names: Triton Inference Server's documentation of metrics. Durations are sums in µs, as there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

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
    "onward_shadow_requests": "Requests that the shadow version computed, too",
    "onward_shadow_failed": "Requests that failed on the shadow version and got an answer from the live one",
    "onward_shadow_dropped": "Requests for the shadow version that did not fit into its queue, or came during a swap",
    "onward_canary_requests": "Requests that were sent to the canary version first",
    "onward_canary_errors": "Requests that the canary version failed on; the live version answered them",
    "onward_canary_stops": "Times that a canary version was stopped because of its errors",
}
_GAUGES = {
    "onward_ready": "1 if the model is loaded, warmed up and replayed",
    "onward_live_entry": "The number of the live entry in the environment's log",
    "onward_registry_reachable": "1 if the last look at the registry succeeded",
    "onward_drift": "Measures of drift that raise an alarm",
    "onward_decay": "Alarms about errors and latency",
    "onward_shadow_agreement": "The share of the live version's answers that the shadow version keeps",
    "onward_shadow_latency_ratio": "The median of the shadow version's run times over the live version's",
    "onward_canary_share": "The share of requests that is sent to the canary version",
}
_READ = {"onward_queued_requests": "Requests that wait or run"}
# The upper ends of the histogram of batch sizes, in samples.
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BATCH = "onward_batch_size"


@dataclass(eq=False)
class Metrics:
    """Counters and gauges of all models. Every method may be called from any thread."""

    counters: dict[str, dict[Labels, float]] = field(default_factory=lambda: {name: {} for name in _COUNTED})
    gauges: dict[str, dict[Labels, float]] = field(default_factory=lambda: {name: {} for name in _GAUGES})
    sizes: dict[Labels, dict[int, int]] = field(default_factory=dict)
    readers: dict[str, list[Callable[[], tuple[Labels, float]]]] = field(
        default_factory=lambda: {name: [] for name in _READ}
    )
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

    def observe_batch(self, labels: Labels, samples: int) -> None:
        """Count one run of a model and version by its number of samples."""
        with self._lock:
            known = self.sizes.setdefault(labels, {})
            known[samples] = known.get(samples, 0) + 1

    def read(self, name: str, reader: Callable[[], tuple[Labels, float]]) -> None:
        """Add a series of a gauge that is read when the metrics are shown.

        Args:
            name: the gauge.
            reader: returns model and version, and the value.
        """
        with self._lock:
            self.readers[name].append(reader)

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
            sizes = {labels: dict(known) for labels, known in self.sizes.items()}
            readers = {name: list(found) for name, found in self.readers.items()}
        gauges |= {name: dict(reader() for reader in found) for name, found in readers.items()}
        batches = HistogramMetricFamily(_BATCH, "Samples in each run of the model", labels=("model", "version"))
        for labels, known in sizes.items():
            ends = [(str(float(end)), sum(n for size, n in known.items() if size <= end)) for end in _BATCHES]
            ends.append(("+Inf", sum(known.values())))
            batches.add_metric(labels, ends, sum(size * n for size, n in known.items()))
        yield batches
        for name, sums in counted.items():
            # As a "counter", the library would add `_total` to the name, which Triton's metrics do not have.
            metric = Metric(name, _COUNTED[name], "unknown")
            for (model, version), value in sums.items():
                metric.add_sample(name, {"model": model, "version": version}, value)
            yield metric
        for name, values in gauges.items():
            gauge = GaugeMetricFamily(name, (_GAUGES | _READ)[name], labels=("model", "version"))
            for labels, value in values.items():
                gauge.add_metric(labels, value)
            yield gauge
