"""What a graph of lower precision has lost, and whether that is within the budget: one rule for every stage.

With a quality of its own (params.yaml: quality), a model is held to that. Without one it is held to its answers: to
those of `budget.min_snr_db` and `budget.min_cosine` that are set, or where neither is, to the share of samples that
keep their top-1 answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from registry.vocabulary import Measurement
from stages.settings import Agreement, Budget

# Qualities are means over samples: two that differ by less than this are equal but for rounding.
ROUNDING = 1e-9


class Judged(Protocol):
    """What a Variant and a Measurement say of their answers over the evaluation set."""

    @property
    def precision(self) -> str: ...
    @property
    def quality(self) -> float | None: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def snr_db(self) -> float | None: ...
    @property
    def cosine(self) -> float | None: ...


def measure_of(budget: Budget, labelled: bool) -> str:
    """By what a model's quality is judged: "quality", "fidelity" or "agreement"."""
    if labelled:
        return "quality"
    return "agreement" if budget.min_snr_db is None and budget.min_cosine is None else "fidelity"


def quality_drop(judged: Judged, reference_quality: float | None, budget: Budget) -> float | None:
    """Quality lost against the reference: in the quality's own unit; where there is none, 1 - the worst sample's cosine
    or the share of answers that differ, by what the budget names. Where nothing can be measured, a float graph that
    passed parity lost nothing, and of any other nothing is known (null). Negative where the graph is the better one."""
    measure = measure_of(budget, reference_quality is not None)
    lost = {
        "quality": _minus(reference_quality, judged.quality),
        "fidelity": _minus(1.0, judged.cosine),
        "agreement": _minus(1.0, judged.agreement),
    }[measure]
    if lost is None and judged.precision == "float32":
        return 0.0
    return lost


def quality_faults(
    judged: Judged, reference_quality: float | None, budget: Budget, floors: Agreement | None = None
) -> Iterable[str]:
    """In words, how a graph's answers break the budget; nothing where they are within it.

    `floors` are the shares of top-1 answers that a graph of lower precision has to keep at least (params.yaml:
    tolerance.agreement); they bind unless fidelity is what the budget names.
    """
    measure = measure_of(budget, reference_quality is not None)
    drop = quality_drop(judged, reference_quality, budget)
    if drop is None:
        yield "its quality could not be measured, so that it cannot be held to the budget"
    elif measure != "fidelity" and not drop <= budget.quality_drop + ROUNDING:
        yield f"quality drops by {drop:.4g}, more than the {budget.quality_drop:g} of budget.quality_drop"
    if budget.min_cosine is not None and judged.cosine is not None and not judged.cosine >= budget.min_cosine:
        yield f"the worst cosine, {judged.cosine:.5f}, is under the {budget.min_cosine:g} of budget.min_cosine"
    if budget.min_snr_db is not None and judged.snr_db is not None and not judged.snr_db >= budget.min_snr_db:
        yield f"{judged.snr_db:.1f} dB of signal to noise is under the {budget.min_snr_db:g} of budget.min_snr_db"
    floor = getattr(floors, judged.precision, None)
    if measure != "fidelity" and floor is not None and judged.agreement is not None and judged.agreement < floor:
        yield f"gives the original's answer to {judged.agreement:.1%} of the samples, {floor:.0%} wanted"


def ceiling_faults(m: Measurement, budget: Budget) -> Iterable[str]:
    """In words, which of the budget's ceilings a measurement breaks, as far as it has been measured."""
    size_mb = sum(file.size_bytes for file in m.files) / 1e6
    if budget.size_mb is not None and size_mb > budget.size_mb:
        yield f"{size_mb:.2f} MB is more than the {budget.size_mb:g} of budget.size_mb"
    if budget.latency_ms is not None and m.latencies and m.latencies[0].p50_ms > budget.latency_ms:
        yield (
            f"p50 of {m.latencies[0].p50_ms:.3g} ms at {m.latencies[0].size} is more than the "
            f"{budget.latency_ms:g} of budget.latency_ms"
        )
    if budget.memory_mb is not None and (m.peak_memory_mb or 0) > budget.memory_mb:
        yield f"{m.peak_memory_mb:.0f} MB at peak is more than the {budget.memory_mb:g} of budget.memory_mb"


def _minus(of: float | None, value: float | None) -> float | None:
    return None if of is None or value is None else of - value
