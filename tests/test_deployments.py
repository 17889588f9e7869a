"""The fold: whatever is appended in whatever order, one deployment is live, and it is what the winners were told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.deployments import Entry, Line, fold
from registry.errors import Refused, UsageError


def entry(number: int, base: int, kind: str = "promote", restores: int | None = None) -> Entry:
    return Entry(
        number=number, model="cnn", environment="production", kind=kind, sha256=f"{restores or number:064x}",
        candidate_version=str(restores or number), base=base, restores=restores, source="models:/m-1", actor="ada",
        reason="because", at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    """What writers append who each looked at the log at some earlier moment, or crashed before they looked."""
    log: list[Entry] = []
    for number in range(1, draw(st.integers(0, 25)) + 1):
        seen = fold(log[: draw(st.integers(max(0, len(log) - 4), len(log)))])
        if len(seen.stack) > 1 and draw(st.booleans()):
            log.append(entry(number, seen.base, "rollback", seen.rollback_target().number))
        else:
            log.append(entry(number, seen.base))
    return log


@given(histories(), st.randoms())
def test_every_reader_finds_the_same_live_deployment(log: list[Entry], order: object) -> None:
    shuffled = list(log)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    line = fold(log)
    assert fold(shuffled) == line
    assert sorted(e.number for e in [*line.counted, *line.lost]) == [e.number for e in log]
    assert (line.live is None) == (not log)
    if line.live:
        assert line.stack[-1].number == line.live.stands_for


@given(histories())
def test_an_entry_that_counted_when_it_was_appended_counts_for_ever(log: list[Entry]) -> None:
    told_won = {e.number for i, e in enumerate(log) if e in fold(log[: i + 1]).counted}
    assert told_won == {e.number for e in fold(log).counted}


@given(histories())
def test_of_two_with_the_same_base_at_most_one_counts(log: list[Entry]) -> None:
    bases = [e.base for e in fold(log).counted]
    assert len(bases) == len(set(bases))


@given(st.integers(1, 12))
def test_rolling_back_n_times_walks_back_through_n_promotions(count: int) -> None:
    log = [entry(number, number - 1) for number in range(1, count + 1)]
    for back in range(1, count):
        line = fold(log)
        target = line.rollback_target()
        assert target.number == count - back
        log.append(entry(len(log) + 1, line.base, "rollback", target.number))
    with pytest.raises(Refused, match="nothing to go back to"):
        fold(log).rollback_target()


def test_a_promotion_after_a_rollback_goes_back_to_what_was_live_before_it() -> None:
    log = [entry(1, 0), entry(2, 1), entry(3, 2, "rollback", 1), entry(4, 3)]
    assert fold(log).rollback_target().number == 1


def test_one_can_go_back_to_a_named_entry_even_to_one_rolled_back_from() -> None:
    line = fold([entry(1, 0), entry(2, 1), entry(3, 2, "rollback", 1)])
    assert line.rollback_target(2).number == 2
    with pytest.raises(UsageError, match="live already"):
        line.rollback_target(1)
    with pytest.raises(UsageError, match="there is no entry 9"):
        line.rollback_target(9)


def test_one_cannot_go_back_to_an_entry_that_lost() -> None:
    with pytest.raises(UsageError, match="lost its race"):
        fold([entry(1, 0), entry(2, 0), entry(3, 1)]).rollback_target(2)


def test_a_rollback_to_what_never_was_counts_for_nothing() -> None:
    line = fold([entry(1, 0), entry(2, 1, "rollback", 7)])
    assert line.live == entry(1, 0)


def test_an_empty_log_has_nothing_live() -> None:
    assert fold([]) == Line()
    with pytest.raises(Refused, match="nothing was ever live here"):
        Line().rollback_target()


def test_an_entry_reads_as_a_sentence() -> None:
    assert str(entry(1, 0)) == "ada promoted version 1 to production: because"
    assert str(entry(3, 2, "rollback", 1)) == "ada rolled production back to version 1 (entry 1): because"
    assert "past its gates" in str(entry(1, 0).model_copy(update={"forced": True}))
