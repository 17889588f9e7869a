"""What is live, from a log of entries, and what a promotion or a rollback would append. Pure: no MLflow, no clock.

    history = fold(entries)
    history.live                              # the entry that counts now, or None
    plan_rollback(history.live, history.find) # the earlier deployment that a rollback would restore

The rule: an entry counts if its `base`, the entry that its author saw as live, is the last entry that counted. Else it
lost a race and changes nothing. Every reader of the same log so finds the same answer, without a lock, and from the
newest entries alone: whatever is named as a base counted, for its author saw it live. So what is live is the first
entry with the highest base, and nothing older than that base can change it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from onward.registry.errors import Refused, UsageError
from onward.registry.text import printable

# No store numbers its rows higher: MLflow keeps the number of a version in 32 bits.
_HIGHEST = 2**31 - 1


def _moment(text: str) -> str:
    """A moment in ISO 8601 with its distance from UTC, as `at` has it."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("has no time zone")
    return text


Number = Annotated[int, Field(ge=0, le=_HIGHEST)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Moment = Annotated[str, AfterValidator(_moment)]


class GateResult(BaseModel):
    """What one requirement said of a version: met or not, and why in words."""

    model_config = ConfigDict(frozen=True)

    requirement: str
    met: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.requirement}: {printable(self.detail)}"


class Draft(BaseModel):
    """An entry that is not in the log yet.

    key: unique to one attempt, so that an answer lost on the way cannot make its author mistake who won.
    base: number of the entry that its author saw as live, 0 for none.
    sha256, candidate_version, source, evidence: what is deployed; `source` is the environment's own copy.
    manifest: the digest of the manifest of all its files; empty in entries of before, which pin the model files alone.
    restores: of a rollback, the promotion whose deployment it brings back; 0 for a promotion.
    forced: of a promotion, whether it was made against its gates.
    gates_run: of a promotion that suites judged, the MLflow run that holds their pages.
    signer, signature: whose key signed it (registry/trust/entry_signatures.py), where one did.
    seen, seen_digest: of a signed entry, the newest row of the log that its author saw, and the digest of the entry in
        it ("" where it held none); -1 in entries of before.
    base_digest: of a signed entry, the digest of its base, "" where it has none (registry/trust/chain.py).

    An approval stands in the log beside what it allows, and changes nothing that is live: it has no base.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["promote", "rollback", "approve"]
    key: Annotated[str, Field(min_length=1, max_length=100)]
    base: Number
    sha256: Digest
    candidate_version: Number
    source: str
    actor: str
    reason: str
    at: Moment
    manifest: Digest | Literal[""] = ""
    restores: Number = 0
    forced: bool = False
    gates: tuple[GateResult, ...] = ()
    gates_run: str = ""
    evidence: dict[str, str] = {}
    signer: str = ""
    signature: str = ""
    seen: Annotated[int, Field(ge=-1, le=_HIGHEST)] = -1
    seen_digest: Digest | Literal[""] = ""
    base_digest: Digest | Literal[""] = ""

    def __str__(self) -> str:
        what = f"version {self.candidate_version} (sha256 {self.sha256[:12]})"
        if self.kind == "approve":
            return printable(f"{self.actor} approved {what}: {self.reason}")
        if self.kind == "rollback":
            done = f"rolled back to {what}, as entry {self.restores} deployed it"
            return printable(f"{self.actor} {done}: {self.reason}")
        unmet = [gate.requirement for gate in self.gates if not gate.met]
        if self.forced:
            return printable(f"{self.actor} forced {what} in, against {', '.join(unmet) or 'no gate'}: {self.reason}")
        return printable(f"{self.actor} promoted {what}: {self.reason}")


class Entry(Draft):
    """One entry of an environment's log. `str(entry)` is the sentence that `onward history` and MLflow show."""

    number: Annotated[int, Field(ge=1, le=_HIGHEST)]
    # What the row itself says of its content, where nobody can change it: see signatures.link.
    link: str = Field(default="", exclude=True, repr=False)


