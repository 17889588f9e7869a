"""Determines what is live from a log of entries, and what a rollback would restore. Pure: no MLflow, no clock.

    history = fold(entries)
    history.live                              # the live entry, or None
    plan_rollback(history.live, history.find) # the earlier deployment that a rollback would restore

The rule: an entry counts if its `base`, the entry that its author saw as live, is the last entry that counted. Else it
lost a race and changes nothing. So all readers of a log get the same answer without a lock. They need the newest
entries only: every entry that is a base of another did count, because that entry's author saw it live. The live entry
is therefore the first one with the highest base, and no entry older than that base can change this.
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

# The highest row number of any store: MLflow keeps version numbers in 32 bits.
_HIGHEST = 2**31 - 1


def _moment(text: str) -> str:
    """Require a time in ISO 8601 with an offset from UTC."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("has no time zone")
    return text


Number = Annotated[int, Field(ge=0, le=_HIGHEST)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Moment = Annotated[str, AfterValidator(_moment)]


class GateResult(BaseModel):
    """The result of one requirement for a version: whether it is met, and the reason as text."""

    model_config = ConfigDict(frozen=True)

    requirement: str
    met: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.requirement}: {printable(self.detail)}"


class Draft(BaseModel):
    """An entry that is not in the log yet.

    An approval is also an entry of the log. It has no base and does not change what is live.

    Attributes:
        kind: What the entry does.
        key: Unique to one attempt. If the answer of the server is lost, the author can still tell whether this attempt
            won.
        base: The number of the entry that the author saw as live; 0 for none.
        sha256: The digest of the deployed version's model files.
        candidate_version: The number of the deployed version among the candidates.
        source: The environment's own copy of the files.
        actor: The author's name.
        reason: The author's reason.
        at: The time, in ISO 8601 with an offset from UTC.
        manifest: The digest of the manifest of all files; empty in older entries, which pin only the model files.
        restores: For a rollback, the number of the promotion whose deployment it restores; else 0.
        forced: For a promotion, whether it was made although gates failed.
        gates: For a promotion, the results of its gates.
        gates_run: For a promotion that suites judged, the MLflow run with their pages; else empty.
        evidence: The version's tags.
        signer: The name of the key that signed the entry (registry/trust/entry_signatures.py); empty if unsigned.
        signature: The signature in base64; empty if unsigned.
        seen: For a signed entry, the number of the newest row that the author saw; -1 in older entries.
        seen_digest: The digest of the entry in that row; "" if the row contained none.
        base_digest: For a signed entry, the digest of its base; "" if it has none (registry/trust/chain.py).
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
            done = f"rolled back to {what}, deployed by entry {self.restores}"
            return printable(f"{self.actor} {done}: {self.reason}")
        unmet = [gate.requirement for gate in self.gates if not gate.met]
        if self.forced:
            return printable(f"{self.actor} force-promoted {what}, unmet: {', '.join(unmet) or 'none'}: {self.reason}")
        return printable(f"{self.actor} promoted {what}: {self.reason}")


class Entry(Draft):
    """One entry of an environment's log. `onward history` and MLflow show `str(entry)`.

    Attributes:
        number: The number of the entry's row, which is its place in the log.
        link: The row's immutable field with the digest of its content: see entry_signatures.link.
    """

    number: Annotated[int, Field(ge=1, le=_HIGHEST)]
    link: str = Field(default="", exclude=True, repr=False)


@dataclass(frozen=True)
class DeploymentHistory:
    """The entries of a log that counted and those that lost a race, each in the order of the log.

    Attributes:
        counted: The entries that counted.
        lost: The entries that lost a race.
        floor: Only entries with higher numbers were read; 0 if all were.
    """

    counted: tuple[Entry, ...]
    lost: tuple[Entry, ...]
    floor: int = 0

    @property
    def live(self) -> Entry | None:
        """The live entry; None if nothing is live."""
        return self.counted[-1] if self.counted else None

    @property
    def base(self) -> int:
        """The base of an entry that is appended now."""
        return self.counted[-1].number if self.counted else 0

    @property
    def settled(self) -> bool:
        """Whether enough was read to determine what is live, so that no older entry can change it."""
        return self.floor == 0 or (self.live is not None and self.live.base >= self.floor)

    def entries(self) -> list[Entry]:
        """List all entries in the order of the log."""
        return sorted((*self.counted, *self.lost), key=lambda entry: entry.number)

    def find(self, number: int) -> Entry:
        """Find an entry that counted.

        Args:
            number: The entry's number.

        Returns:
            The entry.

        Raises:
            UsageError: There is no such entry, or it lost a race and was never live.
        """
        for entry in self.counted:
            if entry.number == number:
                return entry
        if any(entry.number == number for entry in self.lost):
            raise UsageError(f"entry {number} lost a race and was never live; `onward history` lists those that were")
        raise UsageError(f"there is no entry {number}; `onward history` lists all entries")

    def won(self, key: str) -> Entry | None:
        """Find the entry of the attempt `key`; None if it did not count."""
        return next((entry for entry in self.counted if entry.key == key), None)


def fold(entries: Iterable[Entry], floor: int = 0) -> DeploymentHistory:
    """Determine which entries of a log counted.

    If only a part of the log was read, the result is correct if it is `settled`.

    Onward deletes no entries, but an administrator of the store can. A missing entry that a later one names as its base
    did count, because that entry's author saw it live. An entry whose base is itself or a later entry is invalid and
    does not count.

    Args:
        entries: The entries, in any order.
        floor: Only entries with higher numbers are used; 0 for all.

    Returns:
        The entries that counted and those that lost a race.
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
    """The last entry that counted: the first one with the highest base."""
    highest = max((entry.base for entry in sound), default=0)
    return next((entry for entry in sound if entry.base == highest), None)


def last_live(history: DeploymentHistory) -> dict[str, str]:
    """Determine when each deployment was live last.

    Args:
        history: The history of an environment.

    Returns:
        By sha256, the time at which the next deployment replaced it; "" if it is live now.
    """
    until = [following.at for following in history.counted[1:]]
    return {entry.sha256: end for entry, end in zip(history.counted, [*until, ""], strict=False)}


def plan_rollback(live: Entry | None, find: Callable[[int], Entry], to: Entry | None = None) -> Entry:
    """Find the promotion that a rollback would restore.

    The deployment before a promotion is the one of the promotion's base. So a second rollback goes one deployment
    further back instead of undoing the first. A rollback of a promotion that followed a rollback restores what that
    rollback had restored.

    Args:
        live: The live entry.
        find: Returns the entry with a number. It is called only with numbers that other entries refer to.
        to: The entry whose deployment to restore; None for the deployment before the live one.

    Returns:
        The promotion to restore.

    Raises:
        Refused: Nothing is live, or there was no earlier deployment.
        UsageError: As `find`.
    """
    if live is None:
        raise Refused("nothing is live here, so there is nothing to roll back")
    if to is not None:
        return deployment(to, find)
    deployed = deployment(live, find)
    if deployed.base == 0:
        raise Refused(
            f"there is nothing to roll back to: version {deployed.candidate_version}, which is live, was the first "
            "deployment here (`--to N` restores a later one)"
        )
    return deployment(find(deployed.base), find)


def deployment(entry: Entry, find: Callable[[int], Entry]) -> Entry:
    """Find the promotion that made an entry's deployment: the entry itself, or the one that a rollback restored.

    Args:
        entry: An entry that counted.
        find: Returns the entry with a number.

    Returns:
        The promotion.
    """
    return find(entry.restores) if entry.kind == "rollback" else entry
