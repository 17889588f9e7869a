"""Every way to use the live version gives the same outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest

from onward.registry.inference.session import InferenceSession
from onward.registry.operations import promotion
from tests.servers import answers, free_port, wait_until
from tests.store_factory import add_candidate, fresh_store


def served(uri: str, folder: Path, x: np.ndarray) -> np.ndarray:
    """The outputs of `mlflow models serve`."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "serve.log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}/ping"))
        assert server.poll() is None, (folder / "serve.log").read_text()[-3000:]
        body = json.dumps({"inputs": {"x": x.tolist()}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return np.array(json.load(answer)["predictions"]["y"], np.float32)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def test_onward_pyfunc_and_mlflow_models_serve_give_the_same_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (2, 3):
        add_candidate(store, "cnn", factor)
        promotion.promote("cnn", "staging", factor - 1, reason="because", store=store)
        promotion.promote("cnn", "production", reason="because", store=store)
    promotion.rollback("cnn", "production", reason="because", store=store)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    wanted = InferenceSession("cnn@production").predict(x)
    assert np.array_equal(wanted, 2 * x)
    for uri in ("models:/production.cnn@live", "models:/cnn@production"):
        assert np.array_equal(mlflow.pyfunc.load_model(uri).predict({"x": x})["y"], wanted)
    assert np.array_equal(served("models:/production.cnn@live", tmp_path, x), wanted)
