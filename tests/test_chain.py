"""Signed logs: what is proven, what nobody can decide, and what was done to a log behind its signers' backs."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.registry.log.entries import Draft
from onward.registry.store.schema import Log, from_version, parse_log, to_tags
from onward.registry.trust import chain
from onward.registry.trust.entry_signatures import Key, Signer, digest, link, sign

LOG = "production.cnn"
KEYS = {name: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n, name in enumerate(("ann", "bob", "eve"))}
SIGNERS = {
    name: Signer(key=base64.b64encode(key.public_key().public_bytes_raw()).decode())
    for name, key in KEYS.items()
    if name != "eve"
}


TIES = {"seen", "seen_digest", "base_digest"}


class Row:
    """A version of a registered model, as MLflow has it."""

    def __init__(self, number: int, tags: dict[str, str], run_link: str | None = None) -> None:
        self.version, self.tags, self.run_link = number, tags, run_link
        self.name, self.source, self.creation_timestamp, self.current_stage = LOG, f"models:/m-{number}", 0, None


class Book:
    """A log that people write to, each from what they saw."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, str]] = {}
        self.links: dict[int, str | None] = {}
        self.last = 0

    def read(self, signers=SIGNERS, floor: int = 0) -> Log:
        return parse_log(LOG, [Row(n, t, self.links[n]) for n, t in self.rows.items() if n > floor], signers, floor)

    def live(self, signers=SIGNERS) -> int:
        return self.read(signers).history.base

    def draft(self, who: str = "ann", at: str = "2026-01-02T03:04:05+00:00", seen: Log | None = None) -> Draft:
        """What `who` would append, who sees the log as it is, or as it was."""
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
        """A new row, with the link that fits its words: whoever makes a row chooses that, and nobody changes it."""
        self.last += 1
        self.rows[self.last] = dict(tags)
        entry = from_version(Row(self.last, tags))
        self.links[self.last] = link(entry, LOG) if entry else None
        return self.last

    def promote(self, *who: str) -> None:
        for name in who:
            self.write(self.draft(name))


def raced() -> Book:
    """A log in which row 3, by bob, lost to row 2, by ann: both saw row 1 as live."""
    book = Book()
    book.promote("ann")
    late = book.draft("bob")
    book.promote("ann")
    book.write(late)
    return book


def test_a_changed_newest_entry_raises_an_alarm_and_the_last_proven_one_stays():
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
    assert book.read().history.live.base == 2


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
def test_an_entry_that_lost_a_race_never_goes_live_because_the_winner_was_damaged(damage, sentence):
    book = raced()
    assert book.live() == 2
    damage(book.rows)
    log = book.read()
    assert log.history.base == 1
    assert any(alarm.startswith(sentence) for alarm in log.alarm), log.alarm


def test_a_removed_signers_entries_go_on_counting_below_later_ones():
    book = Book()
    book.promote("ann", "ann", "bob")
    later = {"bob": SIGNERS["bob"]}
    log = book.read(later)
    assert [entry.number for entry in log.history.counted] == [1, 2, 3]
    assert (log.unproven, log.alarm) == ((), ())


def test_a_removed_signers_last_entry_raises_an_alarm_and_what_lost_to_it_stays_lost():
    book = Book()
    book.promote("bob")
    late = book.draft("bob")
    book.promote("ann")
    book.write(late)
    log = book.read({"bob": SIGNERS["bob"]})
    assert log.history.base == 1
    assert [entry.number for entry in log.unproven] == [2, 3]
    assert len(log.alarm) == 2


def test_until_keeps_what_a_signer_wrote_while_being_one_and_nothing_later():
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("bob", "ann")
    assert (book.live(left), book.read(left).alarm) == (2, ())
    book.write(book.draft("ann", at="2026-01-04T00:00:00+00:00"))
    assert book.live(left) == 2
    book.write(book.draft("bob", at="2026-01-05T00:00:00+00:00", seen=book.read(left)))
    assert book.live(left) == 4
    # Her clock may lie, but not against the entry that hers rests on.
    book.write(book.draft("ann", at="2026-01-02T00:00:00+00:00", seen=book.read(left)))
    for floor in (0, 3, 4):
        log = book.read(left, floor)
        assert not log.settled or log.history.base == 4


def test_deleted_and_changed_entries_of_the_past_are_named():
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


