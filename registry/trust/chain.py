"""Which entries of a signed log are proven, and what was done to the log behind its signers' backs. Pure.

    judged = judge(entries, rows, "production.cnn", signers)
    judged.proven       # what counts, by number
    judged.undecided    # signed, but something that is not proven stands where the winner of a race might have stood
    judged.damage       # in words: entries that were changed or deleted after a later one had named them

An entry is proven in one of two ways. Its signature is by one of the signers that params.yaml has now. Or a proven
entry has it as its base and holds its digest: whoever signed that one judged it by the signers of that time. So a
signer can be removed, and what came after their entries still rests on them. Their newest entry rests on nothing but
their own signature: `until` in params.yaml, or `onward sign` by another signer, keeps it.

Every signed entry also names the newest row that its author saw, with the digest of the entry in it. Each row between
that one and the entry itself has to be a proven entry: it may have lost the race, or won it. If such a row is missing
or not proven, nobody can say whether the entry lost a race, and it does not count. Else a signer's entry that lost
would go live as soon as somebody damaged the winner.

A signature says nothing of the row that an entry is in. The row does: it was created with the entry's digest in a field
that MLflow lets nobody change (signatures.link). And an entry whose author saw another one, and did not rest on it
although both have the same base, has passed that one over: it does not count, whatever becomes of its signature later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from onward.registry.log.entries import Draft, Entry
from onward.registry.trust.entry_signatures import Signers, digest, link, proven

AnyDraft = TypeVar("AnyDraft", bound=Draft)


@dataclass(frozen=True)
class Judged:
    """What signatures say of a log, or of its newest part.

    proven, undecided: numbers of entries. damage: sentences. open: whether older rows have to be read to judge these.
    """

    proven: frozenset[int]
    undecided: frozenset[int]
    damage: tuple[str, ...]
    open: bool = False


def follow(draft: AnyDraft, registered: str, newest: int, entries: Iterable[Entry]) -> AnyDraft:
    """`draft`, tied to what its author saw.

    Args:
        draft: an entry that is to be signed.
        registered: the name of the log.
        newest: the number of the newest row of the log, entry or not; 0 for none.
        entries: what the log holds, at least the newest part with the base of `draft`.
    """
    known = {entry.number: digest(entry, registered) for entry in entries if entry.number in (newest, draft.base)}
    tied = {"seen": newest, "seen_digest": known.get(newest, ""), "base_digest": known.get(draft.base, "")}
    return draft.model_copy(update=tied)


def judge(entries: Iterable[Entry], rows: Collection[int], registered: str, signers: Signers, floor: int = 0) -> Judged:
    """Judge a signed log, or its part above row `floor`.

    Args:
        entries: what its rows hold, approvals included.
        rows: the numbers of all its rows, those that hold no entry included.
        registered: the name of the log.
        signers: those of params.yaml; at least one.
        floor: only rows of higher numbers were read; 0 where all were.
    """
    log = {entry.number: entry for entry in entries}
    good, based, unread = set(), set(), False
    damage: dict[int, str] = {}
    for number in sorted(log, reverse=True):
        entry = log[number]
        before = log.get(entry.base)
        if number not in good:
            if not _is_sound(entry, registered) or not proven(entry, registered, signers):
                continue
            if signers[entry.signer].until is not None and entry.base:
                # `at` is the author's own word. It cannot be earlier than that of the entry it rests on.
                if before is None:
                    unread = unread or entry.base <= floor
                    continue
                if datetime.fromisoformat(before.at) > datetime.fromisoformat(entry.at):
                    continue
            good.add(number)
        for named, wanted in ((entry.base, entry.base_digest), (entry.seen, entry.seen_digest)):
            if not wanted or named <= floor:
                continue
            if named not in rows:
                damage[named] = f"entry {named} was deleted after entry {number} had named it"
            elif named not in log or digest(log[named], registered) != wanted:
                damage[named] = f"entry {named} was changed after entry {number} had named it"
            elif named == entry.base:
                good.add(named)
                based.add(named)
    deployments = [log[number] for number in sorted(good) if log[number].kind != "approve"]
    undecided = {
        entry.number
        for entry in deployments
        if entry.number not in based
        and entry.seen >= 0
        and not good.issuperset(range(max(entry.seen, floor) + 1, entry.number))
    }
    furthest: dict[int, int] = {}  # by base, the newest row that the author of an entry with this base saw
    for entry in deployments:
        if entry.seen < entry.number:
            furthest[entry.base] = max(entry.seen, furthest.get(entry.base, 0))
    passed = {entry.number for entry in deployments if entry.number <= furthest.get(entry.base, 0)}
    return Judged(frozenset(good - passed), frozenset(undecided), tuple(damage[n] for n in sorted(damage)), unread)


def _is_sound(entry: Entry, registered: str) -> bool:
    """Whether an entry stands in the row that it was written to, and rests on a row that its author saw."""
    if entry.seen < 0:  # of before there were links
        return entry.link in ("", link(entry, registered))
    return entry.base <= entry.seen < entry.number and entry.link == link(entry, registered)
