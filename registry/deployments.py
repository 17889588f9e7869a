"""What is live: a fold over an environment's log, which is only ever appended to.

Each entry names the entry that its author saw as live, its `base`. An entry counts if its base is the last entry that
counted; else someone else got there first, and it changes nothing. So any number of writers, without a lock, and any
reader at any moment, agree on one live deployment.

    line = fold(entries)
    line.live                        # the entry whose bytes are being served, or None
    line.rollback_target()           # the deployment to go back to
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from registry.errors import Refused, UsageError

Kind = Literal["promote", "rollback"]


class Entry(BaseModel):
    """One promotion or rollback. `number` is the server's, 0 until it is appended; `base` is 0 where nothing was live.

    `source` is the environment's own copy of the bytes (`models:/<logged model>`), `restores` the number of the
    promotion that a rollback goes back to, `at` UTC in ISO 8601, `evidence` what was measured of the version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = 0
    model: str
    environment: str
    kind: Kind
    sha256: str
    candidate_version: str
    base: int
    restores: int | None = None
    source: str
    actor: str
    reason: str
    at: str
    gates: str = ""
    forced: bool = False
    evidence: dict[str, str] = {}

    def __str__(self) -> str:
        if self.kind == "promote":
            did = f"promoted version {self.candidate_version} to {self.environment}"
        else:
            did = f"rolled {self.environment} back to version {self.candidate_version} (entry {self.restores})"
        forced = ", past its gates" if self.forced else ""
        return f"{self.actor} {did}{forced}: {self.reason}"

    @property
    def stands_for(self) -> int:
        """The promotion whose bytes this entry deploys: its own number, or the one that it restores."""
        return self.restores if self.restores is not None else self.number


@dataclass(frozen=True)
class Line:
    """A log, read: the entries that count, those that lost, and the promotions that one can go back through."""

    counted: list[Entry] = field(default_factory=list)
    lost: list[Entry] = field(default_factory=list)
    stack: list[Entry] = field(default_factory=list)

    @property
    def live(self) -> Entry | None:
        """The entry that says what is live."""
        return self.counted[-1] if self.counted else None

    @property
    def base(self) -> int:
        """What the next entry must name as its base."""
        return self.live.number if self.live else 0

    @property
    def entries(self) -> list[Entry]:
        """All entries, in order."""
        return sorted([*self.counted, *self.lost], key=lambda entry: entry.number)

    def rollback_target(self, to: int | None = None) -> Entry:
        """The promotion that a rollback deploys again: the one before what is live, or what entry `to` deployed.

        Rolling back twice goes two back: what was rolled back from is left behind.

        Raises:
            Refused: nothing was live before.
            UsageError: there is no entry `to`, it lost its race, or it is what is live already.
        """
        if to is None:
            if len(self.stack) < 2:
                what = "only one deployment" if self.stack else "nothing"
                raise Refused(f"{what} was ever live here, so there is nothing to go back to")
            return self.stack[-2]
        if any(entry.number == to for entry in self.lost):
            raise UsageError(f"entry {to} lost its race and was never live; `onward history` marks those that were")
        named = next((entry for entry in self.counted if entry.number == to), None)
        if named is None:
            known = ", ".join(str(entry.number) for entry in self.counted) or "none"
            raise UsageError(f"there is no entry {to} in this log; the entries are {known}")
        assert self.live is not None
        if named.stands_for == self.live.stands_for:
            raise UsageError(f"what entry {to} deployed is live already")
        return next(entry for entry in self.counted if entry.number == named.stands_for)


def fold(entries: Iterable[Entry]) -> Line:
    """Read a log. The order in which entries are given does not matter: their numbers are their order."""
    line = Line()
    promotions: dict[int, Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.number):
        if entry.base != line.base or (entry.kind == "rollback" and entry.restores not in promotions):
            line.lost.append(entry)
            continue
        line.counted.append(entry)
        if entry.kind == "promote":
            promotions[entry.number] = entry
            line.stack.append(entry)
            continue
        restored = promotions[entry.stands_for]
        if restored in line.stack:
            del line.stack[line.stack.index(restored) + 1 :]
        else:
            line.stack.append(restored)
    return line
