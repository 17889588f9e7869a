"""Arguments that several commands share, and functions that print: text and tables for people, JSON for scripts.

Commands print only with `say`, `print_table`, `print_json`, `print_note` and `print_error`. These escape control
characters and markup in text from stores, files and models. A test forbids all other ways of printing.
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


Model = Annotated[str, typer.Argument(metavar="MODEL", help="The name of the model, such as cnn.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in one line. The history shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout, for scripts.")]


def prepare_output() -> None:
    """Let stdout and stderr accept every character, and print each warning on one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"onward: {printable(message)}\n"


def say(*lines: object, stream: TextIO | None = None) -> None:
    """Print lines. Line breaks and unprintable characters inside a line are printed as escapes.

    Args:
        *lines: the lines.
        stream: where to print; None for stdout.
    """
    _write(stream or sys.stdout, *map(printable, lines))


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, in ASCII and without control characters.

    Args:
        value: the value.
        indent: the indentation; None for one line.
    """
    _write(sys.stdout, json.dumps(value, indent=indent).replace("\x7f", "\\u007f"))


def print_note(note: str) -> None:
    """Print a note on stderr: a problem that did not make the command fail.

    Args:
        note: the note; nothing is printed if it is empty.
    """
    if note:
        print_error(note)


def print_error(message: object) -> None:
    """Print an error on stderr, on one line.

    Args:
        message: the error. If it contains a list, each item is printed on a further line that begins with two spaces.
    """
    first, *listed = re.split("\n(?=  )", str(message).strip())
    _write(sys.stderr, f"onward: {printable(first)}", *map(printable, listed))


def _write(stream: TextIO, *lines: str) -> None:
    stream.write("".join(f"{line}\n" for line in lines))
    stream.flush()


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """Print the result of a promotion or a rollback.

    Args:
        outcome: the result.
        as_json: whether to print JSON.
    """
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
    """Print the differences of two versions, and the number of equal facts.

    Args:
        comparison: the comparison.
        as_json: whether to print JSON.
    """
    from onward.registry.operations import comparison as diff

    if as_json:
        print_json(diff.as_json(comparison))
        return
    different = comparison.different()
    if different:
        rows = [(fact.section, fact.name, _value(fact.left), _value(fact.right), fact.in_words) for fact in different]
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
    """Print the result of each requirement, one per line.

    Args:
        results: the results.
    """
    for result in results:
        say(f"  {'met' if result.met else 'NOT MET':<8}{result}")


def entry_facts(entry: Entry) -> dict[str, Any]:
    """An entry as a JSON object, with a sentence that describes it.

    Args:
        entry: the entry.
    """
    return {"number": entry.number, **entry.model_dump(exclude={"number"}), "sentence": str(entry)}


def entry_state(log: Log, entry: Entry) -> str:
    """The state of an entry: `live`, `lost`, `unsigned` (no signer signed it), or "" for an earlier deployment.

    Args:
        log: the log of the entry.
        entry: the entry.
    """
    if entry in log.history.lost:
        return "lost"
    if entry in log.unproven:
        return "unsigned"
    return "live" if entry == log.history.live else ""


def newest_cell(status: ModelStatus) -> str:
    """The cell of `onward status` with the newest version.

    Args:
        status: the state of the model.
    """
    if status.newest is None:
        return "none left" if status.registered else "never registered"
    variant = status.newest.evidence.get("variant", "")
    return f"{status.newest.version}{f' ({variant})' if variant else ''}"


def run_cell(status: ModelStatus) -> str:
    """The cell of `onward status` that says why the newest pipeline run failed.

    Args:
        status: the state of the model.
    """
    return f"failed: {shortened(status.failed)}" if status.failed else ""


def shortened(text: str, length: int = 100) -> str:
    """Bring a text to one line, and shorten it.

    Args:
        text: the text.
        length: the maximum length, in characters.
    """
    line = printable(one_line(text))
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def environment_cell(state: EnvironmentStatus) -> str:
    """The cell of `onward status` with the live version of an environment.

    Args:
        state: the state of the environment.
    """
    mark = " !" if state.trouble else ""
    if state.live is None:
        return f"-{mark}"
    how = "rolled back " if state.live.kind == "rollback" else "forced " if state.live.forced else ""
    return f"{state.live.candidate_version}, {how}{short_time(state.live.at)}{mark}"


def trouble_lines(model: str, state: EnvironmentStatus) -> Iterator[str]:
    """Describe each problem of a log in one sentence, and say what to do about it.

    Args:
        model: the model's name.
        state: the state of the environment.
    """
    log = f"the log of {model} in {state.environment}"
    for alarm in state.alarm:
        yield f"ALARM: {alarm}, in {log}: look at `onward history {model} --env {state.environment}`"
    if state.decay:
        where = f"entry {state.decay.entry} of {model} in {state.environment}, {short_time(state.decay.at)}"
        yield f"ALARM: {'; '.join(state.decay.alarms)} ({where}): look at the run `{model}: monitoring` in MLflow"
    # An alarm already names every row after the live entry.
    below = state.live.number if state.alarm and state.live else 0 if state.alarm else None
    for drift in state.drift:
        yield f"{drift}" if state.alarm else f"{drift}: `onward reconcile` corrects this"
    for number in state.foreign:
        if below is None or number < below:
            yield f"version {number} in {log} is not an entry of Onward's, and does not count"
    for entry in state.unproven:
        if below is None or entry.number < below:
            yield f"entry {entry.number} in {log} does not count: it is not proven"
    for number in state.newer:
        if below is None or number < below:
            yield f"entry {number} in {log} was written by a newer Onward: upgrade this one"
    for refusal in state.refused:
        yield f"{model} in {state.environment}: {refusal}"


def short_time(at: str) -> str:
    """A time to the minute, without its time zone.

    Args:
        at: the time, in ISO 8601.
    """
    return at[:16].replace("T", " ")


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table, without shortening its cells and without interpreting markup in them.

    Args:
        header: the name of each column.
        rows: the cells of each row.
    """
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
    # Rich would shorten cells to the width of the terminal. Nothing may be missing, in a pipe in particular.
    full_width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, full_width)
    with console.capture() as drawn:
        console.print(table)
    _write(sys.stdout, drawn.get().removesuffix("\n"))
