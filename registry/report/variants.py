"""All variants of a model in one list: what each one gained and lost, and why it was chosen or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from onward.registry.evidence.records import PLAIN, REFERENCE, Choice, Measurement, Ratio, Variant
from onward.registry.evidence.reports import Evidence
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.evidence.uncertainty import speed
from onward.registry.report.wording import megabytes, number, percent

State = Literal["chosen", "tied", "not chosen", "dropped early", "failed", "not tried"]

# The order of the list: first what was chosen, last what was not even tried.
STATES: tuple[State, ...] = ("chosen", "tied", "not chosen", "dropped early", "failed", "not tried")


@dataclass(frozen=True)
class VariantRow:
    """One variant on one runtime.

    Attributes:
        number: The row's number, from 1. Charts label points with it.
        name: The variant's name.
        runtime: The runtime's name; empty if the variant was not measured.
        precision: The numeric precision; empty if unknown.
        technique: How the variant was made.
        state: What became of the variant.
        reason: Why it was chosen or not.
        ratio: Its latency relative to the plain export's on the same runtime.
        compared: Its latency relative to the plain export's on the first runtime; None if that was not measured.
        screened: Whether the ratio comes from the short rounds of screening.
        quality: The model's own measure; higher is better.
        drop: What its answers lost by `measure`.
        budget: What they may lose.
        measure: The measure of the loss.
        size_bytes: The size of its files.
        p50_ms: The median latency at each size, in ms.
        on_front: Whether it is on the Pareto front of latency, quality and size.
        options: Its session options in words.
        float_layers: The number of layers that stay in float.
    """

    number: int
    name: str
    runtime: str
    precision: str
    technique: str
    state: State
    reason: str
    ratio: Ratio | None = None
    compared: Ratio | None = None
    screened: bool = False
    quality: float | None = None
    drop: float | None = None
    budget: float | None = None
    measure: str = ""
    size_bytes: int | None = None
    p50_ms: dict[str, float] = field(default_factory=dict)
    on_front: bool = False
    options: str = ""
    float_layers: int = 0

    @property
    def label(self) -> str:
        """The variant and its runtime. The runtime is left out if it is `cpu` or unknown."""
        return self.name if self.runtime in ("", "cpu") else f"{self.name} ({self.runtime})"

    @property
    def used(self) -> float | None:
        """The share of the allowed loss that the variant uses up; infinite if no loss is allowed and there is one.

        Unlike the loss, this share is comparable between variants that were judged by different measures. None if the
        loss or the allowed loss is unknown.
        """
        if self.drop is None or self.budget is None or math.isnan(self.drop):
            return None
        if self.budget <= 0:
            return 0.0 if self.drop <= 0 else math.inf
        return self.drop / self.budget

    @property
    def speed(self) -> str:
        """How many times as fast as the plain export on the same runtime, with the uncertainty; "" if not measured."""
        if self.ratio is None:
            return ""
        if self.name == PLAIN:
            return "1"
        if self.screened:
            return f"about {1 / self.ratio.value:.1f}"
        return speed(self.ratio)

    @property
    def speed_on_chart(self) -> str:
        """How many times as fast as the plain export on the first runtime, if that was measured; else as `speed`."""
        return self.speed if self.compared is None or self.screened else speed(self.compared)

    @property
    def quality_cell(self) -> str:
        """The quality; "" if it is unknown."""
        return "" if self.quality is None else number(self.quality, 4)

    @property
    def used_text(self) -> str:
        """The share of the allowed loss in per cent; "" if it is unknown."""
        if self.used == math.inf:
            return "more than 100 %"
        return "" if self.used is None else percent(max(self.used, 0.0))

    @property
    def size_text(self) -> str:
        """The size of the files in megabytes; "" if it is unknown."""
        return "" if self.size_bytes is None else megabytes(self.size_bytes)


def variant_rows(evidence: Evidence) -> list[VariantRow]:
    """List all variants that any stage made, tried or ruled out.

    Args:
        evidence: The model's evidence.

    Returns:
        The chosen ones first, then by state, and within a state the fastest first.
    """
    found = [*_measured(evidence), *_only_judged(evidence), *_unmeasured(evidence)]

    def key(item: dict[str, Any]) -> tuple[int, float]:
        ratio = item.get("compared") or item.get("ratio")
        return STATES.index(item["state"]), ratio.value if ratio else math.inf

    return [VariantRow(number=place, **item) for place, item in enumerate(sorted(found, key=key), 1)]


def _made(evidence: Evidence) -> list[Variant]:
    return [*evidence.optimize.variants, *evidence.quantize.variants]


def _measured(evidence: Evidence) -> Iterator[dict[str, Any]]:
    made = {variant.name: variant for variant in _made(evidence)}
    choices = {(choice.variant, choice.runtime): choice for choice in evidence.select.choices}
    for measurement in evidence.benchmark.measurements:
        choice = choices.get((measurement.variant, measurement.runtime))
        variant = made.get(measurement.graph or measurement.variant)
        yield {
            "name": measurement.variant,
            "runtime": measurement.runtime,
            "precision": measurement.precision,
            "technique": _technique(measurement, variant),
            "state": _state(measurement, choice),
            "reason": measurement.reason
            or (choice.reason if choice else "")
            or evidence.select.reason
            or "no reason recorded",
            "ratio": measurement.ratios.get("all"),
            "compared": measurement.host_ratios.get("all"),
            "screened": not measurement.latencies,
            "size_bytes": _size(measurement, variant),
            "p50_ms": {latency.size: latency.p50_ms for latency in measurement.latencies},
            "on_front": bool(choice and choice.on_front),
            "options": "" if measurement.options == SessionOptions() else str(measurement.options),
            "float_layers": len(variant.float_layers) if variant else 0,
            **_loss(evidence, measurement, choice, variant),
        }


def _only_judged(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """Choices without a measurement, if the report of the benchmark is missing."""
    measured = {(measurement.variant, measurement.runtime) for measurement in evidence.benchmark.measurements}
    for choice in evidence.select.choices:
        if (choice.variant, choice.runtime) not in measured:
            yield {
                "name": choice.variant,
                "runtime": choice.runtime,
                "precision": "",
                "technique": "",
                "state": "chosen" if choice.chosen else "tied" if choice.tied else "not chosen",
                "reason": choice.reason,
                "ratio": choice.ratio,
                "compared": choice.host_ratio,
                "drop": choice.quality_drop,
                "budget": choice.quality_budget,
                "measure": choice.quality_measure,
                "on_front": choice.on_front,
            }


def _loss(
    evidence: Evidence, measurement: Measurement, choice: Choice | None, variant: Variant | None
) -> dict[str, Any]:
    """The loss of a measured variant. Of one that left the search early, it is what `quantize` found."""
    quality = measurement.quality
    if quality is None and variant is not None:
        quality = variant.quality
    if choice is not None and choice.quality_drop is not None:
        budget = choice.quality_budget if choice.quality_budget is not None else evidence.select.quality_budget
        return {
            "quality": quality,
            "drop": choice.quality_drop,
            "budget": budget,
            "measure": choice.quality_measure or evidence.select.quality_measure,
        }
    return {"quality": quality, **_drop_of_quality(evidence, quality)}


def _drop_of_quality(evidence: Evidence, quality: float | None) -> dict[str, Any]:
    """The loss by the model's own measure, if it is the measure that decides and is known."""
    reference, select = evidence.quantize.reference_quality, evidence.select
    budget = next((c.quality_budget for c in select.choices if c.quality_measure == "quality"), None)
    if quality is None or reference is None or budget is None:
        return {}
    return {"drop": reference - quality, "budget": budget, "measure": "quality"}


