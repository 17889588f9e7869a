"""The deprecated stages of MLflow follow the log if an environment requests it."""

from __future__ import annotations

from pathlib import Path

import pytest

from onward.registry.errors import UsageError
from onward.registry.gates import policy
from onward.registry.operations import promotion
from onward.registry.store.store import Store
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text(
        "environments:\n"
        "  staging: {from: candidate, require: [], mirror_stages: true}\n"
        "  production: {from: staging, require: [], mirror_stages: true}\n"
    )
    return store


def stages(store: Store) -> dict[int, str | None]:
    return {candidate.version: candidate.stage for candidate in store.candidates("cnn")}


def promote(store: Store, environment: str, version: int | None = None) -> None:
    promotion.promote("cnn", environment, version, reason="because", store=store)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_stages_follow_promotions_and_rollbacks(store: Store) -> None:
    promote(store, "staging", 1)
    assert stages(store) == {1: "Staging", 2: "None"}
    promote(store, "production")
    assert stages(store) == {1: "Production", 2: "None"}
    promote(store, "staging", 2)
    assert stages(store) == {1: "Production", 2: "Staging"}
    promote(store, "production")
    assert stages(store) == {1: "Archived", 2: "Production"}
    promotion.rollback("cnn", "production", reason="because", store=store)
    assert stages(store) == {1: "Production", 2: "Staging"}


def test_reconcile_corrects_stages(store: Store) -> None:
    promote(store, "staging", 1)
    store.set_stage("cnn", 1, "Archived")
    store.set_stage("cnn", 2, "Production")
    assert sorted(str(drift) for drift in promotion.reconcile(store)) == [
        "version 1 of cnn is in stage Archived and should be in Staging",
        "version 2 of cnn is in stage Production and should be in Archived",
    ]
    assert promotion.reconcile(store) == []


def test_a_new_candidate_with_a_reused_number_gets_no_stage(store: Store) -> None:
    promote(store, "staging", 1)
    store._client.delete_registered_model("cnn")
    add_candidate(store, "cnn", 7)
    promotion.reconcile(store)
    assert stages(store) == {1: "None"}


def test_stages_are_unchanged_unless_configured(store: Store, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").unlink()
    store.set_stage("cnn", 2, "Staging")
    promote(store, "staging", 1)
    promotion.reconcile(store)
    assert stages(store) == {1: "None", 2: "Staging"}


def test_an_environment_without_a_stage_cannot_be_mirrored() -> None:
    with pytest.raises(UsageError, match=r"environments\.moon\.mirror_stages: MLflow has stages for staging and prod"):
        policy.parse({"moon": {"from": "candidate", "require": [], "mirror_stages": True}})
