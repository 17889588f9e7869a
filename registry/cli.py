"""`onward`: what is live, and how that is changed. This file parses and prints; registry/operations.py does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry.errors import OnwardError, UsageError

if TYPE_CHECKING:
    from registry.deployments import Entry
    from registry.operations import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Move model versions between environments, and see what is live.\n\n"
    "Exit codes: 0 done; 1 a gate or check said no; 2 wrong usage or configuration; 3 someone else got there first; "
    "4 the server or store could not be reached. The store is MLFLOW_TRACKING_URI, else mlflow.db beside dvc.yaml.",
)

Model = Annotated[str, typer.Argument(help="a registered model, e.g. cnn")]
Reason = Annotated[str, typer.Option("--reason", help="why; history shows it for ever")]
Json = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would happen, and change nothing")]


@app.command()
def status(as_json: Json = False) -> None:
    """Every model at a glance: the newest version, and what is live where.

    Example: onward status
    """
    from registry import operations
    from registry.policy import environments
    from registry.store import Store

    states = operations.status(Store())
    if as_json:
        return _json(
            [
                {
                    "model": s.model,
                    "newest": s.newest,
                    "live": {k: e.model_dump() if e else None for k, e in s.live.items()},
                    "drift": s.drift,
                }
                for s in states
            ]
        )
    if not states:
        print("no models are registered here yet; `dvc repro` registers those that are fit")
        return None
    rows = [
        [s.model, s.newest or "-", *(_short(s.live[name]) for name in environments()), ", ".join(s.drift) or "-"]
        for s in states
    ]
    _table(["model", "newest", *environments(), "drifted aliases"], rows)
    if any(s.drift for s in states):
        print("Some aliases do not say what the logs say; `onward reconcile` sets them right.")
    return None


@app.command()
def history(
    model: Model,
    env: Annotated[str | None, typer.Option("--env", help="one environment; all if not given")] = None,
    as_json: Json = False,
) -> None:
    """Every promotion and rollback: when, who, what, why, and what the gates said.

    Example: onward history cnn --env production
    """
    from registry import operations
    from registry.store import Store

    lines = operations.history(Store(), model, env)
    if as_json:
        return _json(
            {
                name: [{**e.model_dump(), "counted": e in line.counted} for e in line.entries]
                for name, line in lines.items()
            }
        )
    for name, line in lines.items():
        print(f"{model} in {name}:" + ("" if line.counted or line.lost else " nothing yet"))
        for entry in line.entries:
            mark = "lost" if entry in line.lost else ("live" if entry == line.live else "")
            print(f"  {entry.number:>3}  {entry.at}  {mark:<4}  {entry}")
            print(f"       version {entry.candidate_version}, sha256 {entry.sha256[:12]}; gates: {entry.gates or '-'}")
    return None


@app.command()
def promote(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="the environment, e.g. staging")],
    reason: Reason,
    version: Annotated[str | None, typer.Argument(help="a version; the newest fit one if not given")] = None,
    force: Annotated[bool, typer.Option("--force", help="past its gates; history shows it for ever")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Deploy a version to an environment, if its gates hold.

    Example: onward promote cnn 3 --to staging --reason "better on small digits"
    """
    from registry import operations
    from registry.store import Store

    _plan(operations.promote(Store(), model, to, reason, version, force, dry_run), dry_run, as_json)


