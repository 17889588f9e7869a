"""What is live, from a log of entries, and what a promotion or a rollback would append. Pure: no MLflow, no clock.

    line = fold(entries)
    line.live                           # the entry that counts now, or None
    plan_rollback(line)                 # the earlier deployment that a rollback would restore

The rule: an entry counts if its `base`, the entry that its author saw as live, is the last entry that counted. Else it
lost a race and changes nothing. Every reader of the same log so finds the same answer, without a lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from registry.errors import Refused, UsageError


class GateResult(BaseModel):
    """What one requirement said of a version: met or not, and why in words."""

    model_config = ConfigDict(frozen=True)

    requirement: str
    met: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.requirement}: {self.detail}"


class Draft(BaseModel):
    """An entry that is not in the log yet.

    key: unique to one attempt, so that an answer lost on the way cannot make its author mistake who won.
    base: number of the entry that its author saw as live, 0 for none.
    sha256, candidate_version, source, evidence: what is deployed; `source` is the environment's own copy.
    restores: of a rollback, the promotion whose deployment it brings back; 0 for a promotion.
    forced: of a promotion, whether it was made against its gates.
    gates_run: of a promotion that suites judged, the MLflow run that holds their pages.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["promote", "rollback"]
    key: str
    base: int
    sha256: str
    candidate_version: int
    source: str
    actor: str
    reason: str
    at: str
    restores: int = 0
    forced: bool = False
    gates: tuple[GateResult, ...] = ()
    gates_run: str = ""
    evidence: dict[str, str] = {}

    def __str__(self) -> str:
        what = f"version {self.candidate_version} (sha256 {self.sha256[:12]})"
        if self.kind == "rollback":
            return f"{self.actor} rolled back to {what}, as entry {self.restores} deployed it: {self.reason}"
        unmet = [gate.requirement for gate in self.gates if not gate.met]
        if self.forced:
            return f"{self.actor} forced {what} in, against {', '.join(unmet) or 'no gate'}: {self.reason}"
        return f"{self.actor} promoted {what}: {self.reason}"


class Entry(Draft):
    """One entry of an environment's log. `str(entry)` is the sentence that `onward history` and MLflow show."""

    number: int


@dataclass(frozen=True)
class Line:
    """A log, judged: the entries that counted and those that lost a race, each in the order of the log."""

    counted: tuple[Entry, ...]
    lost: tuple[Entry, ...]

    @property
    def live(self) -> Entry | None:
        return self.counted[-1] if self.counted else None

    @property
    def base(self) -> int:
        """What an entry appended now has to name as its base."""
        return self.counted[-1].number if self.counted else 0

    def entries(self) -> list[Entry]:
        """All of them, in the order of the log."""
        return sorted((*self.counted, *self.lost), key=lambda entry: entry.number)

    def find(self, number: int) -> Entry:
        """The entry with this number, provided that it counted.

        Raises:
            UsageError: there is none, or it lost a race and was never live.
        """
        for entry in self.counted:
            if entry.number == number:
                return entry
        if any(entry.number == number for entry in self.lost):
            raise UsageError(f"entry {number} lost a race and was never live; `onward history` shows those that were")
        raise UsageError(f"there is no entry {number}; `onward history` shows those there are")

    def deployment(self, entry: Entry) -> Entry:
        """The promotion that `entry` stands for: itself, or the one that a rollback brought back."""
        return self.find(entry.restores) if entry.kind == "rollback" else entry

    def won(self, key: str) -> Entry | None:
        """The entry that counted of the attempt `key`."""
        return next((entry for entry in self.counted if entry.key == key), None)


def fold(entries: Iterable[Entry]) -> Line:
    """Judge a log; the order in which `entries` come does not matter.

    Entries are never deleted, but an administrator of the store can. A number that is missing and that a later entry
    names as its base did count: that entry's author saw it live.
    """
    log = {entry.number: entry for entry in entries}
    deleted = {entry.base for entry in log.values() if 0 < entry.base < entry.number} - log.keys()
    live = 0
    counted, lost = [], []
    for number in sorted(log.keys() | deleted):
        if number in deleted:
            live = number
        elif log[number].base == live:
            counted.append(log[number])
            live = number
        else:
            lost.append(log[number])
    return Line(tuple(counted), tuple(lost))


def last_live(line: Line) -> dict[str, str]:
    """When each deployment (by sha256) was live last: the moment that the next one took its place, "" for now."""
    until = [following.at for following in line.counted[1:]]
    return {entry.sha256: end for entry, end in zip(line.counted, [*until, ""], strict=False)}


def plan_rollback(line: Line, to: int | None = None) -> Entry:
    """The promotion that a rollback would bring back: entry `to`'s, else the one before what is live.

    What was live before a promotion is what its base stands for. So a second rollback goes one further back instead of
    undoing the first, and a promotion made after a rollback is undone to what the rollback had brought back.

    Raises:
        Refused: nothing is live, or nothing was before it.
        UsageError: entry `to` does not exist or was never live.
    """
    if line.live is None:
        raise Refused("nothing is live here, so there is nothing to roll back")
    if to is not None:
        return line.deployment(line.find(to))
    deployed = line.deployment(line.live)
    if deployed.base == 0:
        raise Refused(
            f"there is nothing to roll back to: version {deployed.candidate_version}, which is live, was the first "
            "deployment here (`--to N` brings back a later one)"
        )
    return line.deployment(line.find(deployed.base))
