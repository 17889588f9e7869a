"""Commands for whoever looks after the store: aliases set right, MLflow's UI, histories moved, what is old deleted.

registry/cli/main.py puts them beside the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from onward.registry.cli.output import Json, Model, print_json, print_table, say
from onward.registry.errors import OnwardError


def reconcile(as_json: Json = False) -> None:
    """Make aliases and marks in MLflow agree with the logs, where a command was interrupted or a hand interfered.

    Example: onward reconcile
    """
    from onward.registry.operations import promotion

    healed = [str(drift) for drift in promotion.reconcile()]
    if as_json:
        print_json({"healed": healed})
    else:
        say(*[f"put right: {drift}" for drift in healed] or ["Everything agrees with the logs."])


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on this machine.")] = 5000,
    as_json: Json = False,
) -> None:
    """Start MLflow's UI on the store in use, until Ctrl-C.

    Example: onward ui --port 5001
    """
    from onward.registry.store import relocate
    from onward.registry.store.connection import require_store, tracking_uri
    from onward.registry.store.reach import is_server
    from onward.registry.uri import without_credentials

    uri = tracking_uri()
    relocate.require_here(uri)
    served = is_server(uri)
    if not served:
        require_store()
    url = without_credentials(uri) if served else f"http://127.0.0.1:{port}"
    hint = 'The UI opens on its GenAI side: choose "Model training" at the top left to see runs and models.'
    if as_json:
        print_json({"url": url, "hint": hint})
    else:
        say(url, hint)
    if served:
        return
    # The store's URI may hold a password: handed over in the environment, it shows in no list of processes.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        code = server.wait()
    except KeyboardInterrupt:  # the server had it too: without a word from us it ends itself and its workers
        try:
            server.wait(15)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            server.terminate()
        return
    if code:
        raise OnwardError(f"MLflow's UI ended with exit code {code}; is port {port} free? (--port)")


def export_log(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, e.g. cnn.")],
    files: Annotated[
        Path | None, typer.Option("--files", help="A folder for the files of all that was ever deployed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the histories of models as JSON lines, one entry a line; with --json, as one document.

    Example: onward export-log cnn --files moved > cnn.jsonl
    """
    from onward.registry.operations import transfer

    lines = [line.model_dump() for line in transfer.export(models, files)]
    if as_json:
        print_json(lines)
        return
    for line in lines:
        print_json(line, indent=None)


def import_log(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `onward export-log` wrote.")],
    files: Annotated[Path | None, typer.Option("--files", help="The folder that was given to export-log.")] = None,
    as_json: Json = False,
) -> None:
    """Take over histories from another server. Every digest is checked; the same file again changes nothing.

    Example: onward import-log cnn.jsonl --files moved
    """
    from onward.registry.operations import transfer

    found = transfer.import_(file, files)
    if as_json:
        print_json([vars(log) for log in found])
        return
    for log in found:
        say(f"{log.environment} of {log.model}: {log.added} entries imported, {log.present} were there already")
    if not found:
        say(f"{file} holds no entries")


def prune(
    model: Model,
    older_than: Annotated[str, typer.Option("--older-than", help="Age in hours, days or weeks, e.g. 12h, 30d, 8w.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete old candidates, never one that is live or was within that time, nor the newest, nor one under an alias.

    Example: onward prune cnn --older-than 30d --dry-run
    """
    from onward.registry.operations import pruning

    found = pruning.prune(model, older_than, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "model": model,
                "dry_run": dry_run,
                "deleted": [candidate.version for candidate in found.deleted],
                "kept": [{"version": candidate.version, "reason": reason} for candidate, reason in found.kept],
            }
        )
        return
    done = "would be deleted" if dry_run else "deleted"
    judged = [(c.version, done, f"is from {c.created.isoformat(timespec='seconds')}") for c in found.deleted]
    judged += [(c.version, "kept", reason) for c, reason in found.kept]
    print_table(("version", "", "why"), [(str(version), what, why) for version, what, why in sorted(judged)])


environments = typer.Typer(no_args_is_help=True, help="The environments of params.yaml, in the store.")


@environments.command("create")
def create_environments(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, e.g. cnn.")],
    as_json: Json = False,
) -> None:
    """Make the environments of models, so that whoever runs this owns them: an administrator, before anybody promotes.

    Example: onward environments create cnn classifier
    """
    from onward.registry.operations import promotion

    made = promotion.create_environments(models)
    if as_json:
        print_json({"created": made})
    else:
        say(*[f"created {name}" for name in made] or ["All of them are there."])


@environments.command("grant")
def grant_environment(
    environment: Annotated[str, typer.Argument(metavar="NAME", help="An environment, e.g. staging.")],
    user: Annotated[str, typer.Option("--to", help="A user of the MLflow server.")],
    as_json: Json = False,
) -> None:
    """Let a user of the server deploy to an environment; an administrator runs this.

    EDIT on the environment's logs, on the experiment with its files, and on the candidates of its models.

    Example: onward environments grant staging --to bob
    """
    from onward.registry.operations import permissions

    granted = permissions.grant(environment, user)
    if as_json:
        print_json({"environment": environment, "user": user, "granted": [vars(found) for found in granted]})
        return
    for found in granted:
        say(f"{user} may edit {found.kind.replace('_', ' ')} {found.name}{'' if found.changed else ', as before'}")


stores = typer.Typer(no_args_is_help=True, help="The embedded store: mlflow.db and mlartifacts/.")


@stores.command("move")
def move_store(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be rewritten, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make the embedded store use the files beside it, after its folder was moved or copied.

    MLflow keeps absolute paths in mlflow.db. Nothing else is written, so that the original of a copy stays as it is.

    Example: onward store move --dry-run
    """
    from onward.registry.store import relocate

    found = relocate.move(dry_run=dry_run)
    if as_json:
        print_json({**vars(found), "here": str(found.here), "recorded": list(found.recorded)})
        return
    if not found.recorded:
        say(f"The store in {found.here} uses the files beside it: nothing to do.")
        return
    done = "would be rewritten" if dry_run else "rewritten"
    say(f"from {', '.join(found.recorded)}", f"to   {found.here}")
    for column, number in found.rewritten.items():
        say(f"{number:>6} of {column} {done}")
