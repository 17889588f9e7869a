"""Signed logs: what is proven, what stays undecided, and how tampering is reported."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.registry.log.entries import Draft
from onward.registry.store.schema import Log, from_version, parse_log, to_tags
from onward.registry.trust import chain
from onward.registry.trust.entry_signatures import Key, Signer, digest, link, sign
from tests.conftest import not_none

LOG = "production.cnn"
KEYS = {name: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n, name in enumerate(("ann", "bob", "eve"))}
SIGNERS = {
    name: Signer(key=base64.b64encode(key.public_key().public_bytes_raw()).decode())
    for name, key in KEYS.items()
    if name != "eve"
}


TIES = {"seen", "seen_digest", "base_digest"}


class Row:
    """A version of a registered model, as MLflow returns it."""

    def __init__(self, number: int, tags: dict[str, str], run_link: str | None = None) -> None:
        self.version, self.tags, self.run_link = number, tags, run_link
        self.name, self.source, self.creation_timestamp, self.current_stage = LOG, f"models:/m-{number}", 0, None


class Book:
    """A log with several authors, each of whom writes from the state that they read."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, str]] = {}
        self.links: dict[int, str | None] = {}
        self.last = 0

    def read(self, signers: Mapping[str, Signer] = SIGNERS, floor: int = 0) -> Log:
        return parse_log(LOG, [Row(n, t, self.links[n]) for n, t in self.rows.items() if n > floor], signers, floor)

    def live(self, signers: Mapping[str, Signer] = SIGNERS) -> int:
        return self.read(signers).history.base

    def draft(self, who: str = "ann", at: str = "2026-01-02T03:04:05+00:00", seen: Log | None = None) -> Draft:
        """The entry that `who` would append after reading the log, or its earlier state `seen`."""
        seen = seen or self.read()
        number = self.last + 1
        unsigned = Draft(
            kind="promote", key=f"key{number}{who}", base=seen.history.base, sha256=f"{number:064x}",
            candidate_version=number, source="models:/m", actor=who, reason="because", at=at,
        )  # fmt: skip
        return sign(chain.follow(unsigned, LOG, seen.newest, seen.entries()), LOG, Key(who, KEYS[who]))

    def write(self, draft: Draft) -> int:
        return self.put(to_tags(draft))

    def put(self, tags: dict[str, str]) -> int:
        """Add a row with the link that matches its tags. A link is set when a row is created and never changes."""
        self.last += 1
        self.rows[self.last] = dict(tags)
        entry = from_version(Row(self.last, tags))
        self.links[self.last] = link(entry, LOG) if entry else None
        return self.last

    def promote(self, *who: str) -> None:
        for name in who:
            self.write(self.draft(name))


def raced() -> Book:
    """A log in which row 3 by bob lost to row 2 by ann: both read row 1 as live."""
    book = Book()
    book.promote("ann")
    late = book.draft("bob")
    book.promote("ann")
    book.write(late)
    return book


def test_a_changed_newest_entry_raises_an_alarm_and_the_last_proven_entry_stays_live() -> None:
    book = Book()
    book.promote("ann", "bob", "ann")
    book.rows[3]["reason"] = "becausf"
    log = book.read()
    assert (log.history.base, log.alarm) == (
        2,
        ("row 3 is not signed by any of the signers, or was changed after that",),
    )
    book.promote("bob")
    assert (book.live(), book.read().alarm) == (4, ())
    assert not_none(book.read().history.live).base == 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda rows: rows[2].update(base="0"), "row 2 is not signed"),
        (lambda rows: rows[2].update(kind="approve"), "row 2 is not signed"),
        (lambda rows: rows[2].pop("signature"), "row 2 is not signed"),
        (lambda rows: rows[2].pop("key"), "row 2 is not an entry of Onward's"),
        (lambda rows: rows[2].update(schema="7"), "row 2 was written by a newer Onward"),
        (lambda rows: rows.pop(2), "row 3 is signed, but a row before it is missing or not proven"),
    ],
)
def test_damage_to_the_winner_does_not_make_a_lost_entry_live(damage: Callable[[Any], object], sentence: str) -> None:
    book = raced()
    assert book.live() == 2
    damage(book.rows)
    log = book.read()
    assert log.history.base == 1
    assert any(alarm.startswith(sentence) for alarm in log.alarm), log.alarm


