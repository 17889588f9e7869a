"""Chooses the fastest variant within the budget on each runtime, or the plain export if none is provably faster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.latencies import mean_p50_ms
from onward.registry.evidence.records import PLAIN, Choice, Measurement, Winner, worst_size
from onward.registry.evidence.reports import BenchmarkReport, OnHost, SelectReport, load
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.evidence.uncertainty import overlap
from onward.stages import command, summary
from onward.stages.config import paths
from onward.stages.config.load import section
from onward.stages.config.schema import ModelParams
from onward.stages.parity.budget import Judgement, Loss, ceiling_faults
from onward.stages.parity.reference_answers import recorded_kinds
from onward.stages.reports import blocked

# Latency ratio that a variant must stay below. Among ten variants, chance alone makes one look 2 % faster.
WORTHWHILE = 0.98

# The folder in benchmark's with the measurements on other classes of machines, one folder per class, and the file there
# that says what the machines of the class have in common.
ELSEWHERE, HOST_CLASS = "elsewhere", "host.json"

# Ratios within this factor of the smallest one count as equal, because a race cannot tell them apart; the more accurate
# variant wins.
SAME = 1.01


def select(model: str, folder: Path) -> SelectReport:
    """Choose, for each runtime, the fastest variant within the budget that is provably no slower than the plain export.

    Writes build/MODEL/select/report.json: the winner of each runtime, the Pareto front over latency, quality and size,
    and the reason for every variant in words. Then writes the figures for `dvc metrics` and `dvc plots` beside it
    (stages/summary.py).
    """
    settings = section(model, "select")
    reason = blocked(model, "benchmark")
    if reason:
        return SelectReport(model=model, status="not attempted", reason=reason)
    measured = load(BenchmarkReport, paths.build(model, "benchmark") / "report.json")
    choices, winners = _chosen(model, settings, measured)
    report = SelectReport(
        model=model,
        status="passed" if winners else "failed",
        winners=winners,
        choices=choices,
        elsewhere=list(_elsewhere(model, settings)),
    )
    chosen = next((choice for choice in choices if choice.chosen), None)
    if chosen is not None:
        report.quality_measure, report.quality_budget = chosen.quality_measure, chosen.quality_budget
    if winners:
        report.variant, report.runtime, report.files = winners[0].variant, winners[0].runtime, winners[0].files
    else:
        plain = next(choice for choice in choices if choice.variant == PLAIN)
        report.reason = f"no variant is within the budget; the plain export: {plain.reason}"
    for other in report.elsewhere:
        if not other.winners:
            report.status = "failed"
            report.reason = report.reason or f"hosts.{other.name}: {other.reason}"
    return report


def _chosen(
    model: str, settings: ModelParams, measured: BenchmarkReport, host: str = ""
) -> tuple[list[Choice], list[Winner]]:
    """The choice for every measurement on a machine, and the winner of each runtime."""
    assert measured.reference is not None
    judgement = Judgement.of(measured.reference.quality, settings, recorded_kinds(model))
    choices: list[Choice] = []
    winners: list[Winner] = []
    for runtime in dict.fromkeys(m.runtime for m in measured.measurements):
        field = [m for m in measured.measurements if m.runtime == runtime]
        judged = choose(field, judgement)
        choices += judged
        winners += [_winner(m, host) for m, choice in zip(field, judged, strict=True) if choice.chosen]
    return choices, winners


def _elsewhere(model: str, settings: ModelParams) -> Iterator[OnHost]:
    """What is chosen for each other class of machines that `onward fleet` has measured on."""
    for folder in sorted((paths.build(model, "benchmark") / ELSEWHERE).glob("*")):
        host = HostClass.model_validate_json((folder / HOST_CLASS).read_bytes())
        measured = load(BenchmarkReport, folder / "report.json")
        assert measured.machine is not None
        found = OnHost(name=folder.name, host=host, machine=measured.machine, reason=measured.reason)
        if measured.passed:
            found.choices, found.winners = _chosen(model, settings, measured, folder.name)
            found.reason = "" if found.winners else "no variant is within the budget there"
        yield found


def choose(field: list[Measurement], judgement: Judgement) -> list[Choice]:
    """Choose at most one of the variants of one runtime.

    A variant can win if it was measured in full and meets the budget, the confidence interval of its latency ratio over
    all sizes is entirely below WORTHWHILE, and at no size entirely above 1. Of these, the one with the smallest ratio
    wins. Among those within the factor SAME of it, the order is: least loss of quality, no session options, smallest
    file. If none can win, the plain export is chosen, if it meets the budget.

    Args:
        field: The measurements on one runtime, including the plain export's.
        judgement: The budget, with the original's quality.

    Returns:
        One choice for each measurement, in the same order, with the reason.
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
            tied=m in able and _is_tied(m, best),
            reason=_why_best(m) if m is best else faults[m.variant] or _why_not(m, best, drops),
            ratio=m.ratios.get("all"),
            host_ratio=m.host_ratios.get("all"),
            worst_size=worst_size(m.ratios),
            worst=m.ratios.get(worst_size(m.ratios)),
            **_loss_fields(losses[m.variant]),
        )
        for m in field
    ]


