"""The few metrics that every measured variant has under the same names. MLflow's columns and charts start with them.

They have no slash in their names, so MLflow shows them in the first section of charts, "Model metrics".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onward.registry.evidence.latencies import mean_p50_ms
from onward.registry.evidence.records import Choice, Latency, Measurement, worst_by_output

# The unit or meaning of each metric, for descriptions.
MEANINGS = {
    "p50_ms": "median latency in ms (weighted geometric mean over the sizes)",
    "speedup": "how many times as fast as the plain export",
    "quality": "the model's own measure, higher is better",
    "quality_drop": "the loss that the choice is based on, by the measure in `quality_measure`",
    "fidelity_snr_db": "signal-to-noise ratio of the answers against the original in dB; 200 if they are equal",
    "size_mb": "size of the files in MB",
}
# The signal-to-noise ratio of equal answers is infinite, which no chart can show. float32 has about 150 dB.
EQUAL_DB = 200.0


def headline(measurement: Measurement, choice: Choice | None, *, is_original: bool = False) -> dict[str, float]:
    """A variant's headline metrics; those that were not measured are left out.

    Args:
        measurement: the variant's measurement.
        choice: the decision about the variant; None if there is none.
        is_original: whether it is the original model, which has no loss against itself.
    """
    ratio = (measurement.host_ratios or measurement.ratios).get("all")
    found = {
        "p50_ms": mean_p50(measurement.latencies),
        "speedup": 1 / ratio.value if ratio and ratio.value else None,
        "quality": measurement.quality,
        "quality_drop": choice.quality_drop if choice else None,
        "fidelity_snr_db": None if is_original else _snr_db(measurement),
        "size_mb": sum(file.size_bytes for file in measurement.files) / 1e6 if measurement.files else None,
    }
    # Rounded, because MLflow's columns show as many digits as a value has.
    return {name: float(f"{value:.6g}") for name, value in found.items() if value is not None}


def mean_p50(latencies: Sequence[Latency]) -> float | None:
    """The weighted geometric mean of the p50 over the sizes, in ms, as in the choice; None without latencies.

    Args:
        latencies: the latencies at each size.
    """
    if not any(latency.weight for latency in latencies) or any(latency.p50_ms <= 0 for latency in latencies):
        return None
    return mean_p50_ms(latencies)


def _snr_db(measurement: Measurement) -> float | None:
    """The signal-to-noise ratio over the evaluation samples, else the worst one over all cases."""
    value = measurement.snr_db
    if value is None:
        known = [one.snr_db for one in worst_by_output(measurement.parity).values() if one.snr_db is not None]
        value = min(known, default=None)
    return None if value is None or math.isnan(value) else min(value, EQUAL_DB)


def by_batch(measurement: Measurement) -> dict[str, list[tuple[int, float]]]:
    """The p50 and the throughput over the batch size: (size, value) pairs, which become steps of a metric.

    They come from the batch sweep. Without one, they come from the sizes of the race that differ in the first
    dimension only.

    Args:
        measurement: the variant's measurement.
    """
    points: dict[int, tuple[float, float]] = {}
    if measurement.scenarios and measurement.scenarios.sweep:
        for point in measurement.scenarios.sweep:
            points[next(iter(point.sizes.values()))] = (point.p50_ms, point.throughput)
    else:
        rest = [tuple(latency.sizes.values())[1:] for latency in measurement.latencies]
        for latency, others in zip(measurement.latencies, rest, strict=True):
            if latency.sizes and others == rest[0]:
                points[next(iter(latency.sizes.values()))] = (latency.p50_ms, latency.throughput)
    if not points:
        return {}
    return {
        "by_batch/p50_ms": [(size, p50) for size, (p50, _) in sorted(points.items())],
        "by_batch/items_per_s": [(size, throughput) for size, (_, throughput) in sorted(points.items())],
    }


def by_callers(measurement: Measurement) -> dict[str, list[tuple[int, float]]]:
    """The latency and the throughput over the number of concurrent callers, as (callers, value) pairs.

    Args:
        measurement: the variant's measurement.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for callers in measurement.scenarios.callers if measurement.scenarios else []:
        figures = {"p50_ms": callers.p50_ms, "p95_ms": callers.p95_ms, "items_per_s": callers.throughput}
        for name, value in figures.items():
            if value is not None:
                series.setdefault(f"by_callers/{name}", []).append((callers.callers, value))
    return series
