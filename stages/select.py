"""Chooses the fastest variant that is still right, on each runtime; when none is provably better, the plain export."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onward.registry.evidence.records import PLAIN, Choice, Measurement, Winner
from onward.registry.evidence.reports import BenchmarkReport, SelectReport, load
from onward.registry.evidence.session_options import SessionOptions
from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import section
from onward.stages.parity.budget import Judgement, Loss, ceiling_faults
from onward.stages.parity.reference_answers import recorded_kinds

# A gain under 2 % is not worth another graph: with ten variants, chance alone makes one look that much faster.
WORTHWHILE = 0.98

# Within 1 % two latencies are the same as far as a race can tell: there, the better answers win.
SAME = 1.01


def select(model: str, folder: Path) -> SelectReport:
    """Choose, per runtime, the fastest variant within the budget that is provably no slower than the plain export.

    Writes build/MODEL/select/report.json: the winner of each runtime, the Pareto front over latency, quality and size,
    and the reason for every variant in words.
    """
    settings = section(model, "select")
    measured = load(BenchmarkReport, paths.build(model, "benchmark") / "report.json")
    if measured.status == "not attempted":
        return SelectReport(model=model, status="not attempted", reason=measured.reason)
    if not measured.passed:
        return SelectReport(model=model, status="not attempted", reason="benchmark failed")
    assert measured.reference is not None
    judgement = Judgement.of(measured.reference.quality, settings, recorded_kinds(model))
    choices: list[Choice] = []
    winners: list[Winner] = []
    for runtime in dict.fromkeys(m.runtime for m in measured.measurements):
        field = [m for m in measured.measurements if m.runtime == runtime]
        judged = choose(field, judgement)
        choices += judged
        winners += [_winner(m) for m, choice in zip(field, judged, strict=True) if choice.chosen]
    report = SelectReport(
        model=model,
        status="passed" if winners else "failed",
        winners=winners,
        choices=choices,
    )
    chosen = next((choice for choice in choices if choice.chosen), None)
    if chosen is not None:
        report.quality_measure, report.quality_budget = chosen.quality_measure, chosen.quality_budget
    if winners:
        report.variant, report.runtime, report.files = winners[0].variant, winners[0].runtime, winners[0].files
    else:
        plain = next(choice for choice in choices if choice.variant == PLAIN)
        report.reason = f"no variant is within the budget; the plain export: {plain.reason}"
    return report


def choose(field: list[Measurement], judgement: Judgement) -> list[Choice]:
    """Judge the variants of one runtime, the plain export among them; at most one is chosen.

    A variant can win when it was measured in full and meets the budget, the confidence interval of its ratio to the
    plain export lies wholly under WORTHWHILE over all sizes, and at no size wholly above 1. Of those, the one of the
    smallest ratio wins; among those within SAME of it, the one that loses least quality, then the one that needs no
    session options of its own, then the smallest.
    """
    losses = {m.variant: judgement.loss(m) for m in field}
    drops = {name: None if loss is None else loss.used for name, loss in losses.items()}
    faults = {m.variant: "; ".join(_against(m, judgement)) for m in field}
    able = [m for m in field if not faults[m.variant] and m.latencies]
    faster = [m for m in able if m.variant != PLAIN and m.ratios["all"].high < WORTHWHILE and not _slower_at(m)]
    best: Measurement | None = None
    if faster:
        first = min(m.ratios["all"].value for m in faster)
        same = [m for m in faster if m.ratios["all"].value <= first * SAME]
        best = min(same, key=lambda m: (drops[m.variant] or 0.0, m.options != SessionOptions(), _size(m)))
    else:
        best = next((m for m in able if m.variant == PLAIN), None)
    front = {m.variant for m in pareto(able, drops)}
    return [
        Choice(
            variant=m.variant,
            runtime=m.runtime,
            chosen=m is best,
            on_front=m.variant in front,
            reason=_why_best(m) if m is best else faults[m.variant] or _why_not(m, best, drops),
            ratio=m.ratios.get("all"),
            **_told(losses[m.variant]),
        )
        for m in field
    ]


def _told(loss: Loss | None) -> dict[str, Any]:
    """The fields of a choice that say what its variant lost."""
    if loss is None:
        return {}
    return {"quality_drop": loss.value, "quality_budget": loss.limit, "quality_measure": loss.measure}


def pareto(able: list[Measurement], drops: dict[str, float | None]) -> list[Measurement]:
    """Those of `able` that no other one dominates: at least as good in latency, quality and size, and better in one.
    `drops` are what each lost, as a share of what it may lose."""

    def costs(m: Measurement) -> tuple[float, float, int]:
        return m.ratios["all"].value, drops[m.variant] or 0.0, _size(m)

    def dominated(m: Measurement) -> bool:
        return any(
            costs(other) != costs(m) and all(a <= b for a, b in zip(costs(other), costs(m), strict=True))
            for other in able
        )

    return [m for m in able if not dominated(m)]


def _winner(m: Measurement) -> Winner:
    middle = math.exp(sum(math.log(latency.p50_ms) for latency in m.latencies) / len(m.latencies))
    return Winner(
        variant=m.variant, runtime=m.runtime, provider=m.provider, files=m.files, options=m.options, p50_ms=middle
    )


def _against(m: Measurement, judgement: Judgement) -> Iterable[str]:
    """What speaks against a variant apart from its speed."""
    if m.status != "passed":
        yield m.reason
        return
    yield from judgement.faults(m)
    yield from ceiling_faults(m, judgement.budget)


def _size(m: Measurement) -> int:
    return sum(file.size_bytes for file in m.files)


def _slower_at(m: Measurement) -> list[str]:
    return [size for size, ratio in m.ratios.items() if size != "all" and ratio.low > 1]


def _why_best(m: Measurement) -> str:
    if m.variant == PLAIN:
        return "no variant within the budget is provably faster"
    ratio = m.ratios["all"]
    return f"the fastest within the budget: {1 / ratio.value:.2f} times as fast as the plain export " + _interval(m)


def _why_not(m: Measurement, best: Measurement | None, drops: dict[str, float | None]) -> str:
    if m.variant == PLAIN:
        assert best is not None
        return f"{best.variant} is provably faster"
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
    if ratio.value <= best.ratios["all"].value * SAME:
        better = (
            "loses less quality" if (drops[best.variant] or 0) < (drops[m.variant] or 0) else "is simpler or smaller"
        )
        return f"as fast as {best.variant} ({1 / ratio.value:.2f} times), which {better}"
    return f"faster than the plain export ({1 / ratio.value:.2f} times), but {best.variant} is faster still"


def _interval(m: Measurement) -> str:
    ratio = m.ratios["all"]
    return f"(95 % interval of the latency ratio {ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    command.run("select", select)
