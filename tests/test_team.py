"""A team installs the wheel into its own environment and uses Onward in its own repository, as the README says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_docs import blocks

Shell = Callable[..., str]

NETS = """
import numpy as np
import torch

class Ranker(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))

    def forward(self, features):
        return self.layers(features)

def write(path, seed):
    torch.onnx.export(
        Ranker(seed).eval(), (torch.zeros(2, 8),), path, input_names=["features"], output_names=["scores"],
        dynamic_shapes={"features": {0: "batch"}}, external_data=False,
    )

def samples(split):
    rng = np.random.default_rng({"calibration": 1, "evaluation": 2}[split])
    return {"features": rng.standard_normal((64, 8)).astype(np.float32)}
"""
THEIRS = {
    "params.yaml": "learning_rate: 0.1\n",
    "dvc.yaml": "stages:\n  prepare:\n    cmd: echo hi > hi.txt\n    outs: [hi.txt]\n",
    "models/__init__.py": "raise ImportError('not the models that you are looking for')\n",
    "stages/__init__.py": "raise ImportError('not the stages that you are looking for')\n",
    "registry/__init__.py": "raise ImportError('not the registry that you are looking for')\n",
    "src/ranker_data/__init__.py": NETS,
}
QUICK = {
    "benchmark": {"rounds": 3, "round_seconds": 0.01, "race_seconds": 2, "warmup_runs": 2},
    "optimize": {"candidates": ["onnxsim"]},
    "quantize": {"candidates": ["dynamic"]},
}


def _visible(folder: Path) -> set[str]:
    """Names in a folder, without the hidden caches that other tests' linters write at the same time."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of this checkout; the dependencies come from the environment of the tests."""
    place = tmp_path_factory.mktemp("environment")
    wheel = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place / "dist"), str(ROOT)]
    before = _visible(ROOT)
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *wheel], check=True)
    assert _visible(ROOT) == before, "building writes into the repository"
    home = place / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (found,) = (place / "dist").glob("onward-*.whl")
    install = ["--python", str(home / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index", str(found)]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *install], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")  # .pth files there are not read
    (home / "bin" / "dvc").write_text(f'#!/bin/sh\nexec {shlex.quote(str(home / "bin" / "python"))} -m dvc "$@"\n')
    (home / "bin" / "dvc").chmod(0o755)
    return home


@pytest.fixture(scope="module")
def repository(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with a pipeline, packages with names that Onward also uses, and a package in src/."""
    top = tmp_path_factory.mktemp("team") / "their work"
    for name, text in THEIRS.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / "exported").mkdir()
    subprocess.run(["git", "init", "-q", str(top)], check=True)
    return top


@pytest.fixture(scope="module")
def shell(environment: Path, repository: Path) -> Shell:
    """Run a command in a folder of the team repository, and return its output."""
    own = {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "ONWARD_ACTOR": "ann"}
    own |= {"XDG_CACHE_HOME": str(environment / "cache"), "GIT_CONFIG_GLOBAL": os.devnull}
    own.pop("PYTHONPATH", None)

    def run(command: str, folder: str = "", code: int = 0) -> str:
        done = subprocess.run(
            command, shell=True, cwd=repository / folder, env=own, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def export(shell: Shell, seed: int) -> None:
    shell(f"python -c \"import ranker_data; ranker_data.write('../exported/ranker.onnx', {seed})\"", "src")


def test_the_commands_of_the_readme_work_in_a_separate_repository(shell: Shell, repository: Path) -> None:
    (block,) = blocks("README.md", "sh")
    install, init, add, repro, promote = block.splitlines()
    assert install == 'pip install "onward[cpu,pipeline]"'
    export(shell, 0)
    shell(init)
    shell(add)
    params = repository / "onward" / "params.yaml"
    content = yaml.safe_load(params.read_text())
    del content["models"]["example"]
    content["models"]["ranker"] |= QUICK
    params.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "ranker" in shell(repro)
    shell(promote)
    for name, text in THEIRS.items():
        assert (repository / name).read_text() == text


def test_commands_and_rollback_work_from_every_folder(shell: Shell, repository: Path) -> None:
    export(shell, 1)
    shell("dvc repro", "onward")
    shell('onward promote ranker --to staging --reason "other weights"', "src/ranker_data")
    (status,) = json.loads(shell("onward status --json", "exported"))
    assert status["environments"]["staging"]["live"]["candidate_version"] == 2
    shell('onward rollback ranker --env staging --reason "worse"', "models")
    shell("onward check ranker@staging", "stages")
    code = (
        "import numpy, onward; from onward import InferenceSession, check, promote, rollback, status; "
        "session = InferenceSession('ranker@staging'); "
        "print(session.metadata.version, session.predict(numpy.zeros((5, 8), numpy.float32)).shape, onward.__version__)"
    )
    version, *rest = shell(f'python -c "{code}"', "registry").split(maxsplit=1)
    assert version == "1"
    assert rest[0].startswith("(5, 3) ")


def test_a_single_stage_runs_by_name(shell: Shell) -> None:
    assert shell("onward stage export ranker", "src") == "export ranker: passed\n"
    assert "there is no such model" in shell("onward stage export rnker 2>&1", code=2)


def test_unchanged_stages_are_up_to_date_and_their_code_is_tracked(shell: Shell, repository: Path) -> None:
    assert "train@ranker" not in shell("dvc status onward/dvc.yaml")
    settings = json.loads((repository / "onward/build/params/ranker/data.json").read_text())
    assert "../src/ranker_data/__init__.py" in settings["sources"]
    assert "onward.stages.data" in settings["code"]


def test_only_onward_is_installed(environment: Path) -> None:
    (packages,) = environment.glob("lib/python*/site-packages")
    names = {path.name.split("-")[0] for path in packages.iterdir()} - {"__pycache__", "shared.pth"}
    assert names == {"onward"}
    assert (packages / "onward" / "py.typed").is_file()
    assert (packages / "onward" / "registry" / "host" / "pins" / "openvino.txt").is_file()


def test_importing_onward_imports_nothing_heavy(environment: Path, tmp_path: Path) -> None:
    heavy = ("torch", "mlflow", "onnx", "onnxruntime", "numpy", "pydantic")
    code = f"import sys, onward; onward.__version__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([environment / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
