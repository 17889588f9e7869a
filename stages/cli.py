"""The commands of `onward` that are about the pipeline; onward/cli.py adds them to those of the registry.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from onward.registry import checkout
from onward.registry.cli.output import Json, print_json, say
from onward.registry.errors import UsageError
from onward.stages.__main__ import STAGES
from onward.stages.fleet import cli as fleet

# How long a stage may take to end after Ctrl-C, before it gets the signal from this process.
INTERRUPT_SECONDS = 2.0


class CI(Enum):
    """The CI systems that `init` writes pipelines for."""

    GITHUB = "github"
    GITLAB = "gitlab"


def mount(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command("init")(init)
    app.command("upgrade")(upgrade)
    app.command("stage", context_settings={"allow_extra_args": True, "allow_interspersed_args": False})(stage)
    app.command("add")(add)
    app.command("schema")(schema)
    app.add_typer(fleet.app, name="fleet", help="Run the pipelines of many models on the machines of a Ray cluster.")


def stage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(STAGES)}.")],
    as_json: Json = False,
) -> None:
    """Run one stage of the pipeline now, without DVC. It reads the present params.yaml, and what earlier stages left.

    Arguments after NAME go to the stage: mostly a model's name. `onward stage NAME --help` describes them. --json
    prints the stage's report; that of `verdict` has all models.

    Example: onward stage export cnn
    """
    if name not in STAGES:
        raise UsageError(f"there is no stage {name!r}; there are {', '.join(STAGES)}")
    arguments = [argument for argument in context.args if argument != "--json"]
    as_json |= len(arguments) < len(context.args)
    root = checkout.root()
    environment = {**os.environ, checkout.PROJECT: str(root)}

    def run(*words: str, prints_json: bool = False) -> int:
        command = [sys.executable, "-m", "onward.stages", *words]
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=sys.stderr if as_json and not prints_json else None
        )
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C reached the stage, too, which says so in one line
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(INTERRUPT_SECONDS)
            process.send_signal(signal.SIGINT)
            return process.wait()

    code = 0 if name == "params" or "--help" in arguments else run("params")
    if name == "verdict" and as_json:
        raise typer.Exit(code or run(name, *arguments, "--json", prints_json=True))
    code = code or run(name, *arguments)
    report = root / "build" / (arguments[0] if arguments else "") / name / "report.json"
    if as_json and not code and report.is_file():
        print_json(json.loads(report.read_text()))
    raise typer.Exit(code)


def init(
    folder: Annotated[
        str, typer.Argument(metavar="[FOLDER]", help="Where the pipeline goes in the repository.")
    ] = "onward",
    ci: Annotated[CI | None, typer.Option("--ci", help="Also write a CI pipeline for this system.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be written.")] = False,
    as_json: Json = False,
) -> None:
    """Add Onward to this repository: a DVC pipeline, its params.yaml and an example model, all in one folder.

    Works with or without git and DVC, beside pipelines and packages of your own. Asks nothing and overwrites nothing.

    Example: onward init --ci github
    """
    from onward.stages.scaffold.init import init as initialise

    done = initialise(folder, ci.value if ci else None, dry_run)
    if as_json:
        print_json({"folder": done.folder, "written": done.written, "dvc_init": done.dvc, "next": done.notes})
        return
    for path in done.written:
        say(f"{'would write' if dry_run else 'wrote'} {path}")
    if done.dvc:
        say(f"{'would run' if dry_run else 'ran'} dvc init")
    for note in () if dry_run else done.notes:
        say(note)


def upgrade(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Bring the files that `onward init` wrote to the installed version of Onward, and params.yaml to its schema.

    Files that you did not edit are written again. Edited ones are merged; where your edits and the new version clash,
    your file stays, the merge with its conflict markers is written beside it, and the exit code is 1.

    Example: onward upgrade --dry-run
    """
    from onward.stages.scaffold.upgrade import MERGED
    from onward.stages.scaffold.upgrade import upgrade as bring_up_to_date

    changes = bring_up_to_date(dry_run)
    if as_json:
        print_json([{"path": change.path, "action": change.action, "diff": change.diff} for change in changes])
    else:
        for change in changes:
            if change.diff:
                say(*change.diff.split("\n"))
        for change in changes:
            beside = f": see {change.path}{MERGED}" if change.action == "conflict" else ""
            say(f"{change.action}: {change.path}{beside}")
    if any(change.action == "conflict" for change in changes):
        raise typer.Exit(1)


def add(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="The new model's name in params.yaml.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", metavar="FILE", help="Its ONNX file.")] = None,
    build: Annotated[
        str | None,
        typer.Option("--build", metavar="MODULE:FUNCTION", help="In place of --onnx: returns its PyTorch module."),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            "--example",
            metavar="MODULE:NAME",
            help="With --build: one example input (tensor, array, tuple, dict by name), or a function that returns it.",
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option("--samples", metavar="MODULE:FUNCTION", help="Returns its samples, as docs/params.md describes."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the entry and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Inspect a model and add its entry to params.yaml. What could not be found out is marked TODO there.

    Example: onward add ranker --onnx models/ranker.onnx --samples models.ranker:samples
    """
    from dataclasses import asdict

    from onward.stages.scaffold.add import add as add_entry

    added = add_entry(name, onnx, build, example, samples, dry_run)
    if as_json:
        print_json({"model": name, "entry": added.entry.values, "todos": [asdict(todo) for todo in added.todos]})
    elif dry_run:
        say(*(f"  {line}" for line in added.entry.lines))
    else:
        say(f"params.yaml, line {added.line}: added models.{name}")
        say(*(f"  TODO{'' if todo.required else ' (optional)'} {todo.key}: {todo.what}" for todo in added.todos))
        todo = "fill in the lines marked TODO, then " if any(todo.required for todo in added.todos) else ""
        say(f"Next: {todo}check with `onward stage params`, then run `dvc repro publish@{name}`")


def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of params.yaml, with which editors complete and check its keys.

    The output is JSON with and without --json.

    Example: onward schema > params.schema.json
    """
    from onward.stages.config.json_schema import schema as make

    del as_json
    print_json(make())
