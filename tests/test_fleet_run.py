"""`onward fleet run` on Ray clusters of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from onward.registry.artifact.serving_plan import Serving
from onward.registry.host import hardware
from tests.conftest import run
from tests.fleet_cluster import Cluster, commit, kill, project
from tests.servers import plain_mlflow_server, wait_until

STAGES = ("train", "data", "export", "verify", "optimize", "quantize", "benchmark", "select", "publish")


def fleet(root: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, the JSON answer, stderr) of `onward fleet run`."""
    done = subprocess.run(
        [sys.executable, "-m", "onward.cli", "fleet", "run", *arguments, "--json"],
        cwd=root, env={**os.environ, **variables}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def up_to_date(root: Path) -> set[str]:
    """The stages of models that `dvc repro` would run."""
    done = run("dvc status --json", root)
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return {name for name in found if "@" in name}


# Both classes are this machine's, so one machine measures for both.
HERE = {"serving": {"cores": hardware.describe().cores}, "edge": {"cpu": hardware.describe().cpu}}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two classes of hosts, a model that passes, and one that cannot be exported."""
    branching = {"build": "models.toy:branching", "export": {"strategy": "dynamo"}}
    return project(tmp_path_factory.mktemp("fleet") / "a clone", HERE, toy={}, branching=branching)


def test_models_run_in_clones_and_the_checkout_gets_one_lock_file(local: Path) -> None:
    code, answer, errors = fleet(local)
    assert code == 1, errors
    states = {one["model"]: one for one in answer["models"]}
    assert states["toy"]["state"] == "passed", states["toy"]
    assert states["branching"]["state"] == "failed"
    assert "a branch depends on input values" in states["branching"]["verdict"]["faults"][0]
    # One of the two measurements is restored: it is that of an equal machine.
    assert Counter(name.removesuffix(" on edge") for name in states["toy"]["computed"]) == Counter(STAGES)
    assert {"benchmark", "benchmark on edge"} <= set(states["toy"]["stages"])
    assert "fleet: toy: passed" in errors
    assert run("git status --porcelain --untracked-files=no", local).stdout in ("", " M dvc.lock\n")
    assert run("dvc checkout", local).returncode == 0
    assert up_to_date(local) == set()


def test_measurements_on_two_classes_join_one_version(local: Path) -> None:
    store = f"sqlite:///{local / 'mlflow.db'}"
    client = MlflowClient(store, store)
    (version,) = client.search_model_versions("name = 'toy'")
    assert version.tags["host.edge"].startswith("plain on cpu, ")
    assert "host.serving" not in version.tags  # the main class is the version's own evidence
    assert client.get_run(str(version.run_id)).data.tags["git_dirty"] == "false"
    folder = Path(unquote(client.get_model_version_download_uri("toy", version.version).removeprefix("file://")))
    serving = Serving.load(folder)
    assert serving is not None
    assert list(serving.root) == ["cpu", "cpu--edge"]
    here = hardware.describe()
    assert next(iter(serving.here().root)) == "cpu--edge"
    assert list(serving.here(here.model_copy(update={"cpu": "another"})).root) == ["cpu"]
    done = run("python -m onward.cli promote toy --to staging --reason first --force", local)
    assert done.returncode == 0, done.stdout


def test_what_is_known_is_not_run_again_and_a_change_runs_what_depends_on_it(local: Path) -> None:
    code, answer, errors = fleet(local)
    assert code == 1, errors
    assert all(one["known_before"] for one in answer["models"])
    params = yaml.safe_load((local / "params.yaml").read_text())
    params["models"]["toy"]["budget"] = {"quality_drop": 0.011}
    (local / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    code, _, errors = fleet(local, "toy")
    assert code == 2
    assert "uncommitted changes in params.yaml" in errors
    commit(local)
    code, answer, errors = fleet(local, "toy")
    assert code == 0, errors
    assert not {"train", "data", "export", "verify", "optimize"} & set(answer["models"][0]["computed"])
    assert "select" in answer["models"][0]["computed"]
    code, _, errors = fleet(local, "toi")
    assert code == 2
    assert "did you mean 'toy'" in errors


# A cluster: a head without CPUs, and two nodes with a DVC cache each.


def test_a_killed_node_loses_nothing_and_repeats_at_most_one_stage(tmp_path: Path) -> None:
    root = project(tmp_path / "clone", {}, one={"seed": 1}, two={"seed": 2})
    done = run(f"dvc remote add --default shared '{tmp_path / 'remote'}' && git commit -qam remote", root)
    assert done.returncode == 0, done.stdout
    answer = tmp_path / "answer.json"
    with ExitStack() as held:
        store = held.enter_context(plain_mlflow_server(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path))
        cluster = Cluster(root, tmp_path, ["left", "right"], held)
        running = cluster.run(store, answer)
        states = root / ".dvc" / "tmp" / "onward-fleet"
        try:
            wait_until(lambda: running.poll() is not None or any(
                "export" in json.loads(path.read_text())["progress"]["done"] for path in states.glob("*.json")
            ), 400)  # fmt: skip
            kill(cluster.nodes["right"])
            running.wait(600)
        finally:
            running.kill()
            running.wait()
        log_text = answer.with_suffix(".log").read_text()
        assert running.returncode == 0, log_text[-3000:]
        found = json.loads(answer.read_text())
        for one in found["models"]:
            counts = Counter(one["computed"])
            assert set(counts) == set(STAGES), one
            assert sum(counts.values()) <= len(STAGES) + 1, one
        assert max(one["attempts"] for one in found["models"]) > 3  # a task ran again after the node was lost
        client = MlflowClient(store, store)
        assert sorted(v.name for v in client.search_model_versions()) == ["one", "two"]
    assert run("dvc pull", root).returncode == 0
    assert up_to_date(root) == set()


def test_a_cluster_needs_a_shared_store_and_a_remote(local: Path) -> None:
    code, _, errors = fleet(local, "--address", "127.0.0.1:1")
    assert code == 2
    assert "cannot reach an MLflow store in a file" in errors
    code, _, errors = fleet(local, "--address", "127.0.0.1:1", MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert code in (2, 4)
    assert "Traceback" not in errors


def test_an_interrupted_run_keeps_what_was_finished(local: Path) -> None:
    params = yaml.safe_load((local / "params.yaml").read_text())
    params["models"]["toy"]["seed"] = 5
    (local / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    commit(local)
    state = local / ".dvc" / "tmp" / "onward-fleet" / "toy.json"
    begun = time.time()
    running = subprocess.Popen(
        [sys.executable, "-m", "onward.cli", "fleet", "run", "toy", "--json"],
        cwd=local, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: running.poll() is not None or (
            state.stat().st_mtime > begun and "data" in json.loads(state.read_text())["progress"]["done"]
        ), 300)  # fmt: skip
        os.killpg(running.pid, signal.SIGINT)
        output, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130
    (one,) = json.loads(output)["models"]
    assert one["state"] == "cancelled"
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not any("onward.stages.fleet.pipeline" in command for command in commands)
    code, answer, errors = fleet(local, "toy")
    assert code == 0, errors
    assert "train" not in answer["models"][0]["computed"]
