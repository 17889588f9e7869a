"""What commands share: arguments, and how they print; tables and sentences for people, JSON for scripts.

All that a command prints goes through `say`, `print_table`, `print_json`, `print_note` or `print_error`, which show
text from stores, files and models as what it is. A test forbids every other way.
"""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from onward.registry.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onward.registry.log.entries import Entry
    from onward.registry.operations.comparison import Comparison
    from onward.registry.operations.overview import EnvironmentStatus, ModelStatus
    from onward.registry.operations.promotion import Outcome
    from onward.registry.store.schema import Log


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model, e.g. cnn.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever reads the history.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]


def prepare_output() -> None:
    """Make stdout and stderr take every character, and warnings one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"onward: {printable(message)}\n"


def say(*lines: object, stream: TextIO | None = None) -> None:
    """Print lines, on stdout unless told otherwise. A line stays one; what cannot be printed is an escape in it."""
    _write(stream or sys.stdout, *map(printable, lines))


def print_json(value: Any, indent: int | None = 2) -> None:
    """One JSON document, and nothing else. It is ASCII, and holds no control character."""
    _write(sys.stdout, json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def print_note(note: str) -> None:
    """What is left to do, or went wrong beside what was asked for: on stderr."""
    if note:
        print_error(note)


def print_error(message: object) -> None:
    """An error on stderr: one line. A message that lists something goes on in lines that begin with two spaces."""
    first, *listed = re.split("\n(?=  )", str(message).strip())
    _write(sys.stderr, f"onward: {printable(first)}", *map(printable, listed))


def _write(stream: TextIO, *lines: str) -> None:
    stream.write("".join(f"{line}\n" for line in lines))
    stream.flush()


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
        say(f"{where}, entry {outcome.entry.number}: {outcome.entry}")
    elif outcome.entry:
        say(f"{where}: version {outcome.version} is live already (entry {outcome.entry.number}); nothing to do")
    else:
        say(f"{where}: version {outcome.version} would be promoted; nothing was changed")
    print_gates(outcome.gates)


def print_comparison(comparison: Comparison, as_json: bool) -> None:
    """Two versions side by side: what differs, and how much else is the same."""
    from onward.registry.operations import comparison as diff

    if as_json:
        print_json(diff.as_json(comparison))
        return
    different = comparison.different()
    if different:
        rows = [(f.section, f.name, _value(f.left), _value(f.right), f.in_words) for f in different]
        print_table(("", "", str(comparison.left), str(comparison.right), "change"), rows)
    same = len(comparison.facts) - len(different)
    say(f"{same} facts are the same" if different else f"nothing differs: {same} facts are the same")
    for note in comparison.notes:
        say(f"! {note}")


def _value(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_gates(results: Iterable[Any]) -> None:
    """What each requirement said, a line each."""
    for result in results:
        say(f"  {'met' if result.met else 'NOT MET':<8}{result}")


def entry_facts(entry: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {"number": entry.number, **entry.model_dump(exclude={"number"}), "sentence": str(entry)}


def entry_state(log: Log, entry: Entry) -> str:
    """`live`, `lost`, `unsigned` (by who may sign), or nothing, where it is none of these."""
    if entry in log.history.lost:
        return "lost"
    if entry in log.unproven:
        return "unsigned"
    return "live" if entry == log.history.live else ""


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
    """`text` in one line, cut off after `length` of them."""
    line = printable(one_line(text))
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
            yield f"entry {entry.number} in a log of {log} counts for nothing: it is not proven"
    for number in state.newer:
        if told is None or number < told:
            yield f"entry {number} in a log of {log} was written by a newer Onward: upgrade this one"


def short_time(at: str) -> str:
    """A moment to the minute."""
    return at[:16].replace("T", " ")


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table, never cut off. What its cells hold is text, and no markup."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0))
    for name in header:
        table.add_column(Text(printable(name)), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False)
    # Better broken by the terminal than cut off: in a pipe nothing may be missing.
    whole = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, whole)
    with console.capture() as drawn:
        console.print(table)
    _write(sys.stdout, drawn.get().removesuffix("\n"))
