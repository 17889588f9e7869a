"""The commands of `make demo`: the pipeline, a promotion to production, a retrained model, a rollback.

Each step checks what is already done. So a second run is quick and repeats nothing, and an interrupted run continues
where it stopped.
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
    """Run the steps; exit with the code of the first command that fails."""
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("ONWARD_ACTOR", "demo")

    say("Run the pipeline: every model of params.yaml, from training to a registered version")
    run("dvc repro")

    done = len(log("production"))
    if done < 1:
        say(f"Promote the first version of {MODEL} to staging, then to production, if it meets their gates")
        promote(f"first release of {MODEL}")
    if done < 2:
        say(f"Train {MODEL} again with another seed, stage by stage, in a copy of this checkout")
        retrain()
        promote(f"trained again with seed {RETRAINED_SEED}")
    if done < 3:
        say("The new version turns out to be a mistake: roll back with one command")
        run(f'onward rollback {MODEL} --env production --reason "users report wrong digits"')

    say("The result")
    run("onward stage verdict")
    run(f"onward history {MODEL}")
    run("onward status")
    print(
        "\nTo see runs, charts and logs in MLflow's UI:\n\n    . .venv/bin/activate && onward ui\n\n"
        'Then open http://127.0.0.1:5000 and switch from "GenAI" to "Model training" at the top left.'
    )


def promote(reason: str) -> None:
    """Promote the newest version to staging, and then to production."""
    for environment in ("staging", "production"):
        run(f"onward promote {MODEL} --to {environment} --reason {shlex.quote(reason)}")


def retrain() -> None:
    """Run the stages in a copy of the checkout with another seed in params.yaml, on the same store.

    The stages `host` and `data` do not depend on the seed, so their results are copied, as DVC would restore them.
    """
    copy = ROOT / "build" / ".retrained"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "models", copy / "models")
    for folder in ("host", f"{MODEL}/data"):
        shutil.copytree(ROOT / "build" / folder, copy / "build" / folder)
    if (ROOT / ".runtimes").exists():  # build/host names the runtimes that are installed here
        (copy / ".runtimes").symlink_to(ROOT / ".runtimes")
    shutil.copy(ROOT / "dvc.yaml", copy)
    params = (ROOT / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("seed: 17", f"seed: {RETRAINED_SEED}"))
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "ONWARD_PROJECT": str(copy)}
    for stage in STAGES:
        run(f"onward stage {stage} {MODEL}", cwd=copy, env=environment)
    shutil.rmtree(copy)


def log(environment: str) -> list[Any]:
    """The entries of the model's log in an environment."""
    done = subprocess.run(
        ["onward", "history", MODEL, "--env", environment, "--json"], capture_output=True, text=True, check=True
    )
    entries: list[Any] = json.loads(done.stdout)[environment]
    return entries


def say(sentence: str) -> None:
    """Print the heading of a step."""
    print(f"\n\033[1m== {sentence}\033[0m" if sys.stdout.isatty() else f"\n== {sentence}", flush=True)


def run(command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Print a command and run it; if it fails, exit with its code."""
    print(f"$ {command}", flush=True)
    code = subprocess.run(shlex.split(command), cwd=cwd, env=env).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
