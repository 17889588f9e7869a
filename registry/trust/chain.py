"""Determines which entries of a signed log are proven, and detects later damage to the log. Pure.

    judged = judge(entries, rows, "production.cnn", signers)
    judged.proven       # the numbers of the entries that count
    judged.undecided    # signed entries that may have lost a race to an entry that is now missing or unproven
    judged.damage       # sentences: entries that were changed or deleted after a later one had named them

An entry is proven in one of two ways. One of the signers in params.yaml signed it. Or it is the base of a proven entry
that contains its digest: the signer of that entry checked it against the signers of that time. So a signer can be
removed, and the entries that later ones are based on remain proven. Only the removed signer's newest entry depends on
their own signature alone. It stays proven with `until` in params.yaml, or after another signer runs `onward sign`.

Every signed entry also names the newest row that its author saw, with the digest of the entry in it. Each row between
that row and the entry must be a proven entry, because any of them may have won a race against the entry. If such a row
is missing or unproven, it is unknown whether the entry lost a race, so it does not count. Otherwise, damaging the
winner of a race would make the loser live.

A signature does not cover the number of the row that contains the entry. Instead, the row is created with the entry's
digest in a field that MLflow never changes (entry_signatures.link). One more rule covers entries with the same base: if
the author of a later one saw an earlier one and did not use it as base, the earlier one had not counted. So it does not
count, whatever happens to its signature later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from onward.registry.log.entries import Entry
from onward.registry.trust.entry_signatures import AnyDraft, Signers, digest, link, proven


@dataclass(frozen=True)
class Judged:
    """The state of a log, or of its newest part, according to its signatures.

    Attributes:
        proven: The numbers of the proven entries.
        undecided: The numbers of signed entries of which it is unknown whether they lost a race.
        damage: One sentence per entry that was changed or deleted.
        open: Whether older rows must be read to judge these.
    """

    proven: frozenset[int]
    undecided: frozenset[int]
    damage: tuple[str, ...]
    open: bool = False


def follow(draft: AnyDraft, registered: str, newest: int, entries: Iterable[Entry]) -> AnyDraft:
    """Add to a draft the digests of its base and of the newest entry that its author saw.

    Args:
        draft: The entry to be signed.
        registered: The name of the log.
        newest: The number of the newest row of the log, with or without an entry; 0 for none.
        entries: The entries of the log, at least the newest ones back to the base of `draft`.

    Returns:
        A copy of the draft with `seen`, `seen_digest` and `base_digest`.
    """
    known = {entry.number: digest(entry, registered) for entry in entries if entry.number in (newest, draft.base)}
    tied = {"seen": newest, "seen_digest": known.get(newest, ""), "base_digest": known.get(draft.base, "")}
    return draft.model_copy(update=tied)


def judge(entries: Iterable[Entry], rows: Collection[int], registered: str, signers: Signers, floor: int = 0) -> Judged:
    """Judge a signed log, or its part above row `floor`.

    Args:
        entries: The entries in its rows, including approvals.
        rows: The numbers of all its rows, including those without an entry.
        registered: The name of the log.
        signers: The signers in params.yaml; at least one.
        floor: Only rows with higher numbers were read; 0 if all were.

    Returns:
        Which entries are proven, which are undecided, and what was damaged.
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
                # The author chose `at`, but it cannot be earlier than the time of the base.
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
    furthest: dict[int, int] = {}  # by base, the newest row that an author of an entry with this base saw
    for entry in deployments:
        if entry.seen < entry.number:
            furthest[entry.base] = max(entry.seen, furthest.get(entry.base, 0))
    passed = {entry.number for entry in deployments if entry.number <= furthest.get(entry.base, 0)}
    return Judged(
        frozenset(good - passed), frozenset(undecided), tuple(damage[number] for number in sorted(damage)), unread
    )


def _is_sound(entry: Entry, registered: str) -> bool:
    """Whether an entry is in the row that it was written to, and its base is a row that its author saw."""
    if entry.seen < 0:  # an older entry, without these fields
        return entry.link in ("", link(entry, registered))
    return entry.base <= entry.seen < entry.number and entry.link == link(entry, registered)
