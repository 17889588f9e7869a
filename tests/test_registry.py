"""Promotion and rollback on a real MLflow store: order, gates, races, crashes, and what deleting candidates does."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from registry import operations
from registry.errors import LostRace, OnwardError, Refused, UsageError
from registry.session import InferenceSession
from registry.store import Store
from tests.conftest import ROOT
from tests.evidence_factory import register


@pytest.fixture
def store(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)  # outside of any checkout: the default environments hold
    return Store()


def to_production(store: Store, version: int, model: str = "toy") -> None:
    operations.promote(store, model, "staging", "why not", str(version))
    operations.promote(store, model, "production", "why not")


def client(uri: str) -> MlflowClient:
    return MlflowClient(uri, uri)


def test_a_version_goes_from_candidate_to_staging_to_production(store: Store, store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    with pytest.raises(Refused, match="nothing is live in staging"):
        operations.promote(store, "toy", "production", "in a hurry")
    staged = operations.promote(store, "toy", "staging", "first")
    assert (staged.entry.number, staged.entry.actor) == (1, "tester")
    assert staged.verdicts == {"parity": "", "quality": "", "data": ""}
    live = operations.promote(store, "toy", "production", "second")
    assert live.verdicts["replay"] == ""
    assert client(store_uri).get_model_version_by_alias("production.toy", "live").version in (1, "1")
    assert client(store_uri).get_model_version_by_alias("toy", "production").version in (1, "1")
    assert str(live.entry) == "tester promoted version 1 to production: second"


def test_production_takes_only_what_is_live_in_staging(store: Store, tmp_path: Path) -> None:
    register(tmp_path)
    register(tmp_path, scale=2.0)
    operations.promote(store, "toy", "staging", "why", "1")
    with pytest.raises(Refused, match="is version 1 of toy, not 2"):
        operations.promote(store, "toy", "production", "why", "2")


def test_promoting_what_is_live_already_appends_nothing(store: Store, tmp_path: Path) -> None:
    register(tmp_path)
    operations.promote(store, "toy", "staging", "why")
    again = operations.promote(store, "toy", "staging", "why")
    assert again.already_live
    assert len(store.line("toy", "staging").entries) == 1


def test_every_unmet_requirement_is_listed_and_nothing_changes(store: Store, store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    for key, value in (("parity", "failed"), ("quality_drop", "0.5")):
        client(store_uri).set_model_version_tag("toy", "1", key, value)
    client(store_uri).delete_model_version_tag("toy", "1", "data")
    with pytest.raises(Refused) as caught:
        operations.promote(store, "toy", "staging", "why")
    for words in ("parity: recorded as failed", "quality: drops by 0.5", "data: no evidence recorded"):
        assert words in str(caught.value)
    assert store.line("toy", "staging").entries == []
    forced = operations.promote(store, "toy", "staging", "the old one is on fire", force=True)
    assert forced.entry.forced
    assert "past its gates" in str(store.line("toy", "staging").live)
    assert "parity FAILED" in store.line("toy", "staging").live.gates


def test_a_dry_run_changes_nothing(store: Store, store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    plan = operations.promote(store, "toy", "staging", "why", dry_run=True)
    assert (plan.entry.number, plan.verdicts["parity"]) == (0, "")
    assert store.line("toy", "staging").entries == []
    assert [m.name for m in client(store_uri).search_registered_models()] == ["toy"]


def test_rolling_back_twice_goes_two_back_and_not_to_and_fro(store: Store, tmp_path: Path) -> None:
    for scale in (1.0, 2.0, 3.0):
        to_production(store, register(tmp_path, scale=scale))
    assert operations.rollback(store, "toy", "production", "bad").entry.candidate_version == "2"
    assert operations.rollback(store, "toy", "production", "worse").entry.candidate_version == "1"
    with pytest.raises(Refused, match="nothing to go back to"):
        operations.rollback(store, "toy", "production", "none left")
    assert operations.rollback(store, "toy", "production", "mind changed", to=3).entry.candidate_version == "3"
    assert [e.kind for e in store.line("toy", "production").entries] == ["promote"] * 3 + ["rollback"] * 3


def test_rollback_and_prediction_survive_deleted_candidates_their_runs_and_their_experiment(
    store: Store, store_uri: str, tmp_path: Path
) -> None:
    for scale in (1.0, 2.0):
        to_production(store, register(tmp_path, scale=scale))
    before = InferenceSession("toy@production").predict(np.ones((1, 4), np.float32))
    mlflow = client(store_uri)
    experiment = mlflow.get_experiment_by_name("tests")
    for run in mlflow.search_runs([experiment.experiment_id]):
        mlflow.delete_run(run.info.run_id)
    for model in mlflow.search_logged_models([experiment.experiment_id]):
        mlflow.delete_logged_model(model.model_id)
    mlflow.delete_registered_model("toy")
    mlflow.delete_experiment(experiment.experiment_id)
    subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store_uri], check=True, capture_output=True
    )
    assert operations.check(store, "toy", "production").candidate_version == "2"
    operations.rollback(store, "toy", "production", "bad")
    after = InferenceSession("toy@production").predict(np.ones((1, 4), np.float32))
    assert np.allclose(before, 2 * after)
    assert operations.check(store, "toy", "production").candidate_version == "1"


def test_the_loser_of_a_race_is_told_who_won_and_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scale in (1.0, 2.0, 3.0):
        to_production(store, register(tmp_path, scale=scale))
    append = Store.append

    def someone_quicker(self: Store, entry: Any) -> Any:
        monkeypatch.setattr(Store, "append", append)
        operations.rollback(store, "toy", "production", "quicker", to=1, actor="grace")
        return append(self, entry)

    monkeypatch.setattr(Store, "append", someone_quicker)
    with pytest.raises(LostRace, match="grace rolled production back to version 1") as caught:
        operations.rollback(store, "toy", "production", "slower")
    assert caught.value.exit_code == 3
    line = store.line("toy", "production")
    assert (line.live.actor, [e.reason for e in line.lost]) == ("grace", ["slower"])
    assert client(os.environ["MLFLOW_TRACKING_URI"]).get_model_version("production.toy", "5").tags["lost"] == "true"


def racer(number: int, uri: str, results: Any) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    store, won = Store(), 0
    for attempt in range(6):
        try:
            operations.rollback(store, "toy", "production", f"{number}/{attempt}", to=1 + (number + attempt) % 3)
            won += 1
        except (LostRace, UsageError):
            continue  # someone was quicker, or it is live already
        except OnwardError as error:
            results.put((number, -1, str(error)))
            return
    results.put((number, won, ""))


def test_of_many_at_once_those_who_were_told_they_won_are_those_who_count(
    store: Store, store_uri: str, tmp_path: Path
) -> None:
    for scale in (1.0, 2.0, 3.0):
        to_production(store, register(tmp_path, scale=scale))
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    processes = [context.Process(target=racer, args=(number, store_uri, results)) for number in range(4)]
    for process in processes:
        process.start()
    told = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert [error for _, _, error in told if error] == []
    line = store.line("toy", "production")
    assert len(line.counted) - 3 == sum(won for _, won, _ in told) > 0
    assert line.live is not None


@pytest.mark.parametrize("step", ["create_model_version", "set_registered_model_alias", "log_model_artifacts"])
def test_a_promotion_killed_halfway_leaves_a_live_version_and_the_next_command_mends_the_views(
    store: Store, store_uri: str, tmp_path: Path, step: str
) -> None:
    to_production(store, register(tmp_path))
    register(tmp_path, scale=2.0)
    operations.promote(store, "toy", "staging", "next", "2")
    script = textwrap.dedent(
        f"""
        import os, signal
        from mlflow import MlflowClient
        from registry import operations
        from registry.store import Store
        original = MlflowClient.{step}
        def killing(*a, **k):
            {"original(*a, **k)" if step == "create_model_version" else "pass"}
            os.kill(os.getpid(), signal.SIGKILL)
        MlflowClient.{step} = killing
        operations.promote(Store(), "toy", "production", "next")
        """
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store_uri, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    assert done.returncode == -signal.SIGKILL
    live = store.line("toy", "production").live
    assert live is not None
    assert live.candidate_version == ("1" if step == "log_model_artifacts" else "2")
    operations.check(store, "toy", "production")
    drifted = operations.status(store)[0].drift
    assert bool(drifted) == (step != "log_model_artifacts")
    operations.promote(store, "toy", "production", "again")
    assert operations.status(store)[0].drift == []
    assert store.line("toy", "production").live.candidate_version == "2"


def test_reconcile_sets_every_alias_right(store: Store, store_uri: str, tmp_path: Path) -> None:
    to_production(store, register(tmp_path))
    client(store_uri).delete_registered_model_alias("production.toy", "live")
    client(store_uri).set_registered_model_alias("toy", "production", "1")
    assert operations.status(store)[0].drift == ["production.toy@live"]
    assert operations.reconcile(store) == ["production.toy@live -> 1"]
    assert operations.reconcile(store) == []


def test_a_changed_byte_is_refused_with_the_files_name(store: Store, store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    stored = next((tmp_path / "mlartifacts" / "tests").rglob("*fast*/**/model.onnx"), None) or next(
        p for p in (tmp_path / "mlartifacts" / "tests").rglob("model.onnx") if "validation" in os.listdir(p.parent)
    )
    content = bytearray(stored.read_bytes())
    content[-20] ^= 1
    stored.write_bytes(content)
    with pytest.raises(Refused, match=r"model\.onnx has changed"):
        operations.promote(store, "toy", "staging", "why")
    with pytest.raises(Refused, match=r"model\.onnx has changed"):
        InferenceSession("toy/1")


@pytest.mark.parametrize("name", ["../toy", "a'b", "", "a.b", "toy "])
def test_a_name_that_is_none_never_reaches_a_filter(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a model"):
        store.line(name, "production")


def test_unknown_models_versions_and_environments_are_users_mistakes(store: Store, tmp_path: Path) -> None:
    register(tmp_path)
    for call, words in (
        (lambda: operations.promote(store, "toy", "prod", "why"), "there is no environment 'prod'"),
        (lambda: operations.promote(store, "toy", "staging", "why", "9"), "toy has no version 9; it has 1"),
        (lambda: operations.promote(store, "tor", "staging", "why", "1"), "there is no registered model 'tor'"),
        (lambda: operations.promote(store, "toy", "staging", "  "), "--reason must say why"),
        (lambda: operations.history(store, "tor"), "there is no registered model 'tor'"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def onward(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "registry.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def test_the_command_line_from_promotion_to_prediction(store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    np.savez(tmp_path / "in.npz", x=np.ones((5, 4), np.float32))
    assert onward("promote", "toy", "--to", "staging", "--reason", "first").returncode == 0
    done = onward("promote", "toy", "--to", "production", "--reason", "first", "--json")
    assert json.loads(done.stdout)["number"] == 1
    status = json.loads(onward("status", "--json").stdout)
    assert status[0]["live"]["production"]["candidate_version"] == "1"
    assert "tester promoted version 1 to production: first" in onward("history", "toy").stdout
    checked = onward("check", "toy@production")
    assert (checked.returncode, "as recorded" in checked.stdout) == (0, True)
    out = tmp_path / "out.npz"
    predicted = onward("predict", "toy@production", "--input", str(tmp_path / "in.npz"), "--output", str(out))
    assert predicted.returncode == 0, predicted.stderr
    assert np.load(out)["y"].shape == (5, 3)
    inspected = json.loads(onward("inspect", "toy@production", "--json").stdout)
    assert inspected["operators"] == {"MatMul": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["rollback", "toy", "--env", "production", "--reason", "x"], 1, "nothing was ever live here"),
        (["promote", "toy", "--to", "production", "--reason", "x"], 1, "nothing is live in staging"),
        (["promote", "toy", "--to", "nowhere", "--reason", "x"], 2, "there is no environment 'nowhere'"),
        (["check", "toy"], 2, "wants MODEL@ENVIRONMENT"),
        (["predict", "toy@staging", "--input", "none.npz"], 2, "none.npz: cannot be read"),
        (["inspect", "none.onnx"], 2, "none.onnx: there is no such file"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_a_sane_exit_code(
    store_uri: str, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    register(tmp_path)
    done = onward(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert [line[:8] for line in done.stderr.splitlines()] == ["onward: "]


def test_a_store_that_is_down_is_exit_code_4(tmp_path: Path) -> None:
    done = onward("status", MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 4
    assert "could not be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["status", "history", "promote", "rollback", "reconcile", "check", "predict", "inspect", "ui"]
)
def test_help_of_every_command_shows_an_example(command: str) -> None:
    done = onward(command, "--help")
    assert done.returncode == 0
    assert f"Example: onward {command}" in done.stdout


def test_help_needs_neither_mlflow_nor_numpy() -> None:
    script = "import sys, registry.cli; print([m for m in ('mlflow', 'numpy', 'onnx', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