def test_entries_of_a_removed_signer_count_below_later_entries() -> None:
    book = Book()
    book.promote("ann", "ann", "bob")
    later = {"bob": SIGNERS["bob"]}
    log = book.read(later)
    assert [entry.number for entry in log.history.counted] == [1, 2, 3]
    assert (log.unproven, log.alarm) == ((), ())


def test_the_last_entry_of_a_removed_signer_raises_an_alarm_and_its_losers_stay_lost() -> None:
    book = Book()
    book.promote("bob")
    late = book.draft("bob")
    book.promote("ann")
    book.write(late)
    log = book.read({"bob": SIGNERS["bob"]})
    assert log.history.base == 1
    assert [entry.number for entry in log.unproven] == [2, 3]
    assert len(log.alarm) == 2


def test_until_accepts_entries_before_the_signer_left_and_none_later() -> None:
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("bob", "ann")
    assert (book.live(left), book.read(left).alarm) == (2, ())
    book.write(book.draft("ann", at="2026-01-04T00:00:00+00:00"))
    assert book.live(left) == 2
    book.write(book.draft("bob", at="2026-01-05T00:00:00+00:00", seen=book.read(left)))
    assert book.live(left) == 4
    # Her clock may be wrong, but her entry cannot be earlier than its base.
    book.write(book.draft("ann", at="2026-01-02T00:00:00+00:00", seen=book.read(left)))
    for floor in (0, 3, 4):
        log = book.read(left, floor)
        assert not log.settled or log.history.base == 4


def test_deleted_and_changed_past_entries_are_named() -> None:
    book = Book()
    book.promote("ann", "bob", "ann", "bob", "ann")
    assert book.read().damage == ()
    book.rows[4]["reason"] = "other"
    del book.rows[2]
    assert book.read().damage == (
        "entry 2 was deleted after entry 3 had named it",
        "entry 4 was changed after entry 5 had named it",
    )
    assert book.live() == 5


def test_tags_copied_to_another_row_are_not_proven() -> None:
    book = raced()
    book.rows[2], book.rows[3] = book.rows[3], book.rows[2]
    assert (book.live(), len(book.read().alarm)) == (1, 2)
    book.rows[2] = book.rows[3] = book.rows[1]
    assert (book.live(), len(book.read().alarm)) == (1, 2)


def test_a_skipped_entry_stays_skipped() -> None:
    book = Book()
    book.promote("ann", "ann")
    signature = book.rows[2].pop("signature")
    book.promote("bob")
    assert (book.live(), not_none(book.read().history.live).base) == (3, 1)
    book.rows[2]["signature"] = signature
    log = book.read()
    assert (log.history.base, log.alarm) == (3, ())
    assert [entry.number for entry in log.unproven] == [2]
    book.promote("ann")
    assert [entry.number for entry in book.read().history.counted] == [1, 3, 4]


def test_a_draft_references_its_base_and_the_newest_row_its_author_saw() -> None:
    book = Book()
    book.promote("ann")
    late = book.draft("bob")
    book.promote("ann")
    lost = book.write(late)
    entries = {e.number: e for e in book.read().entries()}
    unsigned = entries[2].model_copy(update={"base": 2, "seen": -1, "seen_digest": "", "base_digest": ""})
    tied = chain.follow(unsigned, LOG, lost, entries.values())
    assert (tied.seen, tied.seen_digest) == (3, digest(entries[3], LOG))
    assert tied.base_digest == digest(entries[2], LOG)
    assert tied.model_dump(exclude=TIES) == unsigned.model_dump(exclude=TIES)
    # A row that is not an entry has no digest, and neither does the base of the first entry.
    first = chain.follow(unsigned.model_copy(update={"base": 0}), LOG, 9, entries.values())
    assert (first.seen, first.seen_digest, first.base_digest) == (9, "", "")


