"""From publication to serving, using only the `onward` command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from onward.registry.inference.session import InferenceSession
from tests.conftest import ROOT, not_none
from tests.evidence_factory import register


def onward(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onward.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def promoted(version: int) -> None:
    for environment, named in (("staging", [str(version)]), ("production", [])):
        done = onward("promote", "toy", *named, "--to", environment, "--reason", "because")
        assert done.returncode == 0, done.stderr


def test_a_published_version_can_be_promoted_checked_and_used(store_uri: str, tmp_path: Path) -> None:
    promoted(register(tmp_path))
    np.savez(tmp_path / "in.npz", x=np.ones((5, 4), np.float32))
    done = onward(
        "predict", "toy@production", "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npz")["y"].shape == (5, 3)
    assert onward("check", "toy@production").returncode == 0
    assert json.loads(onward("inspect", "toy@production", "--json").stdout)["operators"] == {"MatMul": 1, "Relu": 1}


def test_rollback_and_prediction_survive_deleted_candidates_runs_and_experiment(store_uri: str, tmp_path: Path) -> None:
    for scale in (1.0, 2.0):
        promoted(register(tmp_path, scale=scale))
    ones = np.ones((1, 4), np.float32)
    before = InferenceSession("toy@production").predict(ones)
    client = MlflowClient(store_uri, store_uri)
    experiment = client.get_experiment_by_name("tests")
    for run in client.search_runs([not_none(experiment).experiment_id]):
        client.delete_run(run.info.run_id)
    for model in client.search_logged_models([not_none(experiment).experiment_id]):
        client.delete_logged_model(model.model_id)
    client.delete_registered_model("toy")
    client.delete_experiment(not_none(experiment).experiment_id)
    gone = subprocess.run([sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store_uri], capture_output=True)
    assert gone.returncode == 0
    done = onward("rollback", "toy", "--env", "production", "--reason", "wrong answers")
    assert done.returncode == 0, done.stderr
    assert np.allclose(before, 2 * InferenceSession("toy@production").predict(ones))
    assert onward("check", "toy@production").returncode == 0


def test_mlflow_loads_the_live_version_by_alias(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    promoted(register(tmp_path))
    x = np.ones((2, 4), np.float32)
    wanted = InferenceSession("toy@production").predict(x)
    for uri in ("models:/production.toy@live", "models:/toy@production"):
        assert np.allclose(mlflow.pyfunc.load_model(uri).predict({"x": x})["y"], wanted)


def test_an_unreachable_store_exits_4_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = onward("status")
    assert done.returncode == 4
    assert "could not be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ui_opens_the_configured_store(store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "onward.cli", "ui", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        until = time.monotonic() + 90
        found = b""
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/registered-models/get?name=toy"
        while time.monotonic() < until and not found:
            try:
                found = urllib.request.urlopen(url, timeout=5).read()
            except OSError:
                time.sleep(0.5)
        assert b'"toy"' in found
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
