"""A lost copy of an environment is found or recreated, as long as its bytes exist somewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onward.registry.errors import Refused
from onward.registry.inference.session import InferenceSession
from onward.registry.log.entries import Entry
from onward.registry.operations import overview, promotion, transfer
from onward.registry.store.store import Store
from tests.conftest import not_none
from tests.store_factory import add_candidate, artifacts_of, fresh_store

X = np.ones((1, 4), np.float32)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which version 1 of cnn is live in staging."""
    store = fresh_store(tmp_path, monkeypatch)
    add_candidate(store, "cnn", 1.0)
    promote(store, "staging", 1)
    return store


def promote(store: Store, to: str, version: int | None = None) -> promotion.Outcome:
    return promotion.promote("cnn", to, version, reason="because", store=store)


def live(store: Store, environment: str = "staging") -> Entry:
    return not_none(store.log(environment, "cnn").history.live)


def delete_files(store: Store, environment: str, number: int) -> None:
    shutil.rmtree(artifacts_of(store, f"{environment}.cnn", number))


def damage_a_file(store: Store, environment: str, number: int) -> None:
    (artifacts_of(store, f"{environment}.cnn", number) / "model.onnx").write_bytes(b"rubbish")


def delete_a_file(store: Store, environment: str, number: int) -> None:
    (artifacts_of(store, f"{environment}.cnn", number) / "serving.json").unlink(missing_ok=True)
    (artifacts_of(store, f"{environment}.cnn", number) / "MLmodel").unlink()


def delete_the_logged_model(store: Store, environment: str, number: int) -> None:
    source = store.entry(environment, "cnn", number).source
    store._client.delete_logged_model(source.removeprefix("models:/"))


LOSSES = [delete_files, damage_a_file, delete_a_file, delete_the_logged_model]


@pytest.mark.parametrize("lose", LOSSES)
def test_promoting_the_live_version_again_restores_its_files(
    store: Store, lose: Callable[[Store, str, int], None]
) -> None:
    before = live(store)
    assert promote(store, "staging", 1).note == ""
    lose(store, "staging", 1)
    assert not overview.check("cnn", "staging", store).met
    outcome = promote(store, "staging", 1)
    assert not outcome.changed
    assert "had lost its copy, which was restored from models:/cnn/1" in outcome.note
    assert live(store) == before
    checked = overview.check("cnn", "staging", store)
    assert checked.met
    assert f"the files in {before.source}, which the entry names, are lost" in str(checked.results[0])
    assert np.array_equal(InferenceSession("cnn@staging").predict(X), X)
    # The copy exists now, so a second promotion does nothing.
    copies = store.files.own_copies("staging", "cnn", before.sha256)
    assert promote(store, "staging", 1).note == ""
    assert store.files.own_copies("staging", "cnn", before.sha256) == copies


@pytest.mark.parametrize("lose", LOSSES)
def test_promoting_an_earlier_version_again_recreates_a_lost_copy(
    store: Store, lose: Callable[[Store, str, int], None]
) -> None:
    add_candidate(store, "cnn", 2.0)
    promote(store, "staging", 2)
    lose(store, "staging", 1)
    outcome = promote(store, "staging", 1)
    assert outcome.changed
    assert live(store).source != store.entry("staging", "cnn", 1).source
    assert overview.check("cnn", "staging", store).met
    # A rollback to the old entry with the same bytes also works.
    promote(store, "staging", 2)
    assert promotion.rollback("cnn", "staging", reason="x", to=1, store=store).changed
    assert overview.check("cnn", "staging", store).met


@pytest.mark.parametrize("lose", LOSSES)
def test_rollback_to_a_lost_copy_uses_the_files_of_the_candidate(
    store: Store, lose: Callable[[Store, str, int], None]
) -> None:
    add_candidate(store, "cnn", 2.0)
    promote(store, "staging", 2)
    lose(store, "staging", 1)
    assert promotion.rollback("cnn", "staging", reason="x", store=store).version == 1
    assert overview.check("cnn", "staging", store).met
    assert np.array_equal(InferenceSession("cnn@staging").predict(X), X)


@pytest.mark.parametrize("lose", LOSSES)
def test_a_promotion_survives_a_lost_copy_in_the_previous_environment(
    store: Store, lose: Callable[[Store, str, int], None]
) -> None:
    lose(store, "staging", 1)
    assert promote(store, "production").version == 1
    assert overview.check("cnn", "production", store).met


def test_a_lost_copy_is_recreated_from_another_version_with_the_same_bytes(store: Store) -> None:
    store._client.delete_model_version("cnn", "1")
    add_candidate(store, "cnn", 1.0)  # the same bytes
    delete_files(store, "staging", 1)
    assert promote(store, "production").version == 1
    assert overview.check("cnn", "production", store).met


def test_if_no_copy_is_left_the_error_names_the_searched_places(store: Store) -> None:
    source = live(store).source
    delete_files(store, "staging", 1)
    shutil.rmtree(artifacts_of(store, "cnn", 1))
    for to, version in (("staging", 1), ("production", None)):
        with pytest.raises(Refused) as refused:
            promote(store, to, version)
        assert f"{source}: the store no longer has its files" in str(refused.value)
        assert "models:/cnn/1: the store no longer has its files" in str(refused.value)
    with pytest.raises(Refused, match="no longer has its files"):
        InferenceSession("cnn@staging")


def test_the_files_of_a_lost_candidate_come_from_the_copy_of_the_environment(store: Store) -> None:
    add_candidate(store, "cnn", 2.0)
    promote(store, "staging", 2)
    shutil.rmtree(artifacts_of(store, "cnn", 1))
    assert promote(store, "staging", 1).changed


def test_an_export_uses_the_remaining_copy(store: Store, tmp_path: Path) -> None:
    delete_files(store, "staging", 1)
    promote(store, "staging", 1)
    transfer.export(["cnn"], tmp_path / "moved", store)
    assert (tmp_path / "moved" / live(store).manifest / "model.onnx").is_file()


def test_reading_creates_no_copy(store: Store) -> None:
    before = {found.name for found in store._client.search_experiments()}
    assert store.files.own_copies("nowhere", "cnn", "0" * 64) == []
    assert {found.name for found in store._client.search_experiments()} == before