def _unmeasured(evidence: Evidence) -> Iterator[dict[str, Any]]:
    measured = {measurement.variant for measurement in evidence.benchmark.measurements}
    measured |= {choice.variant for choice in evidence.select.choices}
    stopped = evidence.benchmark.reason if not evidence.benchmark.measurements else ""
    for variant in _made(evidence):
        if variant.name in measured:
            continue
        yield {
            "name": variant.name,
            "runtime": "",
            "precision": variant.precision,
            "technique": variant.technique,
            "state": "failed" if variant.status == "failed" else "not tried",
            "reason": variant.reason or stopped or "not measured",
            "quality": variant.quality,
            "size_bytes": variant.size_bytes,
            "float_layers": len(variant.float_layers),
            **_drop_of_quality(evidence, variant.quality),
        }


def _technique(measurement: Measurement, variant: Variant | None) -> str:
    if measurement.variant in (PLAIN, REFERENCE) or variant is None:
        return "the export itself" if measurement.variant == PLAIN else ""
    return f"{variant.technique}, with its own session options" if measurement.graph else variant.technique


def _state(measurement: Measurement, choice: Choice | None) -> State:
    if choice is not None and choice.chosen:
        return "chosen"
    if measurement.status == "failed":
        return "failed"
    if measurement.status == "not attempted":
        return "dropped early" if measurement.ratios else "not tried"
    return "tied" if choice is not None and choice.tied else "not chosen"


def _size(measurement: Measurement, variant: Variant | None) -> int | None:
    if measurement.files:
        return sum(file.size_bytes for file in measurement.files)
    return variant.size_bytes if variant else None
