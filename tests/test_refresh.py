"""A running consumer follows an environment: it swaps without dropping a call, and keeps a working model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onward.registry.errors import Refused, StoreUnreachable
from onward.registry.inference.model import Metadata
from onward.registry.inference.session import InferenceSession, cache
from onward.registry.operations import promotion
from onward.registry.store import connection, last_live
from onward.registry.store.store import Store
from tests.store_factory import add_candidate, artifacts_of, scale_model, stage, three_candidates

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return three_candidates(tmp_path, monkeypatch)


def test_refresh_loads_the_current_live_version(store: Store) -> None:
    session = InferenceSession("cnn@staging")
    seen: list[Metadata] = []
    assert not session.refresh(seen.append)
    stage(store, 2)
    assert np.array_equal(session.predict(X), X)
    assert session.refresh(seen.append)
    assert np.array_equal(session.predict(X), 2 * X)
    assert np.array_equal(session.predict_batches(X, 1), 2 * X)
    assert [(about.version, about.entry) for about in seen] == [(2, 2)]
    promotion.rollback("cnn", "staging", reason="because", store=store)
    assert session.refresh()
    assert (session.metadata.version, session.metadata.entry) == (1, 3)


def test_refresh_does_not_reload_equal_bytes(store: Store) -> None:
    session = InferenceSession("cnn@staging")
    stage(store, 2)
    promotion.rollback("cnn", "staging", reason="because", store=store)
    seen: list[Metadata] = []
    assert not session.refresh(seen.append)
    assert seen == []
    assert session.metadata.entry == 3


def test_a_swap_drops_no_call(store: Store) -> None:
    session = InferenceSession("cnn@staging")
    answers, done = [], threading.Event()

    def consume() -> None:
        mine = []
        while not done.is_set():
            mine.append(session.predict(X)[0, 1])
        answers.append(mine)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (2, 3, 1, 2):
        stage(store, version)
        assert session.refresh()
    done.set()
    for thread in threads:
        thread.join()
    assert len(answers) == 3
    assert {float(answer) for mine in answers for answer in mine} <= {1.0, 2.0, 3.0}
    assert all(mine[0] == 1.0 for mine in answers)


def test_refresh_rejects_a_model_that_does_not_reproduce_its_outputs(store: Store) -> None:
    bad = add_candidate(store, "cnn", 5, recorded_factor=6)
    session = InferenceSession("cnn@staging")
    stage(store, bad)
    for _ in range(2):
        with pytest.raises(Refused, match=r"version 4, entry 2, does not repeat .* version 1 stays loaded: output y"):
            session.refresh()
    assert np.array_equal(session.predict(X), X)
    assert session.metadata.version == 1
    stage(store, 2)
    assert session.refresh()


def test_refresh_rejects_changed_bytes(store: Store) -> None:
    session = InferenceSession("cnn@staging")
    stage(store, 2)
    (artifacts_of(store, "staging.cnn", 2) / "model.onnx").write_bytes(b"other")
    with pytest.raises(Refused, match=r"model\.onnx has changed"):
        session.refresh()
    assert np.array_equal(session.predict(X), X)
    assert not list(cache().glob(".download-*"))


def test_an_unreachable_store_does_not_stop_a_session(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    session = InferenceSession("cnn@staging")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreUnreachable):
        session.refresh()
    assert np.array_equal(session.predict(X), X)


def test_a_session_of_a_version_or_file_never_changes(store: Store, tmp_path: Path) -> None:
    for target in ("cnn/1", scale_model(tmp_path / "at@staging.onnx", 1)):
        session = InferenceSession(target)
        stage(store, 2)
        assert not session.refresh()
        assert np.array_equal(session.predict(X), X)


def test_a_session_starts_from_the_cache_while_the_store_cannot_be_reached(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "http://127.0.0.1:9"
    assert not InferenceSession("cnn@staging").metadata.cached
    monkeypatch.setattr(last_live, "_file", partial(_same_file, last_live._file, store_uri()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreUnreachable):
        InferenceSession("cnn@staging")
    with pytest.raises(StoreUnreachable):  # never seen here
        InferenceSession("cnn@production", allow_cached=True)
    session = InferenceSession("cnn@staging", allow_cached=True)
    assert np.array_equal(session.predict(X), X)
    assert (session.metadata.version, session.metadata.cached) == (1, True)
    with pytest.raises(StoreUnreachable):
        session.refresh()
    monkeypatch.undo()


def test_changed_files_in_the_cache_are_refused_without_a_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = InferenceSession("cnn@staging").loaded.path
    monkeypatch.setattr(last_live, "_file", partial(_same_file, last_live._file, store_uri()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    path.chmod(0o600)
    path.write_bytes(b"other")
    with pytest.raises(Refused, match="has changed"):
        InferenceSession("cnn@staging", allow_cached=True)


def store_uri() -> str:
    return connection.tracking_uri()


def _same_file(real: Callable[[str, str], Path], store: str, target: str, _: str) -> Path:
    """The record of `store`, as if the address of the unreachable store were the same."""
    return real(target, store)
