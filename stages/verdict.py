"""Prints one table for all models, and exits with code 1 if any cannot be registered."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onward.registry.evidence.records import by_speed, worst_size
from onward.registry.evidence.reports import REPORTS, BenchmarkReport, PublishReport, Report, SelectReport, TrainReport
from onward.registry.evidence.uncertainty import speed
from onward.registry.text import printable
from onward.stages import command
from onward.stages.config.load import settings
from onward.stages.measuring.statistics import quotient
from onward.stages.reports import found

EXPLANATION = """\
chosen: the fastest choice on this machine. A service without that runtime uses the choice for the runtime that it has.
x plain, x PyTorch: how many times as fast as the plain export on the first runtime and as PyTorch, as the mean over the
typical sizes on this machine when undisturbed; ± is the 95 % interval. Intervals wider than a factor of 1.5 are written
out, and "too noisy to say" means that one contains 1. worst: x plain at the size at which it is smallest."""


def main(until: str | None = None) -> None:
    """Print what came of every model; exit 1 if any failed or was never run, naming the stage and the reason.

    With --until, only the stages up to that one count, and no table is printed: a gate for pull requests, on which not
    every stage runs.
    """
    if until is not None:
        _gate(until)
        return
    table = Table(title="Verdict", title_justify="left")
    for column, justify in (
        ("model", "left"), ("verdict", "left"), ("chosen", "left"), ("x plain", "right"), ("worst", "right"),
        ("x PyTorch", "right"), ("quality", "right"), ("drop", "right"), ("version", "right"),
    ):  # fmt: skip
        no_wrap = column in ("model", "verdict")
        table.add_column(column, justify=justify, no_wrap=no_wrap, overflow="fold")  # type: ignore[arg-type]
    findings: list[str] = []
    headrooms: list[str] = []
    ties: list[str] = []
    faults: list[str] = []
    absent: dict[str, str] = {}
    measured: dict[str, str] = {}
    for model in settings("verdict").models:
        reports = found(model)
        table.add_row(model, *_row(reports))
        if isinstance(benchmark := reports.get("benchmark"), BenchmarkReport):
            absent |= {state.runtime: state.reason for state in benchmark.runtimes if not state.usable}
            measured |= {state.runtime: state.version for state in benchmark.runtimes if state.usable}
            if benchmark.headroom:
                headrooms.append(f"{model}: {max(benchmark.headroom, key=lambda one: one.p50_ms)}")
        if isinstance(select := reports.get("select"), SelectReport):
            ties += [f"{model}: {line}" for line in _ties(select)]
        for report in reports.values():
            findings += [f"{model}: {report.stage}: {finding}" for finding in getattr(report, "findings", [])]
        faults += _faults(model, reports)
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)
    print(EXPLANATION)
    if measured:
        print(printable("measured: " + ", ".join(f"{runtime} {version}" for runtime, version in measured.items())))
    for runtime, reason in absent.items():
        print(printable(f"not measured: {runtime}: {reason}"))
    for line in ties:
        print(printable(f"tied: {line}"))
    for line in headrooms:
        print(printable(f"headroom: {line}"))
    for finding in findings:
        print(printable(f"found: {finding}"))
    for fault in faults:
        print(printable(fault))
    if faults:
        sys.exit(1)


def _gate(until: str) -> None:
    """Print whether each model passed the stages up to `until`, and exit 1 if one did not."""
    failed = False
    for model in settings("verdict").models:
        reports = found(model)
        faults = _faults(model, reports, list(REPORTS)[: list(REPORTS).index(until) + 1])
        failed |= bool(faults)
        for line in faults or [f"passed: {model}: every stage up to {until}"]:
            print(printable(line))
    if failed:
        sys.exit(1)


def _faults(model: str, reports: dict[str, Report], stages: Iterable[str] = tuple(REPORTS)) -> list[str]:
    """Why a model is not fit to be registered: the stages that failed, else the first one that left no report."""
    there = {stage: reports[stage] for stage in stages if stage in reports}
    failed = [f"failed: {model}: {stage}: {r.reason}" for stage, r in there.items() if r.status == "failed"]
    missing = [f"not run: {model}: {stage} has no report: run `dvc repro`" for stage in stages if stage not in there]
    return failed or missing[:1]


def _ties(select: SelectReport) -> Iterable[str]:
    """Describe the variants that another run may choose instead of a winner."""
    for winner in select.winners:
        tied = [choice.variant for choice in select.choices if choice.tied and choice.runtime == winner.runtime]
        if tied:
            yield (
                f"{winner.variant} on {winner.runtime} with {', '.join(tied)}: their intervals overlap, so another run "
                "may choose differently"
            )


def _row(reports: dict[str, Report]) -> list[str | Text]:
    """The table's columns after the model's name."""
    if any(report.status == "failed" for report in reports.values()):
        return [Text("failed", style="red"), *[""] * 7]
    train, benchmark, select, published = (reports.get(s) for s in ("train", "benchmark", "select", "publish"))
    if not (
        len(reports) == len(REPORTS)
        and isinstance(train, TrainReport)
        and isinstance(benchmark, BenchmarkReport)
        and isinstance(select, SelectReport)
        and isinstance(published, PublishReport)
    ):
        return [Text("not run", style="red"), *[""] * 7]
    best = by_speed(select.winners)[0]
    chosen = next(c for c in select.choices if (c.variant, c.runtime) == (best.variant, best.runtime))
    measured = next(m for m in benchmark.measurements if (m.variant, m.runtime) == (chosen.variant, chosen.runtime))
    against = "-"
    reference, ratios = benchmark.reference, measured.host_ratios or measured.ratios
    if reference is not None and reference.ratios and ratios and _is_torch(train):
        against = speed(quotient(ratios["all"], reference.ratios["all"]))
    worst = worst_size(ratios)
    return [
        Text("passed", style="green"),
        Text(printable(f"{chosen.variant} ({chosen.runtime})")),
        speed(ratios["all"]) if ratios else "",
        Text(printable(f"{speed(ratios[worst], interval=False)} {worst}")) if worst and len(ratios) > 2 else "",
        against,
        "" if measured.quality is None else f"{measured.quality:.4f}",
        "" if chosen.quality_drop is None else f"{chosen.quality_drop:+.4f}",
        str(published.version or ""),
    ]


def _is_torch(train: TrainReport) -> bool:
    return train.weights is not None and Path(train.weights.path).suffix == ".safetensors"


if __name__ == "__main__":
    command.run_plain(main, until=REPORTS)