@pytest.mark.parametrize(
    ("how", "words"), [("change", "was changed"), ("delete", "was deleted"), ("garble", "was changed")]
)
def test_damage_to_a_lost_entry_is_reported_if_later_authors_saw_it(how: str, words: str) -> None:
    book = raced()
    book.promote("ann", "bob")
    assert book.read().damage == ()
    if how == "delete":
        del book.rows[3]
    elif how == "garble":
        book.rows[3] = {}
    else:
        book.rows[3]["reason"] = "other"
    log = book.read()
    assert log.damage == (f"entry 3 {words} after entry 4 had named it",)
    assert (log.history.base, log.alarm) == (5, ())
    assert book.read(floor=2).damage == log.damage
    assert book.read(floor=3).damage == ()


def tied(book: Book, who: str, base: int, seen: int, seen_digest: str = "", base_digest: str = "") -> Draft:
    """A signed entry of `who` that claims to have seen this row."""
    said = {"base": base, "seen": seen, "seen_digest": seen_digest, "base_digest": base_digest}
    return sign(book.draft(who).model_copy(update=said), LOG, Key(who, KEYS[who]))


def judged(book: Book, signers: Mapping[str, Signer] = SIGNERS) -> chain.Judged:
    """The verdict over a whole log."""
    entries = {
        e.number: e for e in parse_log(LOG, [Row(n, t, book.links[n]) for n, t in book.rows.items()], {}).entries()
    }
    return chain.judge(entries.values(), book.rows.keys(), LOG, signers)


def test_a_complete_log_is_judged_completely() -> None:
    book = Book()
    book.promote("ann", "bob", "ann")
    assert judged(book) == chain.Judged(frozenset({1, 2, 3}), frozenset(), ())
    assert not judged(book).open
    book.rows[1]["reason"] = "other"
    assert judged(book).damage == ("entry 1 was changed after entry 2 had named it",)
    del book.rows[1]
    assert judged(book).damage == ("entry 1 was deleted after entry 2 had named it",)


def test_a_signed_entry_of_an_older_schema_without_references_counts() -> None:
    book = Book()
    for base in (0, 1, 2):
        book.write(tied(book, "ann", base, seen=-1))
    assert (book.live(), book.read().alarm, book.read().damage) == (3, (), ())
    book.write(tied(book, "bob", base=1, seen=-1))
    assert book.live() == 3
    del book.rows[1]  # the rows that their authors saw are unknown
    assert (book.live(), book.read().unproven) == (3, ())


@pytest.mark.parametrize(
    ("base", "seen", "counts"),
    [(2, 3, True), (3, 3, True), (2, 2, True), (3, 2, False), (3, 0, False), (3, 4, False), (3, 5, False)],
)
def test_an_entry_that_saw_less_than_its_base_does_not_count(base: int, seen: int, counts: bool) -> None:
    book = Book()
    book.promote("ann", "bob", "ann")
    number = book.write(tied(book, "bob", base, seen))
    assert (number in judged(book).proven) == counts


def test_an_entry_that_claims_to_have_seen_itself_is_not_proven() -> None:
    book = Book()
    book.write(tied(book, "ann", base=0, seen=1))
    assert judged(book).proven == frozenset()
    first = from_version(Row(1, book.rows[1]))
    assert first is not None
    book.write(tied(book, "bob", base=1, seen=1, base_digest=digest(first, LOG)))
    assert judged(book).proven == {1, 2}  # bob vouches for it, and was the only one to see it


def test_the_first_entry_of_a_departed_signer_needs_no_older_entry() -> None:
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("ann")
    log = book.read(left)
    assert (log.history.base, log.settled, log.open) == (1, True, False)


