"""The rules of the deployment log, as properties of any log."""

from __future__ import annotations

from random import Random
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from onward.registry.errors import Refused, UsageError
from onward.registry.log.entries import (
    DeploymentHistory,
    Draft,
    Entry,
    GateResult,
    deployment,
    fold,
    last_live,
    plan_rollback,
)
from tests.conftest import not_none

Kind = Literal["promote", "rollback"]
Race = tuple[list[Entry], dict[int, bool]]  # the log, and for each entry whether its author learns that it counts


def entry(number: int, base: int, kind: Kind = "promote", restores: int = 0, version: int | None = None) -> Entry:
    return Entry(
        number=number,
        kind=kind,
        key=f"key{number}",
        base=base,
        sha256=f"{number:064x}",
        candidate_version=version if version is not None else number,
        source=f"models:/m-{number}",
        actor="ann",
        reason="because",
        at="2026-01-02T03:04:05+00:00",
        restores=restores,
    )


def promotions(count: int) -> list[Entry]:
    return [entry(number, number - 1) for number in range(1, count + 1)]


def forwards(entries: list[Entry]) -> tuple[list[int], list[int]]:
    """Apply the rule to a whole log from its beginning; returns the counted and the lost entries."""
    log = {e.number: e for e in entries}
    deleted = {e.base for e in entries} - log.keys() - {0}
    live, counted, lost = 0, [], []
    for number in sorted(log.keys() | deleted):
        if number in deleted or log[number].base == live:
            live = number
            counted += [number] if number in log else []
        else:
            lost.append(number)
    return counted, lost


def newest(log: list[Entry], first_page: int) -> DeploymentHistory:
    """Read a log from its end, in growing pages, until the live entry is settled."""
    size = first_page
    while True:
        floor = log[-size].number - 1 if size < len(log) else 0
        line = fold(log[-size:], floor)
        if line.settled:
            return line
        size *= 2


def rolled_back(log: list[Entry], to: int | None = None) -> list[Entry]:
    line = fold(log)
    target = plan_rollback(line.live, line.find, None if to is None else line.find(to))
    return [*log, entry(len(log) + 1, line.base, "rollback", target.number, target.candidate_version)]


@st.composite
def races(draw: st.DrawFn) -> Race:
    """Authors that read the log and append later.

    Returns the log, and for each entry whether its author, on reading again after appending, finds that it counts.
    """
    log: list[Entry] = []
    told: dict[int, bool] = {}
    seen: dict[int, int] = {}
    for author, appends in draw(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40)):
        if not appends:
            seen[author] = fold(log).base
        elif author in seen:
            new = entry(len(log) + 1, seen.pop(author))
            log.append(new)
            told[new.number] = fold(log).won(new.key) is not None
    return log, told


@given(races())
def test_exactly_one_deployment_is_live_and_winners_agree_on_it(race: Race) -> None:
    log, told = race
    line = fold(log)
    assert [e.number for e in line.counted] == [number for number, won in told.items() if won]
    assert [e.number for e in line.lost] == [number for number, won in told.items() if not won]
    assert line.live == (line.counted[-1] if line.counted else None)
    assert bool(line.live) == bool(log)


@given(races())
def test_counted_entries_are_those_that_follow_the_rule_from_the_first_entry(race: Race) -> None:
    log, _ = race
    line = fold(log)
    assert forwards(log) == ([e.number for e in line.counted], [e.number for e in line.lost])


@given(races(), st.integers(1, 5))
def test_the_newest_entries_determine_the_live_version_and_whether_an_attempt_won(race: Race, first_page: int) -> None:
    log, _ = race
    for length in range(1, len(log) + 1):
        line, whole = newest(log[:length], first_page), fold(log[:length])
        assert (line.live, line.base) == (whole.live, whole.base)
        settled = [e.number for e in whole.counted if e.number > not_none(whole.live).base]
        assert [e.number for e in line.counted if e.number > not_none(whole.live).base] == settled


@given(races(), st.integers(1, 5), st.data())
def test_all_readers_agree_after_entries_are_deleted_by_hand(race: Race, first_page: int, data: st.DataObject) -> None:
    log, _ = race
    gone = data.draw(st.sets(st.integers(1, max(len(log), 1))))
    left = [e for e in log if e.number not in gone]
    line = fold(left)
    assert forwards(left) == ([e.number for e in line.counted], [e.number for e in line.lost])
    if left:
        assert newest(left, first_page).live == line.live


