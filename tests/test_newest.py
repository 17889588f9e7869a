"""`onward status` lists the models whose newest pipeline run failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from onward.registry.cli.output import shortened
from onward.registry.operations import overview
from onward.registry.store import sqlite_reader
from onward.registry.store.store import Store
from onward.registry.tracking.recorder import publish
from tests.conftest import Command
from tests.evidence_factory import make_publication, register


@pytest.fixture
def store(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "params.yaml").write_text("environments: {staging: {from: candidate, require: []}}\n")
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return Store()


def failed(store: Store) -> dict[str, str]:
    """The result on which both implementations agree."""
    found = store.failures()
    assert sqlite_reader.failures() == found
    assert overview.status() == overview.status(store)
    return found


def test_a_failed_run_is_listed_until_a_newer_one_passes(store: Store, tmp_path: Path, onward: Command) -> None:
    assert failed(store) == {}
    good, bad = make_publication(tmp_path), make_publication(tmp_path, failed="a branch depends on input values")
    assert publish(good).version == 1
    assert failed(store) == {}
    publish(bad)
    assert failed(store) == {"toy": "export: a branch depends on input values"}
    code, out, _ = onward("status")
    assert code == 0
    assert "newest run" in out
    assert "failed: export: a branch depends on input values" in out
    publish(good)  # publish again: the passed run is older than the failed one, but was published last
    assert failed(store) == {}
    assert "newest run" not in onward("status")[1]
    publish(bad)
    assert list(failed(store)) == ["toy"]


def test_a_model_that_was_never_registered_is_listed(store: Store, tmp_path: Path, onward: Command) -> None:
    publish(make_publication(tmp_path, "never", failed="no way out [/layer] \x1b[2J\nat all"))
    register(tmp_path, "good")
    code, out, _ = onward("status")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "never registered" in rows["never"]
    assert "failed: export: no way out [/layer] \\x1b[2J at all" in rows["never"]
    assert "\x1b[2J" not in out
    code, out, _ = onward("status", "--json")
    found = {model["model"]: model for model in json.loads(out)}
    assert code == 0
    assert (found["never"]["newest"], found["never"]["failed"]) == (None, "export: no way out [/layer] \x1b[2J\nat all")
    assert (found["good"]["newest"], found["good"]["failed"]) == (1, None)


def test_runs_of_another_experiment_and_deleted_runs_do_not_count(store: Store, tmp_path: Path) -> None:
    import dataclasses

    bad = make_publication(tmp_path, failed="of a reason")
    publish(bad)
    publish(dataclasses.replace(make_publication(tmp_path), experiment="another"))
    assert failed(store) == {}
    run = publish(bad).run_id
    assert list(failed(store)) == ["toy"]
    client = MlflowClient()
    client.delete_run(run)
    assert failed(store) == {}
    client.restore_run(run)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    assert failed(store) == {}


def test_a_long_reason_is_truncated() -> None:
    assert shortened("a\n b\t\x07c") == "a b \\x07c"
    assert shortened("x" * 101) == "x" * 99 + "…"