@dataclass(frozen=True)
class DeploymentHistory:
    """A log, judged: the entries that counted and those that lost a race, each in the order of the log.

    floor: only entries of higher numbers were read; 0 where all were.
    """

    counted: tuple[Entry, ...]
    lost: tuple[Entry, ...]
    floor: int = 0

    @property
    def live(self) -> Entry | None:
        return self.counted[-1] if self.counted else None

    @property
    def base(self) -> int:
        """What an entry appended now has to name as its base."""
        return self.counted[-1].number if self.counted else 0

    @property
    def settled(self) -> bool:
        """Whether enough was read to say what is live: no older entry could change it."""
        return self.floor == 0 or (self.live is not None and self.live.base >= self.floor)

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

    def won(self, key: str) -> Entry | None:
        """The entry that counted of the attempt `key`."""
        return next((entry for entry in self.counted if entry.key == key), None)


def fold(entries: Iterable[Entry], floor: int = 0) -> DeploymentHistory:
    """Judge a log, or the part of it that is newer than entry `floor`; the order in which `entries` come does not
    matter. Of a part, what is live is right where the history is `settled`, and so is whatever else counts in it.

    Entries are never deleted, but an administrator of the store can. A number that is missing and that a later entry
    names as its base did count: that entry's author saw it live. An entry that names itself or a later one is nobody's
    work and counts for nothing.
    """
    log = {entry.number: entry for entry in entries if entry.number > floor}
    sound = [log[number] for number in sorted(log) if log[number].base < number]
    numbers = [entry.number for entry in sound]
    counted: dict[int, Entry] = {}
    end = len(sound)
    while (last := _last(sound[:end])) is not None:
        counted[last.number] = last
        while (before := log.get(last.base)) is not None and before.base < before.number:
            last = counted[before.number] = before
        end = bisect_left(numbers, last.base)
    lost = tuple(entry for number, entry in sorted(log.items()) if number not in counted)
    return DeploymentHistory(tuple(counted[number] for number in sorted(counted)), lost, floor)


def _last(sound: Sequence[Entry]) -> Entry | None:
    """The last that counted: of those that name the highest base, the first."""
    highest = max((entry.base for entry in sound), default=0)
    return next((entry for entry in sound if entry.base == highest), None)


def last_live(history: DeploymentHistory) -> dict[str, str]:
    """When each deployment (by sha256) was live last: the moment that the next one took its place, "" for now."""
    until = [following.at for following in history.counted[1:]]
    return {entry.sha256: end for entry, end in zip(history.counted, [*until, ""], strict=False)}


def plan_rollback(live: Entry | None, find: Callable[[int], Entry], to: Entry | None = None) -> Entry:
    """The promotion that a rollback would bring back: the one that entry `to` stands for, else the one before what is
    live. `find` gives the entry of a number; it is asked for such alone as another entry names.

    What was live before a promotion is what its base stands for. So a second rollback goes one further back instead of
    undoing the first, and a promotion made after a rollback is undone to what the rollback had brought back.

    Raises:
        Refused: nothing is live, or nothing was before it.
        UsageError: as `find`.
    """
    if live is None:
        raise Refused("nothing is live here, so there is nothing to roll back")
    if to is not None:
        return deployment(to, find)
    deployed = deployment(live, find)
    if deployed.base == 0:
        raise Refused(
            f"there is nothing to roll back to: version {deployed.candidate_version}, which is live, was the first "
            "deployment here (`--to N` brings back a later one)"
        )
    return deployment(find(deployed.base), find)


def deployment(entry: Entry, find: Callable[[int], Entry]) -> Entry:
    """The promotion that `entry` stands for: itself, or the one that a rollback brought back."""
    return find(entry.restores) if entry.kind == "rollback" else entry
