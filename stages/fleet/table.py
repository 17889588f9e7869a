"""Shows a running fleet on stderr: a table that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from onward.registry.text import printable
from onward.stages.fleet.phases import STAGES, Progress
from onward.stages.progress import duration, rewrites_lines

LINE_SECONDS = 10.0
# Lines of the terminal that the table leaves free.
_FREE = 6
_ALL_STAGES = tuple(stage for stages in STAGES.values() for stage in stages)
_ENDED = ("passed", "failed", "stopped", "cancelled")
_STYLES = {"passed": "green", "failed": "red", "stopped": "red", "cancelled": "yellow", "running": "bold"}


class Display:
    """Shows the progress of models.

    Args:
        live: The table on the terminal; None to print lines.
    """

    def __init__(self, live: Live | None) -> None:
        self._live = live
        self._begun: dict[str, tuple[str, float]] = {}
        self._printed: dict[str, str] = {}
        self._next = 0.0

    def update(self, models: Mapping[str, Progress]) -> None:
        """Show the present progress."""
        now = time.monotonic()
        for model, one in models.items():
            if self._begun.get(model, ("", 0.0))[0] != one.stage:
                self._begun[model] = one.stage, now
        if self._live is not None:
            self._live.update(self._table(list(models.values()), now), refresh=True)
        else:
            self._lines(list(models.values()), now)

    def _table(self, models: Sequence[Progress], now: float) -> Table:
        table = Table(title=summary(models), title_justify="left")
        for column in ("model", "state", "stage", "machine", "elapsed", "left"):
            table.add_column(column, no_wrap=True, justify="right" if column in ("elapsed", "left") else "left")
        assert self._live is not None
        means = mean_seconds(models)
        room = max(1, self._live.console.height - _FREE)
        order = ("running", "waiting", "stopped", "failed", "cancelled", "passed")
        for one in sorted(models, key=lambda one: order.index(one.state))[:room]:
            style = _STYLES.get(one.state, "")
            table.add_row(*(Text(printable(cell), style=style) for cell in self._cells(one, means, now)))
        return table

    def _cells(self, one: Progress, means: Mapping[str, float], now: float) -> tuple[str, ...]:
        stage, since = self._begun[one.model]
        elapsed = duration(now - since) if stage else ""
        left = seconds_left(one, means, now - since if stage else 0.0)
        return one.model, one.state, stage, one.node, elapsed, "" if left is None else duration(left)

    def _lines(self, models: Sequence[Progress], now: float) -> None:
        """Print a line for each model that ended, and how far the others are every LINE_SECONDS."""
        for one in models:
            if one.state in _ENDED and self._printed.get(one.model) != one.state:
                self._printed[one.model] = one.state
                why = one.reason.splitlines()[0] if one.reason else ""
                print(printable(f"fleet: {one.model}: {one.state}{f': {why}' if why else ''}"), file=sys.stderr)
        if now >= self._next:
            self._next = now + LINE_SECONDS
            active = [
                f"{one.model} {one.stage} on {one.node}" for one in models if one.state == "running" and one.stage
            ]
            print(printable("; ".join([f"fleet: {summary(models)}", *active[:4]])), file=sys.stderr)


@contextlib.contextmanager
def displayed() -> Iterator[Display]:
    """Show progress for the length of the context."""
    if not rewrites_lines():
        yield Display(None)
        return
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield Display(live)


def summary(models: Sequence[Progress]) -> str:
    """Count the models by state: "12 models: 3 passed, 2 running, 7 waiting"."""
    counts = Counter(one.state for one in models)
    states = ("passed", "failed", "stopped", "cancelled", "running", "waiting")
    named = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return f"{len(models)} model{'' if len(models) == 1 else 's'}: {named}"


def mean_seconds(models: Sequence[Progress]) -> dict[str, float]:
    """The mean time of each stage, in seconds, over the models that have finished it."""
    known: dict[str, list[float]] = {}
    for one in models:
        for stage, seconds in one.seconds.items():
            known.setdefault(stage, []).append(seconds)
    return {stage: sum(times) / len(times) for stage, times in known.items()}


def seconds_left(one: Progress, means: Mapping[str, float], elapsed: float) -> float | None:
    """Estimate how long the rest of a model's pipeline runs, without the time that it waits for machines.

    Args:
        one: The model.
        means: The mean time of each stage, for stages that this model has never finished.
        elapsed: How long the present stage has been running, in seconds.

    Returns:
        Seconds; None if the model has ended, or the time of some stage is unknown.
    """
    if one.state in _ENDED:
        return None
    total = 0.0
    for stage in (stage for stage in _ALL_STAGES if stage not in one.done):
        seconds = one.seconds.get(stage, means.get(stage))
        if seconds is None:
            return None
        total += seconds
    return max(0.0, total - elapsed)
