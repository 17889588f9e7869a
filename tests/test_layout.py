"""The format of entries and candidates in MLflow, and aliases that disagree with a log, without a store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.errors import UsageError
from onward.registry.log.entries import Draft, Entry, GateResult
from onward.registry.store.schema import (
    Drift,
    Log,
    RegisteredVersion,
    approval_source,
    find_drift,
    from_version,
    is_newer,
    parse_log,
    registered_name,
    to_registered_version,
    to_tags,
)
from onward.registry.trust.entry_signatures import Signer

AT = "2026-01-02T03:04:05+00:00"
NAME = "staging.cnn"
NEEDED = ("kind", "key", "base", "sha256", "candidate", "actor", "reason", "at")


class Row:
    """A version of a registered model, as MLflow returns it."""

    def __init__(self, number: int | str, tags: dict[str, str], source: str | None = "models:/m-1") -> None:
        self.name, self.version, self.tags, self.source = NAME, number, tags, source
        self.creation_timestamp, self.run_link = 1_700_000_000_123, None
        self.current_stage: str | None = None


def entry(number: int, base: int, **changes: Any) -> Entry:
    said = {
        "number": number, "kind": "promote", "key": f"k{number}", "base": base, "sha256": f"{number:064x}",
        "candidate_version": number, "source": "models:/m-1", "actor": "ann", "reason": "because", "at": AT,
    }  # fmt: skip
    return Entry.model_validate({**said, **changes})


def row(number: int, base: int, **changes: Any) -> Row:
    return Row(number, to_tags(entry(number, base, **changes)))


numbers = st.integers(0, 2**31 - 1)
digests = st.sampled_from(["", "a" * 64, "0123456789abcdef" * 4])
words = st.text(max_size=20)
gates = st.builds(GateResult, requirement=words, met=st.booleans(), detail=words)
drafts = st.builds(
    Draft, kind=st.sampled_from(["promote", "rollback", "approve"]), key=st.text(min_size=1, max_size=100),
    base=numbers, sha256=digests.filter(bool), candidate_version=numbers, source=st.just("models:/m-1"), actor=words,
    reason=words, at=st.just(AT), manifest=digests, restores=numbers, forced=st.booleans(),
    gates=st.lists(gates, max_size=3).map(tuple), gates_run=words, evidence=st.dictionaries(words, words, max_size=3),
    signer=words, signature=words, seen=st.integers(-1, 2**31 - 1), seen_digest=digests, base_digest=digests,
)  # fmt: skip


@given(drafts, st.integers(1, 2**31 - 1))
def test_an_entry_survives_a_round_trip_through_tags(draft: Draft, number: int) -> None:
    tags = to_tags(draft)
    read = from_version(Row(str(number), tags))
    assert read is not None
    kept = draft.model_dump()
    if draft.kind != "rollback":
        kept["restores"] = 0
    if not draft.signature:
        kept["signer"] = ""
    if draft.seen < 0:
        kept |= {"seen_digest": "", "base_digest": ""}
    assert read.model_dump() == {**kept, "number": number}
    assert all(isinstance(value, str) for value in tags.values())


def test_tags_contain_only_the_fields_that_an_entry_sets() -> None:
    plain = to_tags(entry(7, 3, evidence={"b": "2", "a": "1"}))
    assert plain == {
        "schema": "1", "kind": "promote", "key": "k7", "base": "3", "sha256": f"{7:064x}", "candidate": "7",
        "actor": "ann", "reason": "because", "at": AT, "evidence": '{"a": "1", "b": "2"}',
    }  # fmt: skip
    back = to_tags(entry(8, 7, kind="rollback", restores=2, manifest="a" * 64, forced=True, gates_run="r"))
    assert {name: value for name, value in back.items() if name not in plain} == {
        "manifest": "a" * 64, "restores": "2", "forced": "true", "gates_run": "r",
    }  # fmt: skip
    judged = to_tags(entry(8, 7, gates=(GateResult(requirement="data", met=True, detail="passed"),)))
    assert json.loads(judged["gates"]) == [{"requirement": "data", "met": True, "detail": "passed"}]
    tied = to_tags(entry(8, 7, signer="ann", signature="s", seen=0, seen_digest="b" * 64))
    assert {name: value for name, value in tied.items() if name not in plain or name == "schema"} == {
        "schema": "2", "signer": "ann", "signature": "s", "seen": "0", "seen_digest": "b" * 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "schema"),
    [
        ({}, "1"), ({"manifest": "a" * 64}, "1"), ({"seen": 3}, "1"), ({"signature": "s"}, "1"),
        ({"signature": "s", "seen": 0}, "2"), ({"signature": "s", "manifest": "a" * 64}, "2"),
    ],
)  # fmt: skip
def test_only_signed_entries_that_older_versions_would_misread_use_the_new_schema(
    changes: dict[str, Any], schema: str
) -> None:
    assert to_tags(entry(1, 0, **changes))["schema"] == schema


@pytest.mark.parametrize("missing", NEEDED)
def test_a_row_without_a_required_tag_is_not_an_entry(missing: str) -> None:
    tags = to_tags(entry(1, 0))
    assert from_version(Row(1, tags)) is not None
    del tags[missing]
    assert from_version(Row(1, tags)) is None


def test_a_row_of_the_first_schema_is_an_entry() -> None:
    assert from_version(Row(1, {name: to_tags(entry(1, 0))[name] for name in NEEDED})) == entry(1, 0)
    assert from_version(Row(1, to_tags(entry(1, 0)), source=None)) is None


@pytest.mark.parametrize(
    ("schema", "newer"),
    [
        (None, False), ("", False), ("1", False), ("2", False), ("3", True), ("999999999", True), ("9999999999", False),
        ("²", False), ("-3", False), ("3.0", False), (" 3", False), ("3x", False),
    ],
)  # fmt: skip
def test_a_row_with_a_higher_schema_number_is_newer(schema: str | None, newer: bool) -> None:
    tags = to_tags(entry(1, 0))
    tags.pop("schema")
    found = Row(1, tags if schema is None else {**tags, "schema": schema})
    assert is_newer(found) == newer
    log = parse_log(NAME, [found], {})
    assert (log.newer, log.foreign) == (((1,), ()) if newer else ((), ()))
    assert (log.history.live is None) == newer


def test_a_log_is_split_into_counted_and_other_rows() -> None:
    rows = [
        row(6, 0), row(5, 3), Row(4, {"x": "y"}), row(3, 2), Row(2, {**to_tags(entry(2, 1)), "lost": "true"}),
        row(1, 0), Row(7, {**to_tags(entry(7, 1)), "lost": "true"}), row(8, 0, kind="approve"), Row(9, {"schema": "3"}),
        row(10, 0, kind="approve"),
    ]  # fmt: skip
    log = parse_log(NAME, rows, {})
    assert [e.number for e in log.history.counted] == [1, 2, 3, 5]
    assert [e.number for e in log.history.lost] == [6, 7]
    assert (log.marked, log.foreign, log.newer, log.newest) == (frozenset({7}), (4,), (9,), 10)
    assert [e.number for e in log.approvals] == [8, 10]
    assert (log.unproven, log.alarm, log.damage, log.open) == ((), (), (), False)
    assert [e.number for e in log.entries()] == [1, 2, 3, 5, 6, 7, 8, 10]
    assert log.settled


def test_approvals_and_unproven_entries_keep_the_order_of_the_log() -> None:
    rows = [row(1, 0), row(2, 0, kind="approve"), row(3, 1), row(4, 0, kind="approve"), row(5, 3)]
    assert [e.number for e in parse_log(NAME, rows, {}).entries()] == [1, 2, 3, 4, 5]


def test_an_empty_log_has_no_entries() -> None:
    log = parse_log(NAME, [], {})
    assert (log.history.live, log.newest, log.settled, log.entries()) == (None, 0, True, [])
    assert log == Log(log.history)
    assert not Log(log.history, open=True).settled


def test_a_partial_log_reports_whether_it_is_settled() -> None:
    assert parse_log(NAME, [row(4, 3), row(3, 2)], {}, floor=2).settled
    assert not parse_log(NAME, [row(4, 2)], {}, floor=3).settled


def test_a_row_of_a_newer_onward_blocks_actions_if_it_follows_the_live_entry() -> None:
    old = parse_log(NAME, [Row(1, {"schema": "3"}), row(2, 0)], {})
    assert (old.newer, old.history.base) == ((1,), 2)
    old.require_known(NAME)
    new = parse_log(NAME, [row(2, 0), Row(4, {"schema": "3"}), Row(3, {"schema": "3"})], {})
    with pytest.raises(UsageError, match=r"staging\.cnn: entry 4 was written by a newer Onward"):
        new.require_known(NAME)
    signer = {"ann": Signer(key="A" * 43 + "=")}
    unproven = parse_log(NAME, [row(2, 0), Row(4, {"schema": "3"})], signer)
    assert (unproven.newer, unproven.signed) == ((4,), True)
    unproven.require_known(NAME)  # it raises an alarm instead
    assert len(unproven.alarm) == 2


ALIASES = st.one_of(st.none(), st.integers(1, 6))


@given(st.lists(st.integers(0, 4), max_size=5), ALIASES, ALIASES, ALIASES)
def test_exactly_the_aliases_that_disagree_are_corrected(
    bases: list[int], candidate: int | None, live_at: int | None, candidate_at: int | None
) -> None:
    log = parse_log(NAME, [row(number, base) for number, base in enumerate(bases, 1)], {})
    found = {NAME: live_at, "cnn": candidate_at}
    drifts = find_drift("staging", "cnn", log, candidate, found)
    for drift in drifts:
        if drift.alias != "lost":
            assert found[drift.registered] == drift.found
            found[drift.registered] = drift.wanted
    assert found == {NAME: log.history.base or None, "cnn": candidate}
    assert [d for d in find_drift("staging", "cnn", log, candidate, found) if d.alias != "lost"] == []
    assert len([d for d in drifts if d.alias != "lost"]) == (live_at != (log.history.base or None)) + (
        candidate_at != candidate
    )
    assert {d.alias for d in drifts} <= {"live", "staging", "lost"}
    assert [d.wanted for d in drifts if d.alias == "lost"] == [e.number for e in log.history.lost]


def test_only_unmarked_entries_are_marked_as_lost() -> None:
    lost = {**to_tags(entry(2, 0)), "lost": "true"}
    log = parse_log(NAME, [row(1, 0), Row(2, lost), row(3, 0)], {})
    assert find_drift("staging", "cnn", log, 1, {NAME: 1, "cnn": 1}) == [Drift(NAME, "lost", 3, None)]


@pytest.mark.parametrize(
    ("drift", "sentence"),
    [
        (Drift(NAME, "live", 3, None), "the alias live of staging.cnn is not set and should be set to version 3"),
        (Drift("cnn", "staging", None, 2), "the alias staging of cnn is set to version 2 and should not be set"),
        (Drift(NAME, "lost", 4, None), "entry 4 of staging.cnn lost a race and is not marked"),
    ],
)
def test_a_drift_prints_as_a_sentence(drift: Drift, sentence: str) -> None:
    assert str(drift) == sentence


def test_a_candidate_is_parsed_from_a_registered_version() -> None:
    version = Row("12", {"sha256": "a" * 64, "manifest": "b" * 64}, "models:/m-0123")
    found = to_registered_version(version)
    assert (found.model, found.version, found.logged_model, found.stage) == (NAME, 12, "m-0123", "")
    assert (found.sha256, found.manifest, found.source) == ("a" * 64, "b" * 64, "models:/staging.cnn/12")
    assert found.created == datetime.fromtimestamp(1_700_000_000.123, UTC)
    for source in (None, "", "runs:/x/model", "s3://bucket/m-1"):
        assert to_registered_version(Row(1, {}, source)).logged_model == ""
    version.current_stage = "Staging"
    assert to_registered_version(version).stage == "Staging"
    bare = RegisteredVersion("cnn", 1, {}, found.created)
    assert (bare.sha256, bare.manifest, bare.logged_model, bare.stage) == ("", "", "", "")


@pytest.mark.parametrize(
    ("sha256", "manifest", "known"),
    [
        ("a" * 64, "b" * 64, True), ("a" * 64, "", True), ("a" * 64, None, True), (None, "b" * 64, False),
        ("A" * 64, "b" * 64, False), ("a" * 63, "", False), ("a" * 65, "", False), ("a" * 64, "B" * 64, False),
        ("a" * 64, "x", False), ("x", "", False), ("x", "b" * 64, False), (None, None, False),
    ],
)  # fmt: skip
def test_a_candidate_has_a_digest_only_if_its_digests_are_valid(
    sha256: str | None, manifest: str | None, known: bool
) -> None:
    said = {"sha256": sha256, "manifest": manifest}
    found = RegisteredVersion("cnn", 1, {k: v for k, v in said.items() if v is not None}, datetime.now(UTC))
    assert found.sha256 == (sha256 if known else "")


def test_names_in_mlflow_follow_their_patterns() -> None:
    assert registered_name("staging", "cnn") == NAME
    assert approval_source("a" * 64) == "approval:" + "a" * 64
