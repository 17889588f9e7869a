"""Work of racing processes, in a separate module so that a new process can import it."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from onward.registry.errors import LostRace, Refused
from onward.registry.operations import promotion
from onward.registry.store.schema import Log
from onward.registry.store.store import Store


def promote_and_roll_back(seed: int, attempts: int) -> list[str]:
    """Promote and roll back in turn, and return the result of each attempt."""
    store = Store()
    told = []
    for attempt in range(attempts):
        try:
            if (seed + attempt) % 3 == 2:
                done = promotion.rollback("cnn", "staging", reason="race", actor=f"p{seed}", store=store)
            else:
                version = 1 + (seed + attempt) % 3
                done = promotion.promote("cnn", "staging", version, reason="race", actor=f"p{seed}", store=store)
            told.append("won" if done.changed else "already live")
        except LostRace:
            told.append("lost")
        except Refused:
            told.append("refused")
    return told


class _Killed(Store):
    def heal(self, environment: str, model: str, log: Log | None = None) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it was not killed")


def promote_and_die_before_the_alias(version: int) -> None:
    promotion.promote("cnn", "staging", version, reason="doomed", store=_Killed())
