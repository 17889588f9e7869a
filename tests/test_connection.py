"""All data goes to one store, and a process that uses Onward keeps its own MLflow settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onward.registry.errors import StoreUnreachable, UsageError
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import overview, promotion
from onward.registry.store.connection import as_default, connect
from onward.registry.store.store import Store
from onward.registry.tracking.recorder import publish
from tests.conftest import ROOT, Command
from tests.evidence_factory import make_publication
from tests.store_factory import _empty_database, add_candidate, fresh_store

SERVICE = """
import logging, os, sys
import mlflow, numpy as np
from onward.registry.inference.session import InferenceSession
own, checkout, environment = sys.argv[1:]
logging.getLogger("mlflow").setLevel(logging.DEBUG)
mlflow.set_tracking_uri(own)
run = mlflow.start_run()
os.environ.pop("MLFLOW_TRACKING_URI")
if environment:
    os.environ["MLFLOW_TRACKING_URI"] = environment
os.chdir(checkout)
def state():
    levels = {name: logging.getLogger(name).level for name in ("", "mlflow", "alembic", "sqlalchemy")}
    return dict(os.environ), levels, mlflow.get_tracking_uri(), mlflow.get_registry_uri(), mlflow.active_run().info
before = state()
session = InferenceSession("cnn@staging")
assert np.array_equal(session.predict(np.ones((1, 4), np.float32)), np.ones((1, 4), np.float32))
assert not session.refresh()
assert state() == before, (state(), before)
mlflow.log_metric("answered", 1)
mlflow.end_run()
assert mlflow.get_run(run.info.run_id).data.metrics == {"answered": 1}
# A store that is named to MLflow later, which MLflow writes into the environment too, is not the session's.
mlflow.set_tracking_uri(own + "?x=1")
assert not session.refresh()
print("served")
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which version 1 of cnn is live in staging, in a checkout."""
    (tmp_path / "checkout").mkdir()
    store = fresh_store(tmp_path / "checkout", monkeypatch)
    (tmp_path / "checkout" / "dvc.yaml").write_text("stages: {}\n")
    add_candidate(store, "cnn", 1.0)
    promotion.promote("cnn", "staging", reason="x", store=store)
    return store


def own_mlflow(tmp_path: Path) -> str:
    shutil.copyfile(_empty_database(), tmp_path / "own.db")
    return f"sqlite:///{tmp_path}/own.db"


@pytest.mark.parametrize("named", [True, False])
def test_a_service_keeps_its_own_mlflow_settings(store: Store, tmp_path: Path, named: bool) -> None:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, own_mlflow(tmp_path), tmp_path / "checkout", uri if named else ""],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["served"], done.stderr


def test_writes_go_to_the_configured_store_and_not_to_the_store_of_the_process(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    uri, own = os.environ["MLFLOW_TRACKING_URI"], own_mlflow(tmp_path)
    try:
        mlflow.set_tracking_uri(own)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        fresh = Store()
        add_candidate(fresh, "cnn", 2.0)
        assert promotion.promote("cnn", "staging", reason="x").version == 2
        assert promotion.rollback("cnn", "staging", reason="x").version == 1
        assert publish(make_publication(tmp_path)).version == 1
        assert overview.check("cnn", "staging").met
        assert InferenceSession("toy/1").metadata.version == 1
        assert (mlflow.get_tracking_uri(), os.environ["MLFLOW_TRACKING_URI"]) == (own, uri)
        assert list(mlflow.MlflowClient(own, own).search_registered_models()) == []
        with as_default(fresh._client):
            assert mlflow.get_tracking_uri() == uri
        assert (mlflow.get_tracking_uri(), os.environ["MLFLOW_TRACKING_URI"]) == (own, uri)
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the default again; its annotation lacks None


def test_a_registry_in_another_store_is_rejected(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", own_mlflow(tmp_path))
    for command in (["status"], ["promote", "cnn", "1", "--to", "staging", "--reason", "x"], ["check", "cnn@staging"]):
        code, out, err = onward(*command)
        assert (code, out) == (2, "")
        assert "MLFLOW_REGISTRY_URI" in err
        assert "one store" in err
    with pytest.raises(UsageError, match="one store"):
        InferenceSession("cnn@staging")
    with pytest.raises(UsageError, match="one store"):
        publish(make_publication(tmp_path))
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", os.environ["MLFLOW_TRACKING_URI"])
    assert overview.check("cnn", "staging").met
    assert onward("status")[0] == 0


def test_a_store_without_a_server_has_no_permissions_to_grant(store: Store, onward: Command) -> None:
    code, out, err = onward("environments", "grant", "staging", "--to", "bob")
    assert (code, out) == (2, "")
    assert "has no users" in err
    code, _, err = onward("environments", "grant", "nowhere", "--to", "bob")
    assert (code, "nowhere" in err) == (2, True)


def test_credentials_of_a_registry_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hush@localhost:5000")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://ann:hush@localhost:5001")
    with pytest.raises(UsageError) as refused:
        connect()
    assert "hush" not in str(refused.value)


@pytest.mark.timeout(60)
def test_an_unreachable_server_is_reported_at_once_without_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_HTTP_REQUEST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:9 could not be reached"):
        InferenceSession("cnn@staging")