@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 4))
def test_all_readers_agree_on_the_live_deployment_of_an_arbitrary_log(bases: list[int], first_page: int) -> None:
    log = [entry(number, base) for number, base in enumerate(bases, 1)]
    line = fold(log)
    assert [e.number for e in line.entries()] == [e.number for e in log]
    assert all(e.base < e.number for e in line.counted)
    if log:
        assert newest(log, first_page).live == line.live


@given(st.integers(3, 300), st.integers(1, 3))
def test_the_number_of_rows_read_does_not_grow_with_the_log(length: int, lost: int) -> None:
    log = promotions(length)
    log += [entry(length + n, length - 1) for n in range(1, lost + 1)]
    assert len(newest(log, 2).entries()) <= 2 * (lost + 2)


@given(races(), st.randoms())
def test_the_result_does_not_depend_on_the_order_of_entries(race: Race, random: Random) -> None:
    log, _ = race
    shuffled = list(log)
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(log)


@given(races())
def test_a_counted_entry_counts_forever(race: Race) -> None:
    log, _ = race
    for length in range(len(log)):
        before, after = fold(log[:length]), fold(log)
        assert after.counted[: len(before.counted)] == before.counted


@given(races())
def test_each_counted_entry_follows_the_entry_its_author_saw(race: Race) -> None:
    counted = fold(race[0]).counted
    assert [e.base for e in counted] == [0, *(e.number for e in counted)][: len(counted)]


@given(st.integers(1, 12), st.data())
def test_rollbacks_walk_back_through_the_promotions(count: int, data: st.DataObject) -> None:
    log = promotions(count)
    steps = data.draw(st.integers(0, count - 1))
    for step in range(1, steps + 1):
        log = rolled_back(log)
        assert not_none(fold(log).live).candidate_version == count - step


@given(st.lists(st.sampled_from(["promote", "rollback"]), max_size=40))
def test_promote_and_rollback_act_as_push_and_pop(operations: list[str]) -> None:
    log: list[Entry] = []
    stack: list[int] = []
    for operation in operations:
        if operation == "promote":
            log.append(entry(len(log) + 1, fold(log).base))
            stack.append(log[-1].number)
        elif len(stack) > 1:
            log = rolled_back(log)
            stack.pop()
        else:
            with pytest.raises(Refused, match="nothing"):
                plan_rollback(fold(log).live, fold(log).find)
    live = fold(log).live
    assert (live.candidate_version if live else None) == (stack[-1] if stack else None)


@given(races(), st.data())
def test_a_deleted_entry_does_not_change_other_entries(race: Race, data: st.DataObject) -> None:
    log, _ = race
    counted = [e.number for e in fold(log).counted]
    if len(counted) < 2:
        return
    deleted = data.draw(st.sampled_from(counted[:-1]))
    line = fold([e for e in log if e.number != deleted])
    assert line.live == fold(log).live


def test_a_rollback_to_a_named_entry_can_be_followed_by_others() -> None:
    log = rolled_back(promotions(4), to=2)
    assert not_none(fold(log).live).candidate_version == 2
    assert not_none(fold(rolled_back(log)).live).candidate_version == 1
    assert not_none(fold(rolled_back(log, to=4)).live).candidate_version == 4


def test_a_rollback_as_target_means_the_version_it_restored() -> None:
    log = [*rolled_back(promotions(3))]
    log.append(entry(5, 4))
    line = fold(log)
    assert plan_rollback(line.live, line.find, line.find(4)).number == 2
    assert deployment(line.find(4), line.find).number == 2


def test_the_history_records_until_when_a_version_was_live() -> None:
    log = [e.model_copy(update={"at": f"2026-01-0{e.number}T00:00:00+00:00"}) for e in rolled_back(promotions(3))]
    log[3] = log[3].model_copy(update={"sha256": log[1].sha256})
    assert last_live(fold([])) == {}
    assert last_live(fold(log)) == {
        log[0].sha256: "2026-01-02T00:00:00+00:00",
        log[1].sha256: "",
        log[2].sha256: "2026-01-04T00:00:00+00:00",
    }


