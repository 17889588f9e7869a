"""What commands share: arguments, and how they print; tables and sentences for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from registry.deployments import Entry
    from registry.diff import Comparison
    from registry.layout import Log
    from registry.operations import Outcome
    from registry.overview import EnvironmentStatus, ModelStatus


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model, e.g. cnn.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever reads the history.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]


def print_json(value: Any) -> None:
    """One JSON document, and nothing else."""
    print(json.dumps(value, indent=2))


def print_note(note: str) -> None:
    """What is left to do, or went wrong beside what was asked for: on stderr."""
    if note:
        print(f"onward: {note}", file=sys.stderr)


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """What a promotion or a rollback did."""
    print_note(outcome.note)
    if as_json:
        print_json(
            {
                "model": outcome.model,
                "environment": outcome.environment,
                "version": outcome.version,
                "sha256": outcome.sha256,
                "changed": outcome.changed,
                "dry_run": outcome.dry_run,
                "entry": entry_facts(outcome.entry) if outcome.entry else None,
                "gates": [gate.model_dump() for gate in outcome.gates],
                "note": outcome.note,
            }
        )
        return
    where = f"{outcome.environment} of {outcome.model}"
    if outcome.changed and outcome.entry:
        print(f"{where}, entry {outcome.entry.number}: {outcome.entry}")
    elif outcome.entry:
        print(f"{where}: version {outcome.version} is live already (entry {outcome.entry.number}); nothing to do")
    else:
        print(f"{where}: version {outcome.version} would be promoted; nothing was changed")
    print_gates(outcome.gates)


def print_comparison(comparison: Comparison, as_json: bool) -> None:
    """Two versions side by side: what differs, and how much else is the same."""
    from registry import diff

    if as_json:
        print_json(diff.as_json(comparison))
        return
    different = comparison.different()
    if different:
        rows = [(f.section, f.name, _value(f.left), _value(f.right), f.in_words) for f in different]
        print_table(("", "", str(comparison.left), str(comparison.right), "change"), rows)
    same = len(comparison.facts) - len(different)
    print(f"{same} facts are the same" if different else f"nothing differs: {same} facts are the same")
    for note in comparison.notes:
        print(f"! {note}")


def _value(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_gates(results: Iterable[Any]) -> None:
    """What each requirement said, a line each."""
    for result in results:
        print(f"  {'met' if result.met else 'NOT MET':<8}{result}")


def entry_facts(entry: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {"number": entry.number, **entry.model_dump(exclude={"number"}), "sentence": str(entry)}


def entry_state(log: Log, entry: Entry) -> str:
    """`live`, `lost`, `unsigned` (by who may sign), or nothing, where it is none of these."""
    if entry in log.line.lost:
        return "lost"
    if entry in log.unproven:
        return "unsigned"
    return "live" if entry == log.line.live else ""


def newest_cell(status: ModelStatus) -> str:
    """The newest version, as a cell of `onward status`."""
    if status.newest is None:
        return "none left" if status.registered else "never registered"
    variant = status.newest.evidence.get("variant", "")
    return f"{status.newest.version}{f' ({variant})' if variant else ''}"


def run_cell(status: ModelStatus) -> str:
    """Why the newest pipeline run failed, as a cell of `onward status`: in one line, and in short."""
    return f"failed: {shortened(status.failed)}" if status.failed else ""


def shortened(text: str, length: int = 100) -> str:
    """`text` in one line of printable characters, cut off after `length` of them."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def environment_cell(state: EnvironmentStatus) -> str:
    """What is live, as a cell of `onward status`."""
    mark = " !" if state.trouble else ""
    if state.live is None:
        return f"-{mark}"
    how = "rolled back " if state.live.kind == "rollback" else "forced " if state.live.forced else ""
    return f"{state.live.candidate_version}, {how}{short_time(state.live.at)}{mark}"


def trouble_lines(model: str, state: EnvironmentStatus) -> Iterator[str]:
    """What is wrong with a log, a sentence each, with what to do about it."""
    log = f"{state.environment} of {model}"
    for alarm in state.alarm:
        yield f"ALARM: {alarm}, in the signed log of {log}: look at `onward history {model} --env {state.environment}`"
    told = state.live.number if state.alarm and state.live else 0 if state.alarm else None
    for drift in state.drift:
        yield f"{drift}" if state.alarm else f"{drift}: `onward reconcile` puts that right"
    for number in state.foreign:
        if told is None or number < told:
            yield f"version {number} in a log of {log} is no entry of Onward's, and counts for nothing"
    for entry in state.unproven:
        if told is None or entry.number < told:
            yield f"entry {entry.number} in a log of {log} counts for nothing: no signer signed it"
    for number in state.newer:
        if told is None or number < told:
            yield f"entry {number} in a log of {log} was written by a newer Onward: upgrade this one"


def short_time(at: str) -> str:
    """A moment to the minute."""
    return at[:16].replace("T", " ")


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table, never cut off."""
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=None, padding=(0, 3, 0, 0))
    for name in header:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))  # what a store holds is no markup
    console = Console(highlight=False)
    # Better broken by the terminal than cut off: in a pipe nothing may be missing.
    whole = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, whole)
    console.print(table)