@app.command()
def rollback(
    model: Model,
    env: Annotated[str, typer.Option("--env", help="the environment, e.g. production")],
    reason: Reason,
    to: Annotated[int | None, typer.Option("--to", help="the entry to go back to; the one before if not given")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Deploy again what was live before. Works even if the candidate version is gone, or what is live is broken.

    Example: onward rollback cnn --env production --reason "wrong on rotated pictures"
    """
    from registry import operations
    from registry.store import Store

    _plan(operations.rollback(Store(), model, env, reason, to, dry_run), dry_run, as_json)


@app.command()
def reconcile(as_json: Json = False) -> None:
    """Set the aliases in MLflow to what the logs say, where a process was killed in between.

    Example: onward reconcile
    """
    from registry import operations
    from registry.store import Store

    changed = operations.reconcile(Store())
    if as_json:
        return _json(changed)
    print("\n".join(changed) or "every alias says what its log says")
    return None


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="MODEL@ENVIRONMENT, e.g. cnn@production")], as_json: Json = False
) -> None:
    """Check what is live, on this host: every byte, and the recorded inputs against the recorded outputs.

    Example: onward check cnn@production
    """
    from registry import operations
    from registry.store import Store

    model, _, env = target.partition("@")
    if not env:
        raise UsageError(f"{target}: wants MODEL@ENVIRONMENT, e.g. {model}@production")
    entry = operations.check(Store(), model, env)
    if as_json:
        return _json({"target": target, "ok": True, "sha256": entry.sha256, "version": entry.candidate_version})
    print(f"{target}: version {entry.candidate_version}, sha256 {entry.sha256[:12]}: bytes and answers as recorded")
    return None


@app.command()
def predict(
    target: Annotated[str, typer.Argument(help="MODEL@ENVIRONMENT, MODEL/VERSION or an .onnx file")],
    inputs: Annotated[Path, typer.Option("--input", help=".npz with an array for each input, by name")],
    output: Annotated[Path | None, typer.Option("--output", help=".npz to write; a summary if not given")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="samples fed at once")] = 32,
    as_json: Json = False,
) -> None:
    """Run a model over the samples of an .npz file.

    Example: onward predict cnn@production --input digits.npz --output answers.npz
    """
    import zipfile

    import numpy as np

    from registry.session import InferenceSession

    try:
        with np.load(inputs, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{inputs}: cannot be read as .npz: {str(error).splitlines()[0]}") from None
    session = InferenceSession(target)
    found: Any = session.predict_batches(arrays, batch_size)
    results = found if isinstance(found, dict) else {session.metadata["outputs"][0]["name"]: found}
    if output is not None:
        np.savez(output, **results)
    if as_json:
        return _json({name: value.tolist() for name, value in results.items()})
    for name, value in results.items():
        print(f"{name}: {value.dtype}{list(value.shape)}" + (f" -> {output}" if output else f"\n{value[:5]}"))
    return None


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(help="an .onnx file, MODEL@ENVIRONMENT or MODEL/VERSION")],
    as_json: Json = False,
) -> None:
    """What an ONNX model says of itself: opsets, inputs and outputs, operators, size, metadata.

    Example: onward inspect build/cnn/export/model.onnx
    """
    from registry import onnx_file
    from registry.evidence import sha256_file
    from registry.session import resolve

    path, _ = resolve(target)
    onnx_file.check(path, target)
    graph = onnx_file.describe(path)
    if as_json:
        return _json({**graph.model_dump(), "sha256": sha256_file(path)})
    print(f"{target}: {graph.producer or 'unknown producer'}, IR {graph.ir_version}")
    print("opsets      " + ", ".join(f"{domain} {number}" for domain, number in graph.opsets.items()))
    print(f"parameters  {graph.parameters:,}    size  {graph.size_bytes / 1e6:.2f} MB    nodes  {graph.nodes}")
    print(f"sha256      {sha256_file(path)}")
    for kind, specs in (("input", graph.inputs), ("output", graph.outputs)):
        for spec in specs:
            print(f"{kind:<12}{spec.name} {spec.dtype}{spec.shape}".replace("'", ""))
    print("operators   " + ", ".join(f"{name} {count}" for name, count in graph.operators.items()))
    for key, value in graph.metadata.items():
        print(f"{key}: {value}")
    return None


@app.command()
def ui(port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000) -> None:
    """Open MLflow's UI on the store in use: runs side by side, versions, deployment logs.

    Example: onward ui --port 5001
    """
    import subprocess

    from registry.connection import tracking_uri, without_credentials

    uri = tracking_uri()
    hint = 'Switch from "GenAI" to "Model training" at the top left to see runs side by side.'
    if uri.startswith(("http://", "https://")):
        print(f"The store is a server with a UI of its own: {without_credentials(uri)}\n{hint}")
        return
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)\n{hint}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    try:
        raise typer.Exit(subprocess.run(command).returncode)
    except KeyboardInterrupt:
        return


def _plan(plan: Plan, dry_run: bool, as_json: bool) -> None:
    unmet = [name for name, why in plan.verdicts.items() if why]
    if as_json:
        _json({**plan.entry.model_dump(), "already_live": plan.already_live, "unmet": unmet, "dry_run": dry_run})
    elif plan.already_live:
        entry = plan.entry
        print(
            f"version {entry.candidate_version} of {entry.model} is live in {entry.environment} already: nothing to do"
        )
    else:
        print(f"{'would append: ' if dry_run else f'entry {plan.entry.number}: '}{plan.entry}")
        for name, why in plan.verdicts.items():
            print(f"  {name}: {why or 'ok'}")


def _short(entry: Entry | None) -> str:
    return f"{entry.candidate_version} (entry {entry.number}, {entry.at[:10]})" if entry else "-"


def _table(header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in header:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def main() -> None:
    """The console entry point: runs a command, and ends with the exit code that its error stands for."""
    try:
        app()
    except OnwardError as error:
        for line in str(error).splitlines():
            print(f"onward: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