def test_the_words_of_one_row_put_into_another_are_not_proven():
    book = raced()
    book.rows[2], book.rows[3] = book.rows[3], book.rows[2]
    assert (book.live(), len(book.read().alarm)) == (1, 2)
    book.rows[2] = book.rows[3] = book.rows[1]
    assert (book.live(), len(book.read().alarm)) == (1, 2)


def test_an_entry_that_another_one_passed_over_stays_so():
    book = Book()
    book.promote("ann", "ann")
    signature = book.rows[2].pop("signature")
    book.promote("bob")
    assert (book.live(), book.read().history.live.base) == (3, 1)
    book.rows[2]["signature"] = signature
    log = book.read()
    assert (log.history.base, log.alarm) == (3, ())
    assert [entry.number for entry in log.unproven] == [2]
    book.promote("ann")
    assert [entry.number for entry in book.read().history.counted] == [1, 3, 4]


def test_a_draft_is_tied_to_its_base_and_to_the_newest_row_that_its_author_saw():
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
    # A row that is no entry has no digest, and neither has the base of the first one.
    first = chain.follow(unsigned.model_copy(update={"base": 0}), LOG, 9, entries.values())
    assert (first.seen, first.seen_digest, first.base_digest) == (9, "", "")


@pytest.mark.parametrize(
    ("how", "words"), [("change", "was changed"), ("delete", "was deleted"), ("garble", "was changed")]
)
def test_a_lost_entry_that_later_authors_saw_is_missed_as_well(how, words):
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
    """What `who` would sign who claims to have seen that."""
    said = {"base": base, "seen": seen, "seen_digest": seen_digest, "base_digest": base_digest}
    return sign(book.draft(who).model_copy(update=said), LOG, Key(who, KEYS[who]))


def judged(book: Book, signers=SIGNERS) -> chain.Judged:
    """The verdict over a whole log."""
    entries = {
        e.number: e for e in parse_log(LOG, [Row(n, t, book.links[n]) for n, t in book.rows.items()], {}).entries()
    }
    return chain.judge(entries.values(), book.rows.keys(), LOG, signers)


def test_a_whole_log_is_judged_from_its_first_row_and_nothing_is_left_open():
    book = Book()
    book.promote("ann", "bob", "ann")
    assert judged(book) == chain.Judged(frozenset({1, 2, 3}), frozenset(), ())
    assert not judged(book).open
    book.rows[1]["reason"] = "other"
    assert judged(book).damage == ("entry 1 was changed after entry 2 had named it",)
    del book.rows[1]
    assert judged(book).damage == ("entry 1 was deleted after entry 2 had named it",)


def test_a_signed_entry_of_before_has_no_ties_and_counts():
    book = Book()
    for base in (0, 1, 2):
        book.write(tied(book, "ann", base, seen=-1))
    assert (book.live(), book.read().alarm, book.read().damage) == (3, (), ())
    book.write(tied(book, "bob", base=1, seen=-1))
    assert book.live() == 3
    del book.rows[1]  # which rows their authors saw is not known
    assert (book.live(), book.read().unproven) == (3, ())


@pytest.mark.parametrize(
    ("base", "seen", "counts"),
    [(2, 3, True), (3, 3, True), (2, 2, True), (3, 2, False), (3, 0, False), (3, 4, False), (3, 5, False)],
)
def test_nobody_can_have_seen_less_than_their_base_or_their_own_entry(base, seen, counts):
    book = Book()
    book.promote("ann", "bob", "ann")
    number = book.write(tied(book, "bob", base, seen))
    assert (number in judged(book).proven) == counts


def test_an_entry_that_says_it_saw_itself_passes_nothing_over():
    book = Book()
    book.write(tied(book, "ann", base=0, seen=1))
    assert judged(book).proven == frozenset()
    first = from_version(Row(1, book.rows[1]))
    assert first is not None
    book.write(tied(book, "bob", base=1, seen=1, base_digest=digest(first, LOG)))
    assert judged(book).proven == {1, 2}  # bob vouches for it, and was the only one to see it


def test_the_first_entry_of_one_who_has_left_rests_on_nothing_older():
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("ann")
    log = book.read(left)
    assert (log.history.base, log.settled, log.open) == (1, True, False)


