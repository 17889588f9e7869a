"""The distribution of the latencies of single calls, from the benchmark's samples.parquet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onward.registry.evidence.records import Latency, Measurement
from onward.registry.evidence.reports import Evidence

# The scenario of the race: one call after the other.
_RACE = "single stream"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Distribution:
    """The latencies of one variant at one size on one runtime, in ms.

    Attributes:
        runtime: The runtime's name.
        variant: The variant's name.
        size: The size's label.
        samples: The number of timed calls.
        low: The 5th percentile, or the minimum if the calls themselves are unknown.
        first: The 25th percentile; None if unknown.
        median: The median.
        third: The 75th percentile; None if unknown.
        high: The 95th percentile, or None if there are too few calls.
    """

    runtime: str
    variant: str
    size: str
    samples: int
    low: float
    first: float | None
    median: float
    third: float | None
    high: float | None


def read_distributions(path: Path) -> tuple[Distribution, ...]:
    """Read the latencies of the race.

    Args:
        path: The file samples.parquet.

    Returns:
        One distribution for each runtime, variant and size, in this order; empty if there is no such file or pandas is
        not installed.
    """
    if not path.is_file():
        return ()
    try:
        import pandas as pd

        table = pd.read_parquet(path)
    except (ImportError, OSError, ValueError):  # without pandas, or not a complete file
        return ()
    columns = ["runtime", "variant", "size"]
    if not {*columns, "scenario", "latency_ms"} <= set(table.columns):
        return ()
    groups = table[table["scenario"] == _RACE].groupby(columns, sort=True, observed=True)["latency_ms"]
    found = []
    for (runtime, variant, size), values in groups:
        low, first, median, third, high = (float(values.quantile(q)) for q in _QUANTILES)
        found.append(Distribution(str(runtime), str(variant), str(size), len(values), low, first, median, third, high))
    return tuple(found)


def distributions(evidence: Evidence, sampled: Iterable[Distribution]) -> list[Distribution]:
    """The distributions of all variants that were measured in full, and of the original, the fastest first.

    Args:
        evidence: The model's evidence.
        sampled: The distributions of single calls. Where one is missing, the report's own figures are used.
    """
    benchmark = evidence.benchmark
    known = {(one.runtime, one.variant, one.size): one for one in sampled}
    originals = [benchmark.reference, benchmark.compiled, benchmark.compiled_bfloat16]
    found = [
        known.get((measurement.runtime, measurement.variant, latency.size), _of_report(measurement, latency))
        for measurement in (*filter(None, originals), *benchmark.measurements)
        for latency in measurement.latencies
    ]
    return sorted(found, key=lambda one: (one.median, one.variant))


def _of_report(measurement: Measurement, latency: Latency) -> Distribution:
    return Distribution(
        runtime=measurement.runtime,
        variant=measurement.variant,
        size=latency.size,
        samples=latency.samples,
        low=latency.min_ms,
        first=None,
        median=latency.p50_ms,
        third=None,
        high=latency.p95_ms if latency.p95_ms is not None else latency.p90_ms,
    )
