"""A project as a user of Onward has it: this checkout's dvc.yaml, models, and their params.yaml.

`dvc repro` runs its stages; a stage is timed when it really runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from onward.registry.errors import OnwardError
from onward.registry.files import write_atomically
from onward.registry.host.environments import FOLDER, install

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BEFORE = ("train", "data", "export", "verify")
SEARCH = ("optimize", "quantize", "benchmark", "select")
SECONDS = "seconds.json"


class StageFailed(OnwardError):
    """A stage of the project failed. The message begins with its last own line."""


def lay(project: Path, template: Path) -> None:
    """Write or update the project. Its build folder stays; DVC decides which results are still valid.

    Args:
        project: The project's folder; its runtimes are those of this checkout.
        template: A folder with params.yaml and models/, which join the models of this checkout.
    """
    (project / "weights").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(project / "models", ignore_errors=True)
    shutil.copytree(ROOT / "models", project / "models", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", project)
    shutil.copy(template / "params.yaml", project)
    for source in (template / "models").glob("[!_]*.py"):
        shutil.copy(source, project / "models")
    (ROOT / FOLDER).mkdir(exist_ok=True)
    if not (project / FOLDER).exists():
        (project / FOLDER).symlink_to(ROOT / FOLDER)
    if not (project / ".dvc").is_dir():
        _run(project, ["dvc", "init", "--no-scm", "--quiet"])


def install_runtimes(project: Path) -> None:
    """Install the runtimes and tools for a host without a GPU.

    Raises:
        OnwardError: one cannot be installed.
    """
    for name in ("openvino", "openvino-native", "nncf"):
        install(name, project)


def hold_to(project: Path, architecture: str, min_cosine: float) -> None:
    """Set an architecture's `budget.min_cosine` in the project's params.yaml."""
    params = _params(project)
    params["models"][architecture].setdefault("budget", {})["min_cosine"] = min_cosine
    _write(project, params)


def bring_weights(hub: Path, target: Path) -> None:
    """Write all-MiniLM-L6-v2 as minilm.safetensors and vocab.txt, without weights that the encoder does not use."""
    from safetensors.numpy import load_file, save_file

    if not (target / "minilm.safetensors").is_file():
        state = load_file(hub / "model.safetensors")
        unused = ("pooler.", "embeddings.position_ids")
        state = {name.removeprefix("bert."): value for name, value in state.items()}
        save_file({n: v for n, v in state.items() if not n.startswith(unused)}, target / "minilm.safetensors")
    shutil.copy(hub / "vocab.txt", target)


def repro(project: Path, architecture: str, stages: tuple[str, ...], force: bool = False) -> dict[str, float]:
    """Run the stages in order, if they are out of date or with `force`; return the seconds of each one's last run.

    Raises:
        StageFailed: a stage failed.
    """
    record = project / "build" / architecture / SECONDS
    known: dict[str, float] = {}
    with contextlib.suppress(FileNotFoundError):
        known = json.loads(record.read_text())
    _dvc(project, "params", "host")
    for stage in stages:
        begun = time.perf_counter()
        print(f"onward: {stage} {architecture}", file=sys.stderr, flush=True)
        output = _dvc(project, *(["--force"] if force else []), f"{stage}@{architecture}")
        if f"Running stage '{stage}@{architecture}'" in output:
            known[stage] = round(time.perf_counter() - begun, 1)
            write_atomically(record, json.dumps(known, indent=2).encode())
    return {stage: known.get(stage, 0.0) for stage in stages}


def _params(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project / "params.yaml").read_text())
    return found


def _write(project: Path, params: dict[str, Any]) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def _dvc(project: Path, *arguments: str) -> str:
    return _run(project, ["dvc", "repro", "--single-item", *arguments])


def _run(project: Path, command: list[str]) -> str:
    # The project's models before this checkout's, and `onward` from this checkout.
    path = os.pathsep.join((str(project), str(ROOT)))
    surroundings = {**os.environ, "PYTHONPATH": path, "ONWARD_PROJECT": str(project), "DVC_NO_ANALYTICS": "1"}
    surroundings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=project, env=surroundings, capture_output=True, text=True)
    if done.returncode:
        words = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        own = [line for line in words if not line.startswith(("Running stage", "> ", "ERROR: failed to reproduce"))]
        after = f"in {project}: {' '.join(command)} failed with exit code {done.returncode}"
        raise StageFailed("\n".join([*own[-1:], *words[-8:], after]))
    return done.stdout + done.stderr
