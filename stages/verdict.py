"""Prints one table for all models, and exits with code 1 if any cannot be registered."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onward.registry.evidence.records import Choice, Measurement, Ratio, by_speed, worst_size
from onward.registry.evidence.reports import REPORTS, BenchmarkReport, PublishReport, Report, SelectReport, TrainReport
from onward.registry.evidence.uncertainty import speed
from onward.registry.text import printable
from onward.stages import command
from onward.stages.config.load import settings
from onward.stages.measuring.statistics import quotient
from onward.stages.reports import found

EXPLANATION = """\
chosen: the fastest choice on this machine. A service without that runtime uses
the choice for the runtime that it has. x plain, x PyTorch: how many times as
fast as the plain export on the first runtime and as PyTorch, as the mean over
the typical sizes on this machine when undisturbed; ± is the 95 % interval.
Intervals wider than a factor of 1.5 are written out, and "too noisy to say"
means that one contains 1. worst: x plain at the size at which it is smallest."""

COLUMNS = ("model", "verdict", "chosen", "x plain", "worst", "x PyTorch", "quality", "drop", "version")
# The columns that a narrow terminal does without, in this order.
DISPENSABLE = ("drop", "worst", "quality", "x PyTorch", "chosen", "x plain", "version")
NARROW = 80  # columns of a stdout that is not a terminal
READABLE = 20  # the smallest width of the column "chosen" on which most names take two lines


@dataclass
class Row:
    """What came of one model.

    Attributes:
        model: Its name.
        verdict: "passed", "failed" or "not run".
        faults: Why it cannot be registered, one line each.
        findings: What its stages found, one line each.
        ties: Which variants another run may choose instead, one line for each runtime.
        headroom: How its slowest size compares with the peaks of this host; empty if it was not measured.
        chosen: The fastest choice; None if there is none.
        measured: The measurement of that choice.
        against_plain: Its latency ratios to the plain export by size, with `all` over all sizes.
        against_pytorch: The ratio to PyTorch, if the original is a PyTorch module.
        version: The registered version, if there is one.
    """

    model: str
    verdict: str = "not run"
    faults: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    headroom: str = ""
    chosen: Choice | None = None
    measured: Measurement | None = None
    against_plain: dict[str, Ratio] = field(default_factory=dict)
    against_pytorch: Ratio | None = None
    version: int | None = None

    @property
    def worst(self) -> str:
        """The size at which the choice gains least, if it was measured at several."""
        return worst_size(self.against_plain) if len(self.against_plain) > 2 else ""


def main(until: str | None = None, as_json: bool = False) -> None:
    """Print what came of every model; exit 1 if any failed or was never run, naming the stage and the reason.

    With --until, only the stages up to that one count, and no table is printed: a gate for pull requests, on which not
    every stage runs. With --json, stdout is one JSON document.
    """
    stages = list(REPORTS)[: list(REPORTS).index(until) + 1] if until else list(REPORTS)
    reports = {model: found(model) for model in settings("verdict").models}
    rows = [row_of(model, there, stages) for model, there in reports.items()]
    usable, absent = _runtimes(reports.values())
    if as_json:
        document = {"passed": not any(row.faults for row in rows), "until": stages[-1]}
        runtimes = {"measured": usable, "not_measured": absent}
        print(json.dumps({**document, "models": [facts(row) for row in rows], "runtimes": runtimes}, indent=2))
    elif until is not None:
        for row in rows:
            for line in row.faults or [f"passed: {row.model}: every stage up to {until}"]:
                print(printable(line))
    else:
        _print(rows, usable, absent)
    if any(row.faults for row in rows):
        sys.exit(1)


def _print(rows: Sequence[Row], usable: dict[str, str], absent: dict[str, str]) -> None:
    """Print the table and what belongs to it."""
    width = shutil.get_terminal_size((NARROW, 24)).columns
    dropped = print_table([cells(row) for row in rows], width)
    print(EXPLANATION)
    if dropped:
        print(f"left out, because the table is limited to {width} columns: {', '.join(dropped)}; --json has them")
    if usable:
        print(printable("measured: " + ", ".join(f"{runtime} {version}" for runtime, version in usable.items())))
    for runtime, reason in absent.items():
        print(printable(f"not measured: {runtime}: {reason}"))
    for row in rows:
        for tie in row.ties:
            print(printable(f"tied: {row.model}: {tie}"))
    for row in rows:
        if row.headroom:
            print(printable(f"headroom: {row.model}: {row.headroom}"))
    for row in rows:
        for finding in row.findings:
            print(printable(f"found: {row.model}: {finding}"))
    for row in rows:
        for fault in row.faults:
            print(printable(fault))


def print_table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Print the table within a width by dropping columns. Long names are continued on the next line, never cut.

    Args:
        rows: The cells of each model, one for each of COLUMNS.
        width: Columns of the terminal.

    Returns:
        The names of the dropped columns.
    """
    kept = list(COLUMNS)
    for name in ("", *DISPENSABLE):
        kept = [column for column in kept if column != name]
        widths = {column: _width(column, rows) for column in kept}
        if "chosen" in widths:
            widths["chosen"] = max(_width("chosen", rows, parts=True), min(READABLE, widths["chosen"]))
        spare = width - (sum(widths.values()) + 3 * len(kept) - 1)
        if spare >= 0:
            break
    padded = spare >= 2
    spare -= 2 if padded else 0
    table = Table(title="Verdict", title_justify="left", pad_edge=padded)
    for column in kept:
        table.add_column(column, justify="left" if column in ("model", "verdict", "chosen") else "right", no_wrap=True)
    chosen = min(_width("chosen", rows), widths.get("chosen", 0) + max(spare, 0))
    for row in rows:
        texts = dict(zip(COLUMNS, row, strict=True))
        texts["chosen"] = _continued(texts["chosen"], chosen)
        styles = {"verdict": "green" if texts["verdict"] == "passed" else "red"}
        table.add_row(*(Text(texts[column], style=styles.get(column, "")) for column in kept))
    Console(width=max(width, width - spare)).print(table)
    return [column for column in COLUMNS if column not in kept]


