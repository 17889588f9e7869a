"""A real `dvc repro` in a clone, with a model that passes and one that cannot be exported.

The tests share one clone and run in file order, because each builds on the state of the previous one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from onward.stages.summary import rounded
from tests.conftest import clone, not_none, run
from tests.toy import SOURCE, toy_params

BRANCHING = """

class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(6, 3)
        self.b = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)

def branching():
    torch.manual_seed(0)
    return Branching()
"""

ALWAYS = {"params", "host", "tracking"}
BENCHMARK = toy_params()["models"]["toy"]["benchmark"]
MEASURED = {"benchmark@toy", "select@toy", "publish@toy"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with two small models instead of the shipped ones."""
    root = clone(tmp_path_factory.mktemp("clone") / "with a space")
    (root / "models" / "toy.py").write_text(SOURCE + BRANCHING)
    # One optimiser, one quantiser and one runtime: these tests are about what runs again, not about the search.
    params = toy_params(optimize={"candidates": ["onnxsim"]}, quantize={"candidates": ["dynamic"]})
    params["models"]["toy"]["benchmark"] |= {"search_seconds": 2, "race_seconds": 1}
    params["runtimes"] = ["cpu"]
    params["models"]["branching"] = {
        **params["models"]["toy"],
        "build": "models.toy:branching",
        "export": {"strategy": "dynamo"},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return root


def repro(root: Path, *flags: str) -> tuple[int, set[str], str]:
    """(exit code, stages that ran, output) of `dvc repro`."""
    done = run(f"dvc repro {' '.join(flags)}", root, XDG_CACHE_HOME=str(root.parent / "cache"))
    return done.returncode, set(re.findall(r"^Running stage '(.+)':", done.stdout, re.M)), done.stdout


@contextlib.contextmanager
def edited(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the models of params.yaml, and write their changes back."""
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    yield params["models"]
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def edit(root: Path, model: str, **changes: Any) -> None:
    with edited(root) as models:
        models[model] |= changes


def commit(root: Path) -> None:
    author = "git config user.name Test; git config user.email test@example.invalid"
    done = run(f"{author}; git add -A; git commit -qm all", root)
    assert done.returncode == 0, done.stdout


def published(root: Path) -> dict[str, Any]:
    """The content of the store, read from a copy: MLflow caches a connection per path, even to a deleted file."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "mlflow.db"
        with closing(sqlite3.connect(root / "mlflow.db")) as store, closing(sqlite3.connect(copy)) as target:
            store.backup(target)
        return _published(MlflowClient(f"sqlite:///{copy}", f"sqlite:///{copy}"))


def _published(client: MlflowClient) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("onward")
    runs = client.search_runs([not_none(experiment).experiment_id])
    return {
        "parents": [r for r in runs if r.data.tags["onward.role"] == "model"],
        "runs": len(runs),
        "versions": [(v.name, int(v.version)) for v in client.search_model_versions()],
    }


def test_one_model_passes_and_the_failure_of_the_other_is_reported_and_recorded(checkout: Path) -> None:
    code, ran, output = repro(checkout)
    assert code != 0
    assert {"publish@toy", "publish@branching", "verdict"} <= ran
    assert re.search(r"failed: branching: export: a branch depends on input values", output)
    assert re.search(r"toy +│ passed", output)
    found = published(checkout)
    states = {r.data.tags["onward.model"]: r for r in found["parents"]}
    assert states["toy"].info.status == "FINISHED"
    assert states["branching"].info.status == "FAILED"
    assert "a branch depends on input values" in states["branching"].data.tags["onward.reason"]
    assert found["versions"] == [("toy", 1)]


def test_each_model_has_a_page_that_is_also_in_mlflow(checkout: Path) -> None:
    for model, verdict in (("toy", "Released: "), ("branching", "Not released: export failed")):
        page = (checkout / "build" / model / "publish" / "report.html").read_bytes()
        assert verdict.encode() in page
        recorded = [path.read_bytes() for path in (checkout / "mlartifacts").rglob("report.html")]
        assert page in recorded
        assert run(f"python -m onward.cli report {model} -o page.html", checkout).returncode == 0
        assert (checkout / "page.html").read_bytes() == page
        (checkout / "page.html").unlink()
    assert b"uncommitted changes" in (checkout / "build" / "toy" / "publish" / "report.html").read_bytes()


def test_no_written_file_contains_the_path_of_the_checkout(checkout: Path) -> None:
    for path in (checkout / "build").rglob("*"):
        if path.is_file():
            assert str(checkout).encode() not in path.read_bytes(), path
    changed = run("git status --porcelain --untracked-files=all", checkout).stdout.splitlines()
    assert changed == [" M params.yaml", "?? dvc.lock", "?? models/toy.py"]


def test_a_second_run_computes_nothing_and_fails_again(checkout: Path) -> None:
    before = published(checkout)
    stage = checkout / "stages" / "export.py"
    stage.write_text(stage.read_text() + "\n# A comment is no change of the code.\n")
    code, ran, output = repro(checkout)
    assert (code != 0, ran) == (True, ALWAYS | {"verdict"})
    assert "failed: branching: export" in output
    after = published(checkout)
    assert (after["runs"], after["versions"]) == (before["runs"], before["versions"])


def test_without_the_failing_model_the_verdict_passes(checkout: Path) -> None:
    with edited(checkout) as models:
        del models["branching"]
    code, ran, output = repro(checkout)
    assert code == 0, output
    assert ran == ALWAYS | {"verdict"}


def test_dvc_shows_figures_plots_and_a_readable_graph(checkout: Path) -> None:
    shown = json.loads(run("dvc metrics show --json", checkout).stdout)[""]["data"]
    figures = shown["build/toy/metrics.json"]["data"]
    assert {"p50_ms", "speedup", "quality", "quality_drop", "size_mb"} <= figures.keys()
    (parent,) = [r for r in published(checkout)["parents"] if r.data.tags["onward.model"] == "toy"]
    assert figures == {name: rounded(parent.data.metrics[name]) for name in figures}
    done = run("dvc plots show --json", checkout)
    plots = json.loads(done.stdout[done.stdout.index("{") :])
    assert not plots.get("errors")
    assert {name for name in plots["data"] if "toy" in name} == {"build/toy/latency.json", "build/toy/variants.json"}
    graph = run("dvc dag publish@toy", checkout).stdout
    assert max(len(line.rstrip()) for line in graph.splitlines()) <= 90
    assert graph.count("@toy |") == 9


def test_an_experiment_is_recorded_in_the_same_store_and_registers_nothing(checkout: Path) -> None:
    edit(checkout, "toy", export={"opset": "default"})
    commit(checkout)
    cache = str(checkout.parent / "cache")
    done = run("dvc exp run -n first -S 'models.toy.export.opset=18'", checkout, XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stdout
    done = run("dvc exp run --temp -n second -S 'models.toy.benchmark.rounds=4'", checkout, XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stdout
    found = published(checkout)
    experiments = [run.data.tags.get("onward.dvc_experiment") for run in found["parents"]]
    assert {name for name in experiments if name} == {"first", "second"}
    places = {unquote(parent.info.artifact_uri).partition("/mlartifacts/")[0] for parent in found["parents"]}
    assert places == {f"file://{checkout}"}
    assert found["versions"] == [("toy", 1)]
    table = run("dvc exp show --only-changed --drop '.*build(/[^:]*)?$' --csv", checkout).stdout.splitlines()
    assert "models.toy.export.opset" in table[0]
    assert len(table[0].split(",")) <= 14
    code, ran, output = repro(checkout)  # the workspace contains the first experiment
    assert code == 0, output
    assert ran - {"verdict"} == ALWAYS | {"publish@toy"}
    assert sorted(published(checkout)["versions"]) == [("toy", 1), ("toy", 2)]


def test_a_changed_tolerance_reruns_no_export(checkout: Path) -> None:
    edit(checkout, "toy", tolerance={"rtol": 0.002})
    code, ran, output = repro(checkout)
    assert code == 0, output
    assert ran == ALWAYS | MEASURED | {"verify@toy", "optimize@toy", "quantize@toy", "verdict"}


def test_an_emptied_store_is_refilled_without_computing(checkout: Path) -> None:
    (checkout / "mlflow.db").unlink()
    shutil.rmtree(checkout / "mlartifacts")
    code, ran, output = repro(checkout)
    assert code == 0, output
    assert ran - {"verdict"} == ALWAYS | {"publish@toy"}
    assert published(checkout)["versions"] == [("toy", 1)]


def test_a_change_in_one_optimizer_reruns_only_optimize_and_later_stages(checkout: Path) -> None:
    technique = checkout / "stages" / "transforms" / "optimizers" / "onnxsim.py"
    technique.write_text(technique.read_text() + "\nCHANGED = True\n")
    code, ran, output = repro(checkout)
    assert code == 0, output
    assert "optimize@toy" in ran
    assert ran - ALWAYS - MEASURED <= {"optimize@toy", "quantize@toy", "verdict"}


def test_a_clone_on_another_cpu_pulls_everything_and_reruns_only_measurements(checkout: Path) -> None:
    run("dvc remote add -d storage ../storage", checkout)
    commit(checkout)
    done = run("dvc push", checkout)
    assert done.returncode == 0, done.stdout
    there = checkout.parent / "another host"
    run(f"git clone -q '{checkout}' '{there}'", checkout)
    done = run("dvc pull", there)
    assert done.returncode == 0, done.stdout
    host = there / "registry" / "host" / "hardware.py"
    text = host.read_text()
    assert "for name in INSTRUCTION_SETS" in text
    host.write_text(text.replace("for name in INSTRUCTION_SETS", 'for name in ("fpu",)'))
    code, ran, output = repro(there)
    assert code == 0, output
    assert ran - {"verdict"} == ALWAYS | MEASURED
    assert published(there)["versions"] == [("toy", 1)]


@pytest.mark.parametrize("stage", ["benchmark", "publish"])
def test_rerunning_a_killed_stage_gives_the_undisturbed_result(checkout: Path, stage: str) -> None:
    changes: dict[str, Any] = {
        "benchmark": {"benchmark": {"rounds": 400, "round_seconds": 0.05}},
        "publish": {"benchmark": {**BENCHMARK, "rounds": 4}},
    }
    edit(checkout, "toy", **changes[stage])
    environment = {**os.environ, "XDG_CACHE_HOME": str(checkout.parent / "cache")}
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    victim = None
    until = time.monotonic() + 180
    while victim is None and time.monotonic() < until and process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # the process has just ended
                if child.name().startswith("python") and stage in child.cmdline():
                    victim = child
        time.sleep(0.05)
    assert victim is not None, "the stage never ran"
    time.sleep(0.8)
    with contextlib.suppress(psutil.NoSuchProcess):  # child processes end with it
        for child in [*victim.children(recursive=True), victim]:
            child.send_signal(signal.SIGKILL)
    assert process.wait(120) != 0
    if stage == "benchmark":
        edit(checkout, "toy", benchmark=BENCHMARK)
    code, _, output = repro(checkout)
    assert code == 0, output
    reports = [json.loads(p.read_text()) for p in sorted((checkout / "build" / "toy").glob("*/report.json"))]
    assert [(r["stage"], r["status"]) for r in reports if r["status"] != "passed"] == []
    assert len(reports) == 9
    latest = [r for r in published(checkout)["parents"] if r.data.tags["onward.model"] == "toy"]
    assert all(r.info.status == "FINISHED" for r in latest)


def test_invalid_params_give_one_line_and_change_nothing(checkout: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (checkout / "build").rglob("*") if path.is_file()}
    edit(checkout, "toy", tolerance={"rtol": "small"})
    code, ran, output = repro(checkout)
    assert (code != 0, ran) == (True, {"params"})
    assert "params.yaml: models.toy.tolerance.rtol: " in output
    assert "Traceback" not in output
    assert {path: path.stat().st_mtime_ns for path in (checkout / "build").rglob("*") if path.is_file()} == before


def test_a_stage_run_by_hand_has_help_and_prints_its_verdict(checkout: Path) -> None:
    edit(checkout, "toy", tolerance={"rtol": 0.001})
    for stage in ("params", "verify"):
        done = run(f"onward stage {stage} --help", checkout)
        assert done.returncode == 0, done.stdout
        assert f"onward stage {stage}" in done.stdout
        assert len(done.stdout.splitlines()) > 5
    done = run("onward stage verify toy", checkout)
    *progress, verdict = done.stdout.splitlines()  # `run` joins stdout and stderr, where progress is shown
    assert (done.returncode, verdict) == (0, "verify toy: passed")
    assert all(line.startswith(("params: ", "verify toy: ")) for line in progress)
    done = run("onward stage verify tot", checkout)
    assert done.returncode == 2
    assert "there is no such model; did you mean 'toy'?" in done.stdout
