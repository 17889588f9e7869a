"""Chooses the fastest variant that is still right; when none is provably better, the plain export."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from registry.evidence import BenchmarkReport, SelectReport, load
from registry.vocabulary import PLAIN, Choice, Measurement
from stages import command, paths
from stages.params import section
from stages.parity.quality import measure_of, quality_drop, quality_faults
from stages.settings import Agreement, Budget

# A gain under 2 % is not worth another graph: with ten variants, chance alone makes one look that much faster.
WORTHWHILE = 0.98


def select(model: str, folder: Path) -> SelectReport:
    """Choose, per runtime, the fastest variant within the budget that is provably no slower than the plain export.

    Writes build/MODEL/select/report.json, with the reason for every variant in words.
    """
    settings = section(model, "select")
    measured = load(BenchmarkReport, paths.build(model, "benchmark") / "report.json")
    if measured.status == "not attempted":
        return SelectReport(model=model, status="not attempted", reason=measured.reason)
    if not measured.passed:
        return SelectReport(model=model, status="not attempted", reason="benchmark failed")
    assert measured.reference is not None
    by_name = measure_of(settings.budget, settings.quality is not None)
    choices: list[Choice] = []
    for runtime in dict.fromkeys(m.runtime for m in measured.measurements):
        field = [m for m in measured.measurements if m.runtime == runtime]
        choices += choose(field, measured.reference, settings.budget, settings.tolerance.agreement)
    chosen = next((choice for choice in choices if choice.chosen), None)
    if chosen is None:
        plain = next(choice for choice in choices if choice.variant == PLAIN)
        return SelectReport(
            model=model,
            status="failed",
            reason=f"no variant is within the budget; the plain export: {plain.reason}",
            quality_measure=by_name,
            choices=choices,
        )
    winner = next(m for m in measured.measurements if (m.variant, m.runtime) == (chosen.variant, chosen.runtime))
    return SelectReport(
        model=model,
        status="passed",
        variant=winner.variant,
        runtime=winner.runtime,
        files=winner.files,
        quality_measure=by_name,
        quality_budget=settings.budget.quality_drop,
        choices=choices,
    )


def choose(
    field: list[Measurement], reference: Measurement, budget: Budget, floors: Agreement | None = None
) -> list[Choice]:
    """Judge the variants of one runtime, the plain export among them; at most one is chosen.

    A variant can win when it meets the budget, the confidence interval of its ratio to the plain export lies wholly
    under WORTHWHILE over all sizes, and at no size wholly above 1. Of those, the one of the smallest ratio wins.
    """
    verdicts: dict[str, str] = {}
    drops = {m.variant: quality_drop(m, reference.quality, budget) for m in field}
    for m in field:
        verdicts[m.variant] = "; ".join(_against(m, reference.quality, budget, floors))
    able = [m for m in field if not verdicts[m.variant] and m.variant != PLAIN]
    faster = [m for m in able if m.ratios["all"].high < WORTHWHILE and not _slower_at(m)]
    best = min(faster, key=lambda m: m.ratios["all"].value, default=None)
    if best is None and not verdicts[PLAIN]:
        best = next(m for m in field if m.variant == PLAIN)
    choices = []
    for m in field:
        overall = m.ratios.get("all")
        if m is best:
            reason = _why_best(m)
        elif verdicts[m.variant]:
            reason = verdicts[m.variant]
        elif m.variant == PLAIN:
            assert best is not None
            reason = f"{best.variant} is provably faster"
        else:
            reason = _why_not(m, best)
        choices.append(
            Choice(
                variant=m.variant,
                runtime=m.runtime,
                chosen=m is best,
                reason=reason,
                ratio=overall,
                quality_drop=drops[m.variant],
            )
        )
    return choices


def _against(
    m: Measurement, reference_quality: float | None, budget: Budget, floors: Agreement | None
) -> Iterable[str]:
    """What speaks against a variant apart from its speed."""
    if m.status != "passed":
        yield m.reason
        return
    yield from quality_faults(m, reference_quality, budget, floors)
    size_mb = sum(file.size_bytes for file in m.files) / 1e6
    if budget.size_mb is not None and size_mb > budget.size_mb:
        yield f"{size_mb:.2f} MB is more than the {budget.size_mb:g} of budget.size_mb"
    if budget.latency_ms is not None and m.latencies[0].p50_ms > budget.latency_ms:
        yield (
            f"p50 of {m.latencies[0].p50_ms:.3g} ms at {m.latencies[0].size} is more than the "
            f"{budget.latency_ms:g} of budget.latency_ms"
        )
    if budget.memory_mb is not None and (m.peak_memory_mb or 0) > budget.memory_mb:
        yield f"{m.peak_memory_mb:.0f} MB at peak is more than the {budget.memory_mb:g} of budget.memory_mb"


def _slower_at(m: Measurement) -> list[str]:
    return [size for size, ratio in m.ratios.items() if size != "all" and ratio.low > 1]


def _why_best(m: Measurement) -> str:
    if m.variant == PLAIN:
        return "no variant within the budget is provably faster"
    ratio = m.ratios["all"]
    return f"the fastest within the budget: {1 / ratio.value:.2f} times as fast as the plain export " + _interval(m)


def _why_not(m: Measurement, best: Measurement | None) -> str:
    ratio = m.ratios["all"]
    slower = _slower_at(m)
    if ratio.low > 1:
        return f"slower than the plain export: {ratio.value:.2f} times its latency {_interval(m)}"
    if slower:
        at = ", ".join(f"{size} ({m.ratios[size].value:.2f} times its latency)" for size in slower)
        return f"slower than the plain export at {at}"
    if ratio.high >= WORTHWHILE:
        return f"not provably faster than the plain export: {ratio.value:.2f} times its latency {_interval(m)}"
    assert best is not None
    return f"faster than the plain export ({1 / ratio.value:.2f} times), but {best.variant} is faster still"


def _interval(m: Measurement) -> str:
    ratio = m.ratios["all"]
    return f"(95 % interval of the latency ratio {ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    command.run("select", select)