def test_the_first_deployment_cannot_be_rolled_back() -> None:
    with pytest.raises(Refused, match="nothing is live"):
        plan_rollback(None, fold([]).find)
    with pytest.raises(Refused, match="nothing to roll back to: version 1"):
        plan_rollback(fold(promotions(1)).live, fold(promotions(1)).find)


def test_entries_that_were_never_live_cannot_be_restored() -> None:
    line = fold([entry(4, 0), entry(3, 1), *promotions(2)])
    assert [e.number for e in line.lost] == [3, 4]
    for lost in (3, 4):
        with pytest.raises(UsageError, match=f"entry {lost} lost a race"):
            line.find(lost)
    with pytest.raises(UsageError, match="no entry 9"):
        line.find(9)


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ("number", [1, 2**31 - 1], [0, -1, 2**31]),
        ("base", [0, 2**31 - 1], [-1, 2**31]),
        ("candidate_version", [0, 2**31 - 1], [-1, 2**31]),
        ("restores", [0, 2**31 - 1], [-1, 2**31]),
        ("seen", [-1, 0, 2**31 - 1], [-2, 2**31]),
        ("key", ["k", "k" * 100], ["", "k" * 101]),
        ("sha256", ["0" * 64], ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64]),
        ("manifest", ["", "f" * 64], ["f" * 63, "F" * 64]),
        ("seen_digest", ["", "f" * 64], ["f"]),
        ("base_digest", ["", "f" * 64], ["f"]),
        ("kind", ["promote", "rollback", "approve"], ["", "delete"]),
        ("at", ["2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05Z"], ["", "2026-01-02", "2026-01-02T03:04:05"]),
    ],
)
def test_an_entry_rejects_invalid_values(field: str, right: list[Any], wrong: list[Any]) -> None:
    said = entry(1, 0).model_dump()
    for value in right:
        assert getattr(Entry.model_validate({**said, field: value}), field) == value
    for value in wrong:
        with pytest.raises(ValidationError):
            Entry.model_validate({**said, field: value})


def test_optional_fields_of_an_entry_default_to_empty() -> None:
    said = {"number", "kind", "key", "base", "sha256", "candidate_version", "source", "actor", "reason", "at"}
    bare = Entry.model_validate(entry(1, 0).model_dump(include=said))
    assert bare.model_dump(exclude=said) == {
        "manifest": "", "restores": 0, "forced": False, "gates": (), "gates_run": "", "evidence": {}, "signer": "",
        "signature": "", "seen": -1, "seen_digest": "", "base_digest": "",
    }  # fmt: skip


def test_a_partial_log_is_settled_if_older_entries_cannot_change_the_live_version() -> None:
    log = promotions(5)
    for floor, settled in ((0, True), (1, True), (3, True), (4, True), (5, False)):
        line = fold(log, floor)
        assert line.floor == floor
        assert line.settled == settled, floor
        assert [e.number for e in line.entries()] == [n for n in range(1, 6) if n > floor]
    late = [*log, entry(6, 2)]
    assert not fold(late, 5).settled
    assert not_none(fold(late, 4).live).number == 5


def test_a_counted_attempt_is_found_by_its_key() -> None:
    line = fold([*promotions(2), entry(3, 1)])
    assert line.won("key2") == line.live
    assert not_none(line.won("key1")).number == 1
    assert line.won("key3") is None
    assert line.won("other") is None
    assert fold([]) == DeploymentHistory((), ())
    assert (fold([]).live, fold([]).base, fold([]).settled) == (None, 0, True)


def test_an_entry_prints_as_a_sentence() -> None:
    promoted = entry(3, 2)
    assert str(promoted) == "ann promoted version 3 (sha256 000000000000): because"
    forced = Draft.model_validate(
        {**promoted.model_dump(), "forced": True, "gates": [GateResult(requirement="data", met=False, detail="failed")]}
    )
    assert str(forced) == "ann force-promoted version 3 (sha256 000000000000), unmet: data: because"
    back = entry(4, 3, "rollback", restores=2, version=2)
    assert str(back) == "ann rolled back to version 2 (sha256 000000000000), deployed by entry 2: because"