def _loss_fields(loss: Loss | None) -> dict[str, Any]:
    """The fields of a choice that describe its variant's loss of quality."""
    if loss is None:
        return {}
    return {"quality_drop": loss.value, "quality_budget": loss.limit, "quality_measure": loss.measure}


def pareto(able: list[Measurement], drops: dict[str, float | None]) -> list[Measurement]:
    """Find the Pareto front over latency, quality and size.

    Args:
        able: The measurements to compare.
        drops: Lost quality of each variant, as a share of its budget; None counts as 0.

    Returns:
        The measurements that no other one dominates: at least as good in all three, and better in one.
    """

    def costs(measurement: Measurement) -> tuple[float, float, int]:
        return measurement.ratios["all"].value, drops[measurement.variant] or 0.0, _size(measurement)

    def dominated(measurement: Measurement) -> bool:
        return any(
            costs(other) != costs(measurement)
            and all(a <= b for a, b in zip(costs(other), costs(measurement), strict=True))
            for other in able
        )

    return [m for m in able if not dominated(m)]


def _winner(measurement: Measurement, host: str = "") -> Winner:
    """The winner's record."""
    return Winner(
        variant=measurement.variant,
        runtime=measurement.runtime,
        provider=measurement.provider,
        files=measurement.files,
        options=measurement.options,
        precision=measurement.precision,
        host=host,
        p50_ms=mean_p50_ms(measurement.latencies),
        host_ratio=measurement.host_ratios.get("all"),
    )


def _against(measurement: Measurement, judgement: Judgement) -> Iterable[str]:
    """Reasons against a variant other than its speed."""
    if measurement.status != "passed":
        yield measurement.reason
        return
    yield from judgement.faults(measurement)
    yield from ceiling_faults(measurement, judgement.budget)


def _size(measurement: Measurement) -> int:
    return sum(file.size_bytes for file in measurement.files)


def _slower_at(measurement: Measurement) -> list[str]:
    """The sizes at which a variant is provably slower than the plain export."""
    return [size for size, ratio in measurement.ratios.items() if size != "all" and ratio.low > 1]


def _is_tied(measurement: Measurement, best: Measurement | None) -> bool:
    """Whether another run may choose this variant instead of `best`, because their intervals overlap."""
    if best is None or measurement is best or measurement.variant == PLAIN or _slower_at(measurement):
        return False
    return overlap(measurement.ratios["all"], best.ratios["all"])


def _why_best(measurement: Measurement) -> str:
    if measurement.variant == PLAIN:
        return "no variant within the budget is provably faster"
    ratio = measurement.ratios["all"]
    return (
        f"the fastest within the budget: {1 / ratio.value:.2f} times as fast as the plain export "
        f"{_interval(measurement)}{_at_worst(measurement)}"
    )


def _why_not(measurement: Measurement, best: Measurement | None, drops: dict[str, float | None]) -> str:
    if measurement.variant == PLAIN:
        assert best is not None
        return f"{best.variant} is provably faster"
    ratio = measurement.ratios["all"]
    slower = _slower_at(measurement)
    if ratio.low > 1:
        return f"slower than the plain export: {ratio.value:.2f} times its latency {_interval(measurement)}"
    if slower:
        at = ", ".join(f"{size} ({measurement.ratios[size].value:.2f} times its latency)" for size in slower)
        return f"slower than the plain export at {at}"
    if ratio.high >= WORTHWHILE:
        return (
            f"not provably faster than the plain export: {ratio.value:.2f} times its latency {_interval(measurement)}"
        )
    assert best is not None
    if ratio.value <= best.ratios["all"].value * SAME:
        better = (
            "loses less quality"
            if (drops[best.variant] or 0) < (drops[measurement.variant] or 0)
            else "is simpler or smaller"
        )
        return f"as fast as {best.variant} ({1 / ratio.value:.2f} times), which {better}"
    if _is_tied(measurement, best):
        return (
            f"tied with {best.variant}, which was faster in this run: {1 / ratio.value:.2f} times as fast as the plain "
            "export, and the intervals overlap, so another run may choose differently"
        )
    return f"faster than the plain export ({1 / ratio.value:.2f} times), but {best.variant} is faster still"


def _at_worst(measurement: Measurement) -> str:
    """The size at which a variant gains least, if it was measured at several."""
    worst = worst_size(measurement.ratios)
    if len(measurement.latencies) < 2 or not worst:
        return ""
    return f"; at worst {1 / measurement.ratios[worst].value:.2f} times, at {worst}"


def _interval(measurement: Measurement) -> str:
    ratio = measurement.ratios["all"]
    return f"(95 % interval of the latency ratio {ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    command.run("select", select, afterwards=summary.write)
