"""NVIDIA's tritonclient, in an environment of its own, can talk to `onward serve` over HTTP and gRPC."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.registry.host import environments
from onward.registry.store.store import Store
from tests.conftest import ROOT
from tests.store_factory import three_candidates
from tests.test_serve import wait_for

CLIENTS = ROOT / "tests" / "clients"
X = np.arange(8, dtype=np.float32).reshape(2, 4).tolist()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return three_candidates(tmp_path, monkeypatch)


def call(store: Store, tmp_path: Path) -> dict[str, Any]:
    """What the client gets from a server in a process of its own."""
    environments.install("tritonclient", CLIENTS)
    log = tmp_path / "server.log"
    command = [sys.executable, "-m", "onward.cli", "serve", "cnn@staging", "--port", "0", "--grpc-port", "0"]
    own = os.environ | {"PYTHONPATH": str(ROOT)}  # the server is this checkout's, also if another one is installed
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=own) as server:
        try:
            found = wait_for(lambda: re.search(r"listens on \S+:(\d+) and, for gRPC, \S+:(\d+)", log.read_text()))
            python = environments.python("tritonclient", CLIENTS)
            script = [str(python), str(CLIENTS / "triton.py"), *found.groups()]
            done = subprocess.run(script, capture_output=True, text=True, timeout=120)
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr + log.read_text()
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_tritonclient_gets_answers_descriptions_and_errors(store: Store, tmp_path: Path) -> None:
    answers = call(store, tmp_path)
    for protocol, got in answers.items():
        for name in ("live", "ready", "model ready", "version ready"):
            assert got[name] is True, (protocol, name)
        for name in ("infer", "of version", "in time", "json", "mixed", "async", "within the deadline"):
            if name in got:
                assert (got[name]["version"], got[name]["y"]) == ("1", X), (protocol, name)
        assert got["infer"]["id"] == "7"
        assert got["metadata"]["inputs"][0]["name"] == "x"
        assert got["metadata"]["versions"] == ["1"]
        assert got["server"]["name"] == "onward"
        config = got["config"].get("config", got["config"])
        assert (config["input"][0]["data_type"], config["output"][0]["name"]) in (("TYPE_FP32", "y"), (11, "y"))
        for name, words in (
            ("wrong shape", "the model takes x float32"),
            ("wrong type", "input x is int64"),
            ("wrong name", "no input z"),
            ("wrong model", "there is no model 'other'"),
            ("wrong version", "version 1 loaded, not 9"),
            ("too late", "did not"),
        ):
            assert words in got[name]["error"], (protocol, name)
    assert answers["grpc"]["wrong shape"]["status"] == "StatusCode.INVALID_ARGUMENT"
    assert answers["grpc"]["wrong model"]["status"] == "StatusCode.NOT_FOUND"
    assert answers["grpc"]["too late"]["status"] == "StatusCode.DEADLINE_EXCEEDED"
