"""Windows of time: a uniform sample of each, and the rule that turns judgements of windows into an alarm."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from onward.registry.monitoring.drift import LAST, NEEDED

Item = TypeVar("Item")


class Timed(Protocol):
    """Something with a time."""

    @property
    def arrived(self) -> float:
        """When, in seconds since 1970."""


AnyTimed = TypeVar("AnyTimed", bound=Timed)


class Reservoir(Generic[Item]):
    """A uniform sample without replacement of a stream of unknown length.

    Source: Vitter, Random Sampling with a Reservoir, 1985, algorithm R.

    Args:
        size: the largest number of items that are kept.
        seed: for repeatable tests; None for a random one.
    """

    def __init__(self, size: int, seed: int | None = None) -> None:
        self._size, self._random = size, random.Random(seed)
        self.seen = 0
        self.items: list[Item] = []

    def place(self) -> int | None:
        """Count an item, and decide where it belongs.

        Returns:
            the index for `put`; None if the item is not part of the sample.
        """
        self.seen += 1
        if self.seen <= self._size:
            return self.seen - 1
        index = self._random.randrange(self.seen)
        return index if index < self._size else None

    def put(self, index: int, item: Item) -> None:
        """Keep an item at an index that `place` returned."""
        if index < len(self.items):
            self.items[index] = item
        else:
            self.items.append(item)


def split(rows: Iterable[AnyTimed], seconds: float, least: int) -> list[list[AnyTimed]]:
    """Divide rows into windows of time.

    Windows begin at multiples of their length, so that all readers see the same windows. A window with too few rows is
    joined to the next one. Rows after the last complete window are left out, unless there are enough of them.

    Args:
        rows: the rows, in any order.
        seconds: the length of a window.
        least: the number of rows that a window needs.

    Returns:
        the windows, the oldest first, each in the order of time.
    """
    found: defaultdict[int, list[AnyTimed]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.arrived):
        found[int(row.arrived // seconds)].append(row)
    windows: list[list[AnyTimed]] = []
    waiting: list[AnyTimed] = []
    for _, window in sorted(found.items()):
        waiting += window
        if len(waiting) >= least:
            windows.append(waiting)
            waiting = []
    return windows


def persistent(exceeded: Sequence[bool]) -> bool:
    """Tell whether at least 3 of the last 5 windows exceeded their limit, so that one unusual window is no alarm.

    Args:
        exceeded: whether each window did, the oldest first.
    """
    return sum(exceeded[-LAST:]) >= NEEDED
