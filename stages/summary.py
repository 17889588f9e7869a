"""Writes the figures of a model that `dvc metrics` and `dvc plots` show."""

from __future__ import annotations

import json
from typing import Any

from onward.registry.evidence.headline import by_batch, headline
from onward.registry.evidence.latencies import mean_p50_ms
from onward.registry.evidence.records import Measurement
from onward.registry.evidence.reports import BenchmarkReport, Report, SelectReport, load
from onward.registry.files import write_atomically
from onward.stages.config import paths

METRICS, VARIANTS, LATENCY = "metrics.json", "variants.json", "latency.json"


def write(model: str, report: Report) -> None:
    """Write build/MODEL/metrics.json, variants.json and latency.json. They contain no figures if nothing was chosen.

    Args:
        model: Name of the model.
        report: The report of the select stage.
    """
    metrics: dict[str, float] = {}
    variants: list[dict[str, Any]] = []
    latency: list[dict[str, Any]] = []
    if isinstance(report, SelectReport) and report.passed:
        benchmark = load(BenchmarkReport, paths.build(model, "benchmark") / "report.json")
        chosen = next(m for m in benchmark.measurements if (m.variant, m.runtime) == (report.variant, report.runtime))
        choice = next(c for c in report.choices if c.chosen)
        metrics = {name: rounded(value) for name, value in headline(chosen, choice).items()}
        variants = _variants(report, benchmark)
        latency = _latency(chosen)
    for name, content in ((METRICS, metrics), (VARIANTS, variants or {}), (LATENCY, latency or {})):
        path = paths.build(model, name)
        if path.is_symlink():  # to DVC's cache, where files must not change
            path.unlink()
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _variants(report: SelectReport, benchmark: BenchmarkReport) -> list[dict[str, Any]]:
    """One row for each variant that was measured in full: its mean p50 in ms over the sizes, and its quality."""
    rows = []
    for measurement, choice in zip(benchmark.measurements, report.choices, strict=True):
        if measurement.latencies and choice.ratio is not None:
            rows.append(
                {
                    "variant": f"{measurement.variant} ({measurement.runtime})",
                    "quality_drop": rounded(choice.quality_drop or 0.0),
                    "quality": None if measurement.quality is None else rounded(measurement.quality),
                    "p50_ms": rounded(mean_p50_ms(measurement.latencies)),
                    "chosen": choice.chosen,
                }
            )
    return rows


def _latency(chosen: Measurement) -> list[dict[str, Any]]:
    """The chosen variant's p50 by size of the first dimension."""
    return [{"batch": size, "p50_ms": rounded(p50)} for size, p50 in by_batch(chosen).get("by_batch/p50_ms", [])]


def rounded(value: float) -> float:
    """Round to what a measurement can tell: three digits, or four decimals for numbers below 1."""
    return round(value, 4) if abs(value) < 1 and round(value, 4) else float(f"{value:.3g}")