def _parts(name: str) -> list[str]:
    """The parts of a name between which a line may end: after a space, a hyphen or an underscore."""
    return re.findall(r"[^-_ ]*[-_ ]|[^-_ ]+$", name)


def _continued(name: str, width: int) -> str:
    """A name on lines of at most `width` columns."""
    lines = [""]
    for part in _parts(name):
        if lines[-1] and cell_len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _width(column: str, rows: Sequence[Sequence[str]], parts: bool = False) -> int:
    """The width of a column; if its cells may be continued on the next line, that of the longest part."""
    texts = [column, *(row[COLUMNS.index(column)] for row in rows)]
    return max(cell_len(one.rstrip()) for text in texts for one in (_parts(text) if parts else [text]) or [""])


def _runtimes(of: Iterable[dict[str, Report]]) -> tuple[dict[str, str], dict[str, str]]:
    """The runtimes that were measured, with their versions, and the others, with the reasons."""
    usable: dict[str, str] = {}
    absent: dict[str, str] = {}
    for reports in of:
        if isinstance(benchmark := reports.get("benchmark"), BenchmarkReport):
            absent |= {state.runtime: state.reason for state in benchmark.runtimes if not state.usable}
            usable |= {state.runtime: state.version for state in benchmark.runtimes if state.usable}
    return usable, absent


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


def row_of(model: str, reports: dict[str, Report], stages: Sequence[str] = tuple(REPORTS)) -> Row:
    """Sum up what came of a model.

    Args:
        model: Its name.
        reports: Its reports, by stage.
        stages: The stages that have to have run.
    """
    row = Row(model, faults=_faults(model, reports, stages))
    for report in reports.values():
        row.findings += [f"{report.stage}: {finding}" for finding in getattr(report, "findings", [])]
    train, benchmark, select, published = (reports.get(s) for s in ("train", "benchmark", "select", "publish"))
    if isinstance(select, SelectReport):
        row.ties = list(_ties(select))
    if isinstance(benchmark, BenchmarkReport) and benchmark.headroom:
        row.headroom = str(max(benchmark.headroom, key=lambda one: one.p50_ms))
    if any(report.status == "failed" for report in reports.values()):
        row.verdict = "failed"
    elif (
        len(reports) == len(REPORTS)
        and isinstance(train, TrainReport)
        and isinstance(benchmark, BenchmarkReport)
        and isinstance(select, SelectReport)
        and isinstance(published, PublishReport)
    ):
        row.verdict, row.version = "passed", published.version
        best = by_speed(select.winners)[0]
        row.chosen = next(c for c in select.choices if (c.variant, c.runtime) == (best.variant, best.runtime))
        row.measured = next(m for m in benchmark.measurements if (m.variant, m.runtime) == (best.variant, best.runtime))
        row.against_plain = row.measured.host_ratios or row.measured.ratios
        reference = benchmark.reference
        if reference is not None and reference.ratios and row.against_plain and _is_torch(train):
            row.against_pytorch = quotient(row.against_plain["all"], reference.ratios["all"])
    return row


def cells(row: Row) -> list[str]:
    """List the cells of a row of the table, one for each of COLUMNS."""
    chosen, measured, ratios, worst = row.chosen, row.measured, row.against_plain, row.worst
    if chosen is None or measured is None:
        return [row.model, row.verdict, *[""] * (len(COLUMNS) - 2)]
    return [
        row.model,
        row.verdict,
        printable(f"{chosen.variant} ({chosen.runtime})"),
        speed(ratios["all"]) if ratios else "",
        printable(f"{speed(ratios[worst], interval=False)} {worst}") if worst else "",
        speed(row.against_pytorch) if row.against_pytorch else "-",
        "" if measured.quality is None else f"{measured.quality:.4f}",
        "" if chosen.quality_drop is None else f"{chosen.quality_drop:+.4f}",
        str(row.version or ""),
    ]


def facts(row: Row) -> dict[str, Any]:
    """Describe a row as a JSON object; speeds are how many times as fast."""

    def times(ratio: Ratio | None) -> dict[str, float] | None:
        return {"value": 1 / ratio.value, "low": 1 / ratio.high, "high": 1 / ratio.low} if ratio else None

    return {
        "model": row.model,
        "verdict": row.verdict,
        "variant": row.chosen.variant if row.chosen else None,
        "runtime": row.chosen.runtime if row.chosen else None,
        "speedup": times(row.against_plain.get("all")),
        "speedup_worst": times(row.against_plain.get(row.worst)),
        "worst_size": row.worst or None,
        "speedup_pytorch": times(row.against_pytorch),
        "quality": row.measured.quality if row.measured else None,
        "quality_drop": row.chosen.quality_drop if row.chosen else None,
        "version": row.version,
        "headroom": row.headroom or None,
        "ties": row.ties,
        "findings": row.findings,
        "faults": row.faults,
    }


def _is_torch(train: TrainReport) -> bool:
    return train.weights is not None and Path(train.weights.path).suffix == ".safetensors"


if __name__ == "__main__":
    command.run_plain(main, until=REPORTS, as_json=())
