"""What promotion and rollback choose, require, write and return, field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.errors import LostRace, Refused, StoreMissing, UsageError
from onward.registry.gates import policy
from onward.registry.log.entries import DeploymentHistory, Draft, Entry, GateResult
from onward.registry.operations import choice, promotion
from onward.registry.operations.choice import Deployable
from onward.registry.operations.promotion import Outcome, promote, reconcile, rollback, valid_reason
from onward.registry.store.schema import Log, approval_source
from onward.registry.store.store import Store
from tests.conftest import not_none
from tests.store_factory import add_candidate, fresh_store

SHA, OTHER = "a" * 64, "b" * 64
PIN, OTHER_PIN = "c" * 64, "d" * 64


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


@pytest.fixture
def environments(tmp_path: Path) -> Callable[..., None]:
    """Return a function that writes params.yaml with the given environments."""

    def write(**section: Any) -> None:
        (tmp_path / "dvc.yaml").write_text("stages: {}\n")
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"environments": section}))

    return write


def entry(number: int = 1, **changes: Any) -> Entry:
    said = {
        "number": number, "kind": "promote", "key": "k", "base": 0, "sha256": SHA, "candidate_version": 1,
        "source": "models:/m-1", "actor": "ann", "reason": "because", "at": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return Entry.model_validate({**said, **changes})


def approval(sha256: str, **changes: Any) -> Draft:
    said = entry(kind="approve", sha256=sha256, source=approval_source(sha256), **changes)
    return Draft.model_validate(said.model_dump(exclude={"number"}))


# Equal deployments


@pytest.mark.parametrize(
    ("wanted", "live", "same"),
    [
        ({}, {"manifest": PIN}, True),
        ({"sha256": OTHER}, {"manifest": PIN}, False),
        ({"manifest": OTHER_PIN}, {"manifest": PIN}, False),
        ({}, {"manifest": ""}, False),  # pins less
        ({"manifest": ""}, {"manifest": PIN}, True),
        ({"manifest": "", "version": 2}, {"manifest": PIN}, True),  # neither has serving options
        ({"manifest": "", "evidence": {"serving": "x"}}, {"evidence": {"serving": "x"}}, True),
        ({"manifest": "", "version": 2, "evidence": {"serving": "x"}}, {"evidence": {"serving": "x"}}, True),
        ({"manifest": "", "evidence": {"serving": "x"}}, {"evidence": {"serving": "y"}}, False),
        ({"manifest": "", "evidence": {"serving": "x"}}, {}, True),
        ({"manifest": "", "version": 2, "evidence": {"serving": "x"}}, {}, False),
        ({"manifest": "", "version": 2}, {"evidence": {"serving": "x"}}, False),
    ],
)
def test_two_deployments_are_equal_if_files_and_serving_options_are_equal(
    wanted: dict[str, Any], live: dict[str, Any], same: bool
) -> None:
    asked = {"version": 1, "sha256": SHA, "manifest": PIN, "source": "models:/cnn/1", "evidence": {}, **wanted}
    assert Deployable(**asked).is_live_as(entry(**live)) == same


# Reasons, times, actors


@given(st.text(max_size=1200))
def test_a_reason_is_one_visible_line_of_limited_length(text: str) -> None:
    try:
        reason = valid_reason(text)
    except UsageError:
        return
    assert 0 < len(reason) <= 1000
    assert reason == " ".join(text.split())


def test_a_reason_has_at_most_a_thousand_characters_and_is_utf8() -> None:
    assert valid_reason("x" * 1000) == "x" * 1000
    assert valid_reason(" a\n\tb ") == "a b"
    for wrong, message in (("x" * 1001, "1001 characters"), ("", "say why"), (" \n", "say why"), ("a\udcff", "UTF-8")):
        with pytest.raises(UsageError, match=f"--reason: .*{message}"):
            valid_reason(wrong)


def test_now_is_the_current_second_in_utc() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    found = promotion.now()
    assert before <= datetime.fromisoformat(found) <= datetime.now(UTC)
    assert len(found) == len("2026-01-02T03:04:05+00:00")
    assert found.endswith("+00:00")


def test_an_entry_is_never_earlier_than_the_entry_it_replaces() -> None:
    later, earlier = "2999-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"
    assert promotion._after(entry(at=later)) == later
    assert promotion._after(entry(at="2998-12-31T23:59:59-02:00")) == "2998-12-31T23:59:59-02:00"
    for live in (None, entry(at=earlier)):
        before = promotion.now()
        assert before <= promotion._after(live) <= promotion.now()


def test_the_author_is_the_given_actor_or_else_the_user_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONWARD_ACTOR", "machine")
    wanted = policy.parse(None)["staging"]
    assert promotion.author(wanted, "staging", "bob") == ("bob", None)
    assert promotion.author(wanted, "staging", " b\n ob ") == ("b ob", None)
    for missing in (None, "", " "):
        assert promotion.author(wanted, "staging", missing) == ("machine", None)


def test_force_does_not_skip_the_second_person_if_there_are_signers() -> None:
    four, data = (GateResult(requirement=name, met=False, detail="") for name in ("four_eyes", "data"))
    plain = policy.parse({"s": {"from": "candidate", "require": []}})["s"]
    signed = policy.parse({"s": {"from": "candidate", "require": [], "signers": {"ann": "A" * 43 + "="}}})["s"]
    for unmet, forcible in (([four], False), ([data], True), ([data, four], False), ([four, data], False)):
        assert promotion._forcible(plain, unmet)
        assert promotion._forcible(signed, unmet) == forcible


def test_an_unproven_signed_entry_newer_than_the_live_one_is_an_unmet_gate() -> None:
    signed = policy.parse({"s": {"from": "candidate", "require": [], "signers": {"ann": "A" * 43 + "="}}})["s"]
    line = DeploymentHistory((entry(2),), ())
    assert choice.proof(Log(line), policy.parse(None)["staging"]) == ()
    for unproven, met in (
        ((), True), ((entry(3, signature="s"),), False), ((entry(1, signature="s"),), True),
        ((entry(3),), True), ((entry(3, signature="s", kind="approve"),), True),
        ((entry(1, signature="s"), entry(3, signature="s")), False), ((entry(3), entry(4, signature="s")), False),
    ):  # fmt: skip
        alarm = tuple(f"row {e.number} is odd" for e in unproven if e.number > 2)
        [found] = choice.proof(Log(line, unproven=unproven, alarm=alarm), signed)
        assert (found.requirement, found.met) == ("log", met)
        assert found.detail.startswith("; ".join(alarm) or "every entry that counts is proven")
        assert ("onward sign" in found.detail) == (not met)


# What is written and returned


def test_a_promotion_writes_and_returns_all_fields(store: Store) -> None:
    add_candidate(store, "cnn", 1, data="failed", published_by="eve")
    before = promotion.now()
    done = promote("cnn", "staging", 1, reason=" a\nb ", force=True, actor="bob", store=store)
    [written] = store.log("staging", "cnn").entries()
    candidate = not_none(store.candidate("cnn", 1))
    assert written.model_dump(exclude={"key", "at", "source", "gates"}) == {
        "number": 1, "kind": "promote", "base": 0, "sha256": candidate.sha256, "manifest": candidate.manifest,
        "candidate_version": 1, "actor": "bob", "reason": "a b", "restores": 0, "forced": True, "gates_run": "",
        "evidence": dict(candidate.evidence), "signer": "", "signature": "", "seen": -1, "seen_digest": "",
        "base_digest": "",
    }  # fmt: skip
    assert before <= written.at <= promotion.now()
    assert [(gate.requirement, gate.met) for gate in written.gates] == [
        ("parity", True),
        ("quality", True),
        ("data", False),
    ]
    assert store.files.own_copies("staging", "cnn", candidate.sha256) == [written.source]
    assert done == Outcome("cnn", "staging", 1, candidate.sha256, True, False, written, written.gates, "")


def test_a_rollback_copies_the_fields_of_the_restored_entry(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor, remark=f"r{factor}")
        promote("cnn", "staging", factor, reason="because", store=store)
    done = rollback("cnn", "staging", reason="no", actor="bob", store=store)
    first, _, written = store.log("staging", "cnn").entries()
    same = {"sha256", "manifest", "candidate_version", "source", "evidence"}
    assert written.model_dump(include=same) == first.model_dump(include=same)
    assert first.evidence["remark"] == "r1"
    assert (written.kind, written.base, written.restores, written.number) == ("rollback", 2, 1, 3)
    assert (written.actor, written.reason, written.forced, written.gates) == ("bob", "no", False, ())
    assert datetime.fromisoformat(written.at).tzinfo is not None
    assert done == Outcome("cnn", "staging", 1, first.sha256, changed=True, entry=written)
    assert len({one.key for one in store.log("staging", "cnn").entries()}) == 3


def test_promoting_the_live_version_changes_nothing(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    add_candidate(store, "cnn", 2)
    first = promote("cnn", "staging", 1, reason="because", store=store)
    same = dataclasses.replace(first, changed=False, gates=())
    assert promote("cnn", "staging", 1, reason="again", store=store) == same
    assert promote("cnn", "staging", 1, reason="again", dry_run=True, store=store) == dataclasses.replace(
        same, dry_run=True
    )
    assert rollback("cnn", "staging", reason="again", to=1, store=store) == same
    promote("cnn", "staging", 2, reason="because", store=store)
    back = rollback("cnn", "staging", reason="no", store=store)
    assert rollback("cnn", "staging", reason="again", to=1, store=store) == dataclasses.replace(back, changed=False)
    assert not_none(rollback("cnn", "staging", reason="again", to=3, store=store).entry).number == 3
    assert len(store.log("staging", "cnn").entries()) == 3


def test_a_promotion_without_change_repairs_aliases_and_a_dry_run_does_not(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    promote("cnn", "staging", 1, reason="because", store=store)
    acts: tuple[tuple[Callable[[], Outcome], bool], ...] = (
        (lambda: promote("cnn", "staging", 1, reason="x", dry_run=True, store=store), False),
        (lambda: promote("cnn", "staging", 1, reason="x", store=store), True),
        (lambda: rollback("cnn", "staging", reason="x", to=1, store=store), True),
    )
    for act, healed in acts:
        store._client.delete_registered_model_alias("staging.cnn", "live")
        act()
        assert store.versions.aliases("staging.cnn") == ({"live": 1} if healed else {})
        promote("cnn", "staging", 1, reason="x", store=store)


def test_a_dry_run_reports_the_outcome_and_leaves_no_copy(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    sha256 = not_none(store.candidate("cnn", 1)).sha256
    done = promote("cnn", "staging", 1, reason="x", dry_run=True, store=store)
    assert (done.version, done.sha256, done.changed, done.dry_run, done.entry) == (1, sha256, False, True, None)
    assert store.files.own_copies("staging", "cnn", sha256) == []
    add_candidate(store, "cnn", 2, data="failed")
    with pytest.raises(Refused, match="data: failed"):
        promote("cnn", "staging", 2, reason="x", dry_run=True, store=store)
    assert not promote("cnn", "staging", 2, reason="x", dry_run=True, force=True, store=store).gates[-1].met


def test_a_rollback_without_a_live_version_fails_and_names_the_log(store: Store) -> None:
    for to in (None, 1):
        with pytest.raises((Refused, UsageError), match=r"^staging\.cnn: "):
            rollback("cnn", "staging", reason="x", to=to, store=store)
    with pytest.raises(UsageError, match="name for a model"):
        rollback("../cnn", "staging", reason="x", store=store)
    with pytest.raises(UsageError, match="no environment 'moon'"):
        rollback("cnn", "moon", reason="x", store=store)
    with pytest.raises(UsageError, match="--reason"):
        rollback("cnn", "staging", reason=" ", store=store)


def test_the_given_store_is_used_or_else_the_configured_store_without_creating_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
        assert not_none(promote("cnn", "staging", factor, reason="x").entry).number == factor
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    (tmp_path / "none").mkdir()
    assert not_none(rollback("cnn", "staging", reason="x", store=store).entry).number == 3
    assert not_none(promote("cnn", "staging", 2, reason="x", store=store).entry).number == 4
    assert reconcile(store) == []
    for act in (
        lambda: promote("cnn", "staging", 1, reason="x"), lambda: rollback("cnn", "staging", reason="x"), reconcile,
    ):  # fmt: skip
        with pytest.raises(StoreMissing):
            act()
    assert list((tmp_path / "none").iterdir()) == []


def test_a_row_of_a_newer_onward_blocks_every_change(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
        promote("cnn", "staging", factor, reason="x", store=store)
    store._client.create_model_version("staging.cnn", source="x", tags={"schema": "9"})
    acts: tuple[Callable[[], Outcome], ...] = (
        lambda: promote("cnn", "staging", 1, reason="x", force=True, store=store),
        lambda: promote("cnn", "staging", 2, reason="x", dry_run=True, store=store),
        lambda: rollback("cnn", "staging", reason="x", store=store),
        lambda: rollback("cnn", "staging", reason="x", to=2, store=store),
    )
    for act in acts:
        with pytest.raises(UsageError, match=r"staging\.cnn: entry 3 was written by a newer Onward"):
            act()


# What is chosen


def test_the_newest_acceptable_version_is_chosen_or_with_force_the_newest_published_one(store: Store) -> None:
    with pytest.raises(UsageError, match=r"no version of 'cnn': `dvc repro`"):
        promote("cnn", "staging", reason="x", store=store)
    add_candidate(store, "cnn", 1, sha256=None)
    with pytest.raises(UsageError, match="no version of 'cnn': `dvc repro`"):
        promote("cnn", "staging", reason="x", store=store)
    add_candidate(store, "cnn", 2)
    add_candidate(store, "cnn", 3, data="failed")
    add_candidate(store, "cnn", 4, parity="failed", data="failed")
    add_candidate(store, "cnn", 5, sha256=None)
    assert promote("cnn", "staging", reason="x", dry_run=True, store=store).version == 2
    assert promote("cnn", "staging", reason="x", dry_run=True, force=True, store=store).version == 4
    store._client.delete_model_version("cnn", "2")
    with pytest.raises(
        Refused,
        match=r"no version of cnn meets the requirements of staging; the newest, version 4, .*\n  parity.*\n  data",
    ) as no:
        promote("cnn", "staging", reason="x", store=store)
    assert "quality" not in str(no.value)


def test_version_0_does_not_exist(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    for to in ("staging", "production"):
        with pytest.raises(UsageError, match="no version 0 of cnn"):
            promote("cnn", to, 0, reason="x", store=store)


def test_a_repeated_promotion_uses_the_current_evidence_of_the_candidate(store: Store) -> None:
    add_candidate(store, "cnn", 1, data="failed")
    promote("cnn", "staging", 1, reason="x", force=True, store=store)
    with pytest.raises(Refused, match="data: failed"):
        promote("cnn", "production", reason="x", store=store)
    store._client.set_model_version_tag("cnn", "1", "data", "passed")
    done = promote("cnn", "production", 1, reason="x", dry_run=True, store=store)
    order = done.gates[0]
    assert (order.requirement, order.met, order.detail) == ("order", True, "live in staging since entry 1")
    assert all(gate.met for gate in done.gates)
    # A new candidate under the old number is a different one, even with the same tags.
    store._client.delete_registered_model("cnn")
    add_candidate(store, "cnn", 2)
    with pytest.raises(Refused, match="data: failed"):
        promote("cnn", "production", reason="x", store=store)


def test_only_force_skips_the_order_of_environments_and_the_log_records_it(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    promote("cnn", "staging", 1, reason="x", store=store)
    with pytest.raises(
        Refused, match="order: production takes the version that is live in staging, which is version 1"
    ):
        promote("cnn", "production", 2, reason="x", store=store)
    done = promote("cnn", "production", 2, reason="x", force=True, store=store)
    assert (done.version, not_none(done.entry).forced, not_none(done.entry).gates[0].met) == (2, True, False)
    with pytest.raises(UsageError, match="no version of 'nothing'"):
        promote("nothing", "production", reason="x", store=store)


def test_an_approval_with_a_manifest_covers_all_files_of_a_version(
    store: Store, environments: Callable[..., None]
) -> None:
    environments(staging={"from": "candidate", "require": [], "four_eyes": True})
    add_candidate(store, "cnn", 1, published_by="ann")
    candidate = not_none(store.candidate("cnn", 1))

    def approve(name: str, **changes: str) -> None:
        store.approve("staging", "cnn", approval(candidate.sha256, actor=name, key=name, **changes))

    def four_eyes() -> GateResult:
        return promote("cnn", "staging", 1, reason="x", dry_run=True, force=True, store=store).gates[0]

    assert not four_eyes().met
    assert "`onward approve cnn 1 --env staging`" in four_eyes().detail
    approve("bob", manifest=OTHER_PIN)
    assert not four_eyes().met
    approve("eve", manifest=candidate.manifest)
    assert four_eyes().met


def test_an_approval_without_a_manifest_covers_only_the_model(store: Store, environments: Callable[..., None]) -> None:
    environments(staging={"from": "candidate", "require": [], "four_eyes": True})
    add_candidate(store, "cnn", 1, published_by="ann")
    store.approve("staging", "cnn", approval(not_none(store.candidate("cnn", 1)).sha256, actor="bob"))
    assert promote("cnn", "staging", 1, reason="x", dry_run=True, store=store).gates[0].met


# Repair and approval


def test_reconcile_writes_missing_aliases_and_reports_them(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    promote("cnn", "staging", 1, reason="x", store=store)
    assert reconcile(store) == []
    store._client.delete_registered_model_alias("staging.cnn", "live")
    store._client.set_registered_model_alias("cnn", "production", "1")
    assert [str(drift) for drift in reconcile(store)] == [
        "the alias live of staging.cnn is not set and should be set to version 1"
    ]
    assert store.versions.aliases("staging.cnn") == {"live": 1}


def test_reconcile_skips_logs_of_a_newer_onward_and_corrects_the_rest(store: Store) -> None:
    for model in ("cnn", "mlp"):
        add_candidate(store, model, 1)
        promote(model, "staging", 1, reason="x", store=store)
        store._client.delete_registered_model_alias(f"staging.{model}", "live")
    store._client.create_model_version("staging.cnn", source="x", tags={"schema": "9"})
    with pytest.raises(Refused, match=r"staging\.cnn: entry 2 was written by a newer Onward") as refused:
        reconcile(store)
    assert "corrected in other logs: the alias live of staging.mlp" in str(refused.value)
    assert store.versions.aliases("staging.cnn") == {}
    assert store.versions.aliases("staging.mlp") == {"live": 1}


def test_environments_are_created_once_before_any_promotion(store: Store) -> None:
    made = promotion.create_environments(["cnn", "mlp"], store)
    assert made == [
        "environments/staging", "staging.cnn", "staging.mlp", "environments/production", "production.cnn",
        "production.mlp",
    ]  # fmt: skip
    assert promotion.create_environments(["cnn", "mlp"], store) == []
    assert promotion.create_environments(["cnn", "new"], store) == ["staging.new", "production.new"]
    with pytest.raises(UsageError, match="name for a model"):
        promotion.create_environments(["a", "b/c"], store)
    assert "staging.a" not in store.versions.named("staging.a")


def test_a_promotion_overtaken_between_read_and_write_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    append = Store.append

    def overtaken(self: Store, environment: str, model: str, draft: Draft) -> Log:
        monkeypatch.setattr(Store, "append", append)
        promote("cnn", "staging", 2, reason="first", actor="bob", store=Store())
        return append(self, environment, model, draft)

    monkeypatch.setattr(Store, "append", overtaken)
    with pytest.raises(LostRace, match="Live now: entry 1, bob promoted version 2"):
        promote("cnn", "staging", 1, reason="second", store=store)
    log = store.log("staging", "cnn")
    assert (not_none(log.history.live).candidate_version, not_none(log.history.live).reason) == (2, "first")
    assert {e.number for e in log.history.lost} == log.marked
    assert store.versions.aliases("cnn") == {"staging": 2}