def test_an_entry_of_a_departed_signer_is_judged_with_its_base() -> None:
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("bob", "bob", "ann")
    assert (book.read(left, floor=2).settled, book.read(left, floor=2).open) == (False, True)
    assert (book.read(left, floor=1).history.base, book.read(left, floor=1).settled) == (3, True)
    book.promote("ann")  # proves the previous one, if that was read
    assert (book.read(left, floor=2).history.base, book.read(left, floor=2).settled) == (4, True)
    assert not book.read(left, floor=3).settled
    assert book.read(left).history.base == 4
    del book.rows[3]  # a log read from its beginning is settled
    log = book.read(left)
    assert (log.history.base, log.settled) == (2, True)
    assert [alarm.split()[1] for alarm in log.alarm] == ["4"]


def approval(book: Book, who: str, seen: Log) -> Draft:
    draft = book.draft(who, seen=seen).model_copy(update={"kind": "approve", "base": 0, "base_digest": ""})
    return sign(draft, LOG, Key(who, KEYS[who]))


def test_the_base_of_a_later_signer_counts_even_if_earlier_rows_are_damaged() -> None:
    book = Book()
    book.promote("ann")
    seen = book.read()
    book.write(approval(book, "bob", seen))
    book.write(book.draft("ann", seen=seen))
    only_ann = {"ann": SIGNERS["ann"]}
    log = book.read(only_ann)  # the row by bob may have been a winning entry
    assert (log.history.base, [e.number for e in log.unproven]) == (1, [2, 3])
    book.promote("ann")
    log = book.read(only_ann)
    assert [e.number for e in log.history.counted] == [1, 3, 4]
    assert (judged(book, only_ann).undecided, log.alarm) == (frozenset(), ())


def test_seeing_a_row_does_not_prove_it() -> None:
    book = Book()
    book.promote("ann")
    book.write(approval(book, "eve", book.read()))
    book.promote("ann")
    log = book.read()
    assert (log.history.base, not_none(log.history.live).seen) == (3, 2)
    assert (log.approvals, [e.number for e in log.unproven]) == ((), [2])


def test_approvals_do_not_race() -> None:
    book = Book()
    book.promote("ann")
    seen = book.read()
    book.put({})
    book.write(approval(book, "bob", seen))
    assert [e.number for e in book.read().approvals] == [3]
    assert [e.number for e in book.read().history.counted] == [1]


def test_unproven_rows_are_reported_in_log_order_for_every_read_order() -> None:
    book = Book()
    book.promote("ann")
    seen = book.read()
    for tags in ({}, {"schema": "3"}, {"schema": "3", "signature": "x"}):
        book.put(tags)
    book.write(approval(book, "eve", seen))
    book.promote("eve")
    book.put({})
    book.put({"schema": "9", "signature": "x"})
    rows = [Row(number, tags, book.links[number]) for number, tags in book.rows.items()]
    for order in (rows, rows[::-1], rows[4:] + rows[:4]):
        log = parse_log(LOG, order, SIGNERS)
        assert (log.foreign, log.newer, log.newest) == ((2, 7), (3, 4, 8), 8)
        assert [e.number for e in log.unproven] == [5, 6]
        assert log.approvals == ()
        assert [alarm.split(" ", 2)[:2] for alarm in log.alarm] == [["row", str(n)] for n in range(2, 9)]
        unsigned = parse_log(LOG, order, {})
        assert (unsigned.foreign, unsigned.newer) == ((2, 7), (3, 4, 8))
        assert [e.number for e in unsigned.approvals] == [5]
    book.write(approval(book, "bob", seen))
    book.write(approval(book, "ann", seen))
    rows = [Row(number, tags, book.links[number]) for number, tags in book.rows.items()]
    assert [e.number for e in parse_log(LOG, rows[::-1], SIGNERS).approvals] == [9, 10]


