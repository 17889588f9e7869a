"""Shows what a running stage does: stage, model, step, variant, count and time left, on stderr.

On a terminal, one line is rewritten. Elsewhere, as in CI, with TERM=dumb or NO_COLOR, plain lines are printed, at most
one in LINE_SECONDS. Nothing is shown in the first QUIET_SECONDS, so that quick stages stay quiet. Only the process that
called `started` shows anything: forks of it, and tests that call a stage as a function, stay quiet.

    progress.started("benchmark", "cnn")
    progress.show("round", number=4, of=10, seconds=12)   # benchmark cnn: round 4 of 10, 12 s left
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from onward.registry.text import printable

T = TypeVar("T")

QUIET_SECONDS, LINE_SECONDS, ALIVE_SECONDS, TICK_SECONDS = 2.0, 10.0, 60.0, 1.0
# The terminal's sequence that clears from the cursor to the end of the line.
_CLEAR = "\r\033[K"


@dataclass
class Step:
    """What a stage does now.

    Attributes:
        what: The step.
        variant: The variant that it is about.
        number: The number of the repetition that runs, from 1.
        of: The number of repetitions; 0 if it is not known.
        until: When the step's time limit ends, in seconds of the monotonic clock; None without a limit.
        begun: When the step began, on the same clock.
    """

    what: str = ""
    variant: str = ""
    number: int = 0
    of: int = 0
    until: float | None = None
    begun: float = field(default_factory=time.monotonic)

    def words(self, now: float) -> str:
        """Describe the step at a time of the monotonic clock."""
        count = f"{self.number} of {self.of}" if self.of else ""
        said = [" ".join(filter(None, (self.what, count))), self.variant, self._left(now)]
        return ", ".join(filter(None, said))

    def _left(self, now: float) -> str:
        if self.until is not None:
            return f"at most {duration(max(0.0, self.until - now))} left"
        done = self.number - 1
        if not self.of or done < 1:
            return ""
        return f"about {duration((now - self.begun) / done * (self.of - done))} left"


def duration(seconds: float) -> str:
    """Write a duration for people: "8 s", "3 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Display:
    """Shows the step of one stage until it is closed.

    A timer's signal keeps it up to date. A thread would be simpler, but stages fork, and a fork while another thread
    runs is unsafe (stages/workers/isolated_call.py). Forked processes inherit no timer. If another part of this process
    uses the timer or stages run outside of the main thread, the display changes only with the steps.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.process = os.getpid()
        self.begun = time.monotonic()
        self.step = Step()
        self._terminal = rewrites_lines()
        self._next = self.begun + QUIET_SECONDS
        self._printed_at = self.begun
        self._printed: str | None = None
        self._ticks = False
        if threading.current_thread() is threading.main_thread() and not any(signal.getitimer(signal.ITIMER_REAL)):
            self._ticks = True
            self._handler = signal.signal(signal.SIGALRM, lambda *_: self.tick())
            signal.setitimer(signal.ITIMER_REAL, QUIET_SECONDS, TICK_SECONDS)

    def tick(self) -> None:
        """Write the step, if it is time to."""
        now = time.monotonic()
        if now < self._next or self.process != os.getpid():
            return
        if self._terminal:
            self._next = now + TICK_SECONDS / 2
            self._write(_CLEAR + self._line(now)[: shutil.get_terminal_size().columns - 1] + "\r")
        elif self.step.words(self.step.begun) != self._printed or now - self._printed_at >= ALIVE_SECONDS:
            self._next = now + LINE_SECONDS
            self._printed, self._printed_at = self.step.words(self.step.begun), now
            self._write(f"{self._line(now)}\n")

    def _line(self, now: float) -> str:
        words = self.step.words(now) or "running"
        return printable(f"{self.stage}: {words} ({duration(now - self.begun)})")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # without its terminal, a stage goes on
            os.write(2, text.encode(errors="replace"))

    def close(self) -> None:
        """Stop, and remove the line from a terminal."""
        if self._ticks:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._handler)
        if self._terminal and time.monotonic() - self.begun > QUIET_SECONDS:
            self._write(_CLEAR)


_display: _Display | None = None


def rewrites_lines() -> bool:
    """Whether stderr is a terminal on which lines may be rewritten."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


@contextlib.contextmanager
def started(stage: str, model: str = "") -> Iterator[None]:
    """Show the progress of a stage for the length of the context."""
    global _display
    _display = _Display(f"{stage} {model}".rstrip())
    try:
        yield
    finally:
        _display.close()
        _display = None


def show(what: str, variant: str = "", number: int = 0, of: int = 0, seconds: float | None = None) -> None:
    """Say what the stage does from now on.

    Args:
        what: The step, such as "screening".
        variant: The variant that it is about.
        number: The number of the repetition that runs, from 1. The finished ones give the estimate of the time left.
        of: The number of repetitions.
        seconds: The time left until the step's limit.
    """
    if _display is None or _display.process != os.getpid():
        return
    now = time.monotonic()
    before = _display.step
    begun = before.begun if (before.what, before.of) == (what, of) and number > 1 else now
    until = None if seconds is None else now + seconds
    _display.step = Step(what, variant, number, of, until, begun)
    _display.tick()


def counted(what: str, items: Sequence[T]) -> Iterator[T]:
    """Yield items, and show for each that its turn has come.

    Args:
        what: The step, such as "case".
        items: The items.
    """
    for number, item in enumerate(items, 1):
        show(what, number=number, of=len(items))
        yield item
