"""What happened to a model while it was served: versions that were loaded or refused, and a canary that was stopped."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

_LOG = logging.getLogger("onward.serve")
# The number of events that the server remembers for each model.
EVENTS = 50
# Events of these kinds are expected; all others are logged as warnings.
_GOOD = ("loaded", "canary started", "shadow started")


@dataclass(frozen=True)
class Event:
    """Something that happened to a model.

    Attributes:
        at: when, in UTC, as ISO 8601.
        kind: "loaded", "refused", "unreachable", "shadow started", "canary started" or "canary stopped".
        text: what happened.
        target: the target that it happened to, such as "cnn@production".
    """

    at: str
    kind: str
    text: str
    target: str = ""


class Events(deque[Event]):
    """The newest events of a model, the oldest first. Any thread may add to it."""

    def __init__(self) -> None:
        super().__init__(maxlen=EVENTS)

    def note(self, target: str, kind: str, text: str) -> None:
        """Remember and log an event.

        Args:
            target: the target that it happened to.
            kind: see Event.
            text: what happened.
        """
        self.append(Event(datetime.now(UTC).isoformat(timespec="milliseconds"), kind, text, target))
        _LOG.log(logging.INFO if kind in _GOOD else logging.WARNING, "%s: %s: %s", target, kind, text)
