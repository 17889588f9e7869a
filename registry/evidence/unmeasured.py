"""Lists the variants that were not measured, each with its reason.

MLflow has a run for every measured variant. All others are rows of one table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from onward.registry.evidence.records import Measurement, Variant
from onward.registry.evidence.reports import Evidence


@dataclass(frozen=True)
class Unmeasured:
    """A variant that was not measured.

    Attributes:
        variant: The variant's name.
        runtime: The runtime's name; "" if the variant was on none yet.
        stage: The stage in which it was left out.
        status: "failed" if it is not correct, else "not attempted".
        reason: Why it was not measured.
        technique: The technique that made its graph; "" for the plain export.
        precision: Its numeric precision.
        latency_ratio: Its latency relative to the plain export's, if a few rounds were timed; else None.
    """

    variant: str
    runtime: str
    stage: str
    status: str
    reason: str
    technique: str
    precision: str
    latency_ratio: float | None = None


def is_measured(measurement: Measurement) -> bool:
    """Whether a measurement was completed, or failed. One that left the search early is "not attempted"."""
    return measurement.status != "not attempted"


def unmeasured(evidence: Evidence) -> list[Unmeasured]:
    """List the variants that were not measured, in the order of the stages that left them out.

    Args:
        evidence: The model's evidence.
    """
    found = []
    known = {measurement.variant for measurement in evidence.benchmark.measurements}
    made = {"optimize": evidence.optimize.variants, "quantize": evidence.quantize.variants}
    by_name: dict[str, Variant] = {}
    for stage, variants in made.items():
        for variant in variants:
            by_name[variant.name] = variant
            if variant.name in known:
                continue
            passed = variant.status == "passed"
            status = "not attempted" if passed else variant.status
            reason = variant.reason or ("the benchmark did not measure it" if passed else "")
            found.append(
                Unmeasured(variant.name, "", stage, status, reason, variant.technique, variant.precision)
            )  # fmt: skip
    for measurement in evidence.benchmark.measurements:
        if is_measured(measurement):
            continue
        graph = by_name.get(measurement.graph or measurement.variant)
        ratio = measurement.ratios.get("all")
        found.append(
            Unmeasured(
                variant=measurement.variant,
                runtime=measurement.runtime,
                stage="benchmark",
                status=measurement.status,
                reason=measurement.reason,
                technique=graph.technique if graph else "",
                precision=measurement.precision,
                latency_ratio=ratio.value if ratio else None,
            )
        )
    return found


def as_table(rows: list[Unmeasured]) -> dict[str, list[str | float | None]]:
    """The rows as columns, for tables such as MLflow's.

    Args:
        rows: The variants.
    """
    columns: dict[str, list[str | float | None]] = {name: [] for name in Unmeasured.__dataclass_fields__}
    for row in rows:
        for name, value in asdict(row).items():
            columns[name].append(value)
    return columns
