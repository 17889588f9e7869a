"""What `make demo` does, command by command: the pipeline, a promotion to production, a retrained model, a rollback.

Each step looks first at what is done already, so that a second run is quick and repeats nothing, and one that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = "classifier"
RETRAINED_SEED = 18
STAGES = ("train", "export", "verify", "optimize", "quantize", "benchmark", "select", "publish")


def main() -> None:
    """Run the steps; the exit code is that of the first command that fails."""
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("ONWARD_ACTOR", "demo")

    say("The pipeline: every model of params.yaml, from training to a registered version")
    run("dvc repro")

    done = len(log("production"))
    if done < 1:
        say(f"The first version of {MODEL} goes to staging, then to production, if its gates hold")
        promote(f"first release of {MODEL}")
    if done < 2:
        say(f"{MODEL} is trained again with another seed, in a copy of this checkout, stage by stage")
        retrain()
        promote(f"trained again with seed {RETRAINED_SEED}")
    if done < 3:
        say("The new version turns out to be a mistake: one command takes it back")
        run(f'onward rollback {MODEL} --env production --reason "users report wrong digits"')

    say("What happened")
    run("python -m onward.stages verdict")
    run(f"onward history {MODEL}")
    run("onward status")
    print(
        "\nRuns, charts and logs side by side, in MLflow's UI:\n\n    . .venv/bin/activate && onward ui\n\n"
        'then http://127.0.0.1:5000; switch from "GenAI" to "Model training" at the top left.'
    )


def promote(reason: str) -> None:
    """To staging, then from there to production."""
    for environment in ("staging", "production"):
        run(f"onward promote {MODEL} --to {environment} --reason {shlex.quote(reason)}")


def retrain() -> None:
    """Run the stages by hand in a copy of the checkout whose params.yaml has another seed, against the same store.

    The machine and the data are the same for any seed: those stages' folders are copied, as DVC would leave them.
    """
    copy = ROOT / "build" / ".retrained"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "models", copy / "models")
    for folder in ("host", f"{MODEL}/data"):
        shutil.copytree(ROOT / "build" / folder, copy / "build" / folder)
    shutil.copy(ROOT / "dvc.yaml", copy)
    params = (ROOT / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("seed: 17", f"seed: {RETRAINED_SEED}"))
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "ONWARD_PROJECT": str(copy)}
    for stage in ("params", *(f"{stage} {MODEL}" for stage in STAGES)):
        run(f"python -m onward.stages {stage}", cwd=copy, env=environment)
    shutil.rmtree(copy)


def log(environment: str) -> list[Any]:
    """The entries of the demo model's log."""
    done = subprocess.run(
        ["onward", "history", MODEL, "--env", environment, "--json"], capture_output=True, text=True, check=True
    )
    entries: list[Any] = json.loads(done.stdout)[environment]
    return entries


def say(sentence: str) -> None:
    print(f"\n\033[1m== {sentence}\033[0m" if sys.stdout.isatty() else f"\n== {sentence}", flush=True)


def run(command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Show a command and run it; end as it ended if it failed."""
    print(f"$ {command}", flush=True)
    code = subprocess.run(shlex.split(command), cwd=cwd, env=env).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
