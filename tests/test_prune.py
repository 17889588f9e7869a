"""What `onward prune` deletes, and what it keeps."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from onward.registry.errors import UsageError
from onward.registry.operations import overview, promotion, pruning
from onward.registry.store.store import Store
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Six versions of cnn, all of them 40 days old."""
    store = fresh_store(tmp_path, monkeypatch)
    for factor in range(1, 7):
        add_candidate(store, "cnn", factor)
    age(tmp_path, range(1, 7), 40)
    return store


def age(folder: Path, versions: Iterable[int], days: float) -> None:
    then = datetime.now(UTC) - timedelta(days=days)
    with sqlite3.connect(folder / "mlflow.db") as database:
        for version in versions:
            database.execute(
                "UPDATE model_versions SET creation_time = ? WHERE name = 'cnn' AND version = ?",
                (int(then.timestamp() * 1000), version),
            )


def promote(store: Store, version: int, days: float, environment: str = "staging") -> None:
    """Promote a version, dated `days` days ago."""
    entry = promotion.promote("cnn", environment, version, reason="because", store=store).entry
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    store._client.set_model_version_tag(f"{environment}.cnn", str(not_none(entry).number), "at", at)


def left(store: Store) -> set[int]:
    return {candidate.version for candidate in store.candidates("cnn")}


def test_live_recently_live_and_newest_versions_are_kept(store: Store) -> None:
    for version, days in ((1, 39), (2, 38), (3, 20), (4, 1)):
        promote(store, version, days)
    found = pruning.prune("cnn", "30d", store=store)
    assert {candidate.version for candidate in found.deleted} == {1, 5}
    assert {candidate.version: reason.split(" until")[0] for candidate, reason in found.kept} == {
        6: "the newest",
        4: "live in staging",
        3: "was live in staging",
        2: "was live in staging",
    }
    assert left(store) == {2, 3, 4, 6}


def test_a_version_live_in_an_unlisted_environment_is_kept(store: Store) -> None:
    promote(store, 1, 39)
    promote(store, 1, 39, "production")
    promote(store, 2, 35)
    store._client.rename_registered_model("production.cnn", "elsewhere.cnn")
    pruning.prune("cnn", "1d", store=store)
    assert left(store) == {1, 2, 6}


def test_new_and_aliased_versions_are_kept(store: Store, tmp_path: Path) -> None:
    age(tmp_path, [2], 3)
    store._client.set_registered_model_alias("cnn", "champion", "3")
    assert {candidate.version for candidate in pruning.prune("cnn", "2w", store=store).deleted} == {1, 4, 5}


def test_a_rollback_to_a_pruned_version_works(store: Store) -> None:
    for version, days in ((1, 39), (2, 38)):
        promote(store, version, days)
    pruning.prune("cnn", "1h", store=store)
    assert 1 not in left(store)
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1
    assert overview.check("cnn", "staging", store).met


def test_pruning_deletes_the_files_of_a_version(store: Store) -> None:
    [first] = [candidate for candidate in store.candidates("cnn") if candidate.version == 1]
    pruning.prune("cnn", "30d", store=store)
    experiment = not_none(store._client.get_experiment_by_name("onward")).experiment_id
    assert first.logged_model not in {model.model_id for model in store._client.search_logged_models([experiment])}


def test_a_dry_run_reports_the_same_and_deletes_nothing(store: Store, onward: Command) -> None:
    code, out, _ = onward("prune", "cnn", "--older-than", "30d", "--dry-run", "--json")
    assert code == 0
    assert left(store) == set(range(1, 7))
    assert sorted(json.loads(out)["deleted"]) == [1, 2, 3, 4, 5]
    assert "would be deleted" in onward("prune", "cnn", "--older-than", "30d", "--dry-run")[1]
    code, out, _ = onward("prune", "cnn", "--older-than", "30d")
    assert out.splitlines()[-1].split() == ["6", "kept", "the", "newest"]
    assert left(store) == {6}
    assert onward("prune", "cnn", "--older-than", "30d")[0] == 0


@pytest.mark.parametrize("text", ["30", "d", "-1d", "30 d", "1y", ""])
def test_an_invalid_age_is_rejected(store: Store, text: str) -> None:
    with pytest.raises(UsageError, match="--older-than"):
        pruning.prune("cnn", text, store=store)
    with pytest.raises(UsageError, match="no version of 'nope'"):
        pruning.prune("nope", "1d", store=store)