def test_one_entry_with_an_unread_base_leaves_the_log_unsettled() -> None:
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("bob", "bob", "bob", "bob")
    book.write(tied(book, "ann", base=4, seen=4))
    book.write(tied(book, "ann", base=1, seen=5))
    del book.rows[4]
    log = book.read(left, floor=2)
    assert log.open
    assert [e.number for e in log.history.counted] == [3]


def test_an_entry_of_a_non_signer_changes_nothing_and_is_named() -> None:
    book = Book()
    book.promote("ann")
    book.promote("eve")
    book.put(book.rows[1])  # a repeated entry
    book.put({"schema": "2"})
    book.put({})
    log = book.read()
    assert log.history.base == 1
    assert [alarm.split()[1] for alarm in log.alarm] == ["2", "3", "4", "5"]
    assert [entry.number for entry in log.unproven] == [2, 3]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_attacker_without_a_key_can_only_restore_an_earlier_version_and_raises_an_alarm(data: st.DataObject) -> None:
    """Signers write, some of them late; then an attacker changes, deletes and adds rows.

    The version that is live afterwards was live before. If it is not the last live version, there is an alarm, unless
    the newest rows were deleted.
    """
    book = Book()
    was_live = [0]
    pending: list[Draft] = []
    for who, late in data.draw(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.booleans()), max_size=6)):
        if late:
            pending.append(book.draft(who))
        else:
            is_pending = bool(pending) and data.draw(st.booleans())
            book.write(pending.pop(0) if is_pending else book.draft(who))
            was_live.append(book.live())
    intact = book.read()
    for _ in range(data.draw(st.integers(1, 3))):
        how = data.draw(st.sampled_from(["change", "delete", "add", "copy", "swap", "overwrite"]))
        if how == "add" or not book.rows:
            book.put(data.draw(st.sampled_from([{}, {"schema": "2"}, {"schema": "²"}, {"gates": "[" * 9999}])))
        elif how in ("swap", "overwrite"):
            one, other = (data.draw(st.sampled_from(sorted(book.rows))) for _ in range(2))
            words = book.rows[one], book.rows[other]
            book.rows[one] = dict(words[1])
            book.rows[other] = dict(words[0]) if how == "swap" else book.rows[other]
        elif how == "copy":
            changes = data.draw(st.dictionaries(st.sampled_from(["base", "seen", "key"]), st.just("1"), max_size=2))
            book.put({**book.rows[data.draw(st.sampled_from(sorted(book.rows)))], **changes})
        else:
            number = data.draw(st.sampled_from(sorted(book.rows)))
            if how == "delete":
                del book.rows[number]
            else:
                name = data.draw(st.sampled_from(["base", "seen", "reason", "kind", "signature", "at", "key", "actor"]))
                book.rows[number][name] = data.draw(st.sampled_from(["0", "1", "2", "approve", "9999"]))
    log = book.read()
    assert log.history.base in was_live
    if log.history.base != intact.history.base and intact.history.base in book.rows:
        assert log.alarm
    newest_left = max(book.rows, default=0)
    if log.history.base != intact.history.base and newest_left > intact.history.base:
        assert log.alarm or log.damage


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_the_newest_rows_give_the_same_verdict_as_the_whole_log(data: st.DataObject) -> None:
    book = Book()
    for who in data.draw(st.lists(st.sampled_from(["ann", "bob", "eve", ""]), min_size=1, max_size=8)):
        if who:
            book.write(book.draft(who))
        else:
            book.put({})
    removed = {"bob": SIGNERS["bob"]}
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-02T03:04:05+00:00")}
    for signers in (SIGNERS, removed, left):
        whole = book.read(signers)
        for floor in range(book.last):
            part = book.read(signers, floor)
            if part.settled:
                assert (part.history.base, part.alarm) == (whole.history.base, whole.alarm)


def test_without_signers_every_entry_counts() -> None:
    book = Book()
    book.promote("eve")
    book.write(book.draft("eve", seen=book.read({})))
    assert (book.live({}), book.read({}).alarm) == (2, ())