def test_an_entry_of_one_who_has_left_is_judged_with_the_entry_that_it_rests_on():
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("bob", "bob", "ann")
    assert (book.read(left, floor=2).settled, book.read(left, floor=2).open) == (False, True)
    assert (book.read(left, floor=1).history.base, book.read(left, floor=1).settled) == (3, True)
    book.promote("ann")  # proves the one before, as far as that is read
    assert (book.read(left, floor=2).history.base, book.read(left, floor=2).settled) == (4, True)
    assert not book.read(left, floor=3).settled
    assert book.read(left).history.base == 4
    del book.rows[3]  # what was read to its beginning is not left open
    log = book.read(left)
    assert (log.history.base, log.settled) == (2, True)
    assert [alarm.split()[1] for alarm in log.alarm] == ["4"]


def approval(book: Book, who: str, seen: Log) -> Draft:
    draft = book.draft(who, seen=seen).model_copy(update={"kind": "approve", "base": 0, "base_digest": ""})
    return sign(draft, LOG, Key(who, KEYS[who]))


def test_what_a_later_signer_rested_on_is_decided_whatever_became_of_the_rows_before_it():
    book = Book()
    book.promote("ann")
    seen = book.read()
    book.write(approval(book, "bob", seen))
    book.write(book.draft("ann", seen=seen))
    only_ann = {"ann": SIGNERS["ann"]}
    log = book.read(only_ann)  # bob's row may have been an entry that won
    assert (log.history.base, [e.number for e in log.unproven]) == (1, [2, 3])
    book.promote("ann")
    log = book.read(only_ann)
    assert [e.number for e in log.history.counted] == [1, 3, 4]
    assert (judged(book, only_ann).undecided, log.alarm) == (frozenset(), ())


def test_to_have_seen_a_row_is_not_to_vouch_for_it():
    book = Book()
    book.promote("ann")
    book.write(approval(book, "eve", book.read()))
    book.promote("ann")
    log = book.read()
    assert (log.history.base, log.history.live.seen) == (3, 2)
    assert (log.approvals, [e.number for e in log.unproven]) == ((), [2])


def test_an_approval_has_nobody_to_race_with():
    book = Book()
    book.promote("ann")
    seen = book.read()
    book.put({})
    book.write(approval(book, "bob", seen))
    assert [e.number for e in book.read().approvals] == [3]
    assert [e.number for e in book.read().history.counted] == [1]


def test_whatever_is_no_proven_entry_is_told_in_the_order_of_the_log_however_it_was_read():
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


def test_of_several_entries_one_that_rests_on_what_was_not_read_leaves_the_log_open():
    left = {**SIGNERS, "ann": Signer(key=SIGNERS["ann"].key, until="2026-01-03T00:00:00+00:00")}
    book = Book()
    book.promote("bob", "bob", "bob", "bob")
    book.write(tied(book, "ann", base=4, seen=4))
    book.write(tied(book, "ann", base=1, seen=5))
    del book.rows[4]
    log = book.read(left, floor=2)
    assert log.open
    assert [e.number for e in log.history.counted] == [3]


def test_one_who_is_no_signer_changes_nothing_and_is_named():
    book = Book()
    book.promote("ann")
    book.promote("eve")
    book.put(book.rows[1])  # an entry once more
    book.put({"schema": "2"})
    book.put({})
    log = book.read()
    assert log.history.base == 1
    assert [alarm.split()[1] for alarm in log.alarm] == ["2", "3", "4", "5"]
    assert [entry.number for entry in log.unproven] == [2, 3]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whoever_has_no_key_can_at_most_go_back_to_what_was_live_before_and_never_unseen(data):
    """Signers write, some of them late; then somebody changes, deletes and adds rows. What is live afterwards was live
    at some time, and if it is not what was live last, there is an alarm, unless the newest rows were deleted."""
    book = Book()
    was_live = [0]
    pending: list[Draft] = []
    for who, late in data.draw(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), st.booleans()), max_size=6)):
        if late:
            pending.append(book.draft(who))
        else:
            book.write(pending.pop(0) if pending and data.draw(st.booleans()) else book.draft(who))
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
def test_the_newest_rows_alone_say_what_the_whole_log_says(data):
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


def test_without_signers_everything_is_taken_at_its_word():
    book = Book()
    book.promote("eve")
    book.write(book.draft("eve", seen=book.read({})))
    assert (book.live({}), book.read({}).alarm) == (2, ())
