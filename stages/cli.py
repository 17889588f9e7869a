"""The commands of `onward` that are about the pipeline; onward/cli.py adds them to those of the registry.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Annotated

import typer

from onward.registry import checkout
from onward.registry.cli.output import Json, print_json
from onward.registry.errors import UsageError
from onward.stages.__main__ import STAGES


def mount(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command("stage", context_settings={"allow_extra_args": True, "allow_interspersed_args": False})(stage)


def stage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(STAGES)}.")],
    as_json: Json = False,
) -> None:
    """Run one stage of the pipeline now, without DVC. It reads the present params.yaml, and what earlier stages left.

    Arguments after NAME go to the stage: mostly a model's name. `onward stage NAME --help` describes them.

    Example: onward stage export cnn
    """
    if name not in STAGES:
        raise UsageError(f"there is no stage {name!r}; there are {', '.join(STAGES)}")
    arguments = list(context.args)
    root = checkout.root()
    environment = {**os.environ, checkout.PROJECT: str(root)}

    def run(*words: str) -> int:
        command = [sys.executable, "-m", "onward.stages", *words]
        return subprocess.run(command, cwd=root, env=environment, stdout=sys.stderr if as_json else None).returncode

    code = 0 if name == "params" or "--help" in arguments else run("params")
    code = code or run(name, *arguments)
    report = root / "build" / (arguments[0] if arguments else "") / name / "report.json"
    if as_json and not code and report.is_file():
        print_json(json.loads(report.read_text()))
    raise typer.Exit(code)
