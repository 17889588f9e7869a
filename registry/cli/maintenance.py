"""Commands that maintain the store: correct aliases, open MLflow's UI, move logs, delete old versions.

registry/cli/main.py adds them to the `onward` command.
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

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="The names of models, such as cnn.")]


def reconcile(as_json: Json = False) -> None:
    """Correct aliases that disagree with the logs.

    Aliases, marks and stages in MLflow disagree with the deployment logs if a command was interrupted, or after manual
    changes in MLflow. `onward status` shows wrong aliases and missing marks.

    Example: onward reconcile
    """
    from onward.registry.operations import promotion

    healed = [str(drift) for drift in promotion.reconcile()]
    if as_json:
        print_json({"healed": healed})
    else:
        say(*[f"corrected: {drift}" for drift in healed] or ["Everything agrees with the logs."])


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port on this machine.")] = 5000,
    as_json: Json = False,
) -> None:
    """Start MLflow's web UI for the store in use. Stop it with Ctrl-C.

    If the store is a server, the command only prints its address.

    Example: onward ui --port 5001
    """
    from onward.registry.store import relocate
    from onward.registry.store.connection import require_databases, require_store, tracking_uri
    from onward.registry.store.reach import is_server
    from onward.registry.uri import without_credentials

    uri = tracking_uri()
    relocate.require_here(uri)
    served = is_server(uri)
    if not served:
        require_databases(uri)
        require_store()
    url = without_credentials(uri) if served else f"http://127.0.0.1:{port}"
    hint = 'The UI starts with its GenAI pages: choose "Model training" at the top left to see runs and models.'
    if as_json:
        print_json({"url": url, "hint": hint})
    else:
        say(url, hint)
    if served:
        return
    # The store's URI may contain a password. As an environment variable, it does not appear in lists of processes.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # MLflow's job workers are for GenAI
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        code = server.wait()
    except KeyboardInterrupt:  # Ctrl-C reached the server too, which now stops itself and its workers
        try:
            server.wait(15)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            server.terminate()
        return
    if code:
        raise OnwardError(f"MLflow's UI ended with exit code {code}; is port {port} free? (--port)")


def export_log(
    models: Models,
    files: Annotated[
        Path | None, typer.Option("--files", help="A folder for the files of all deployed versions. Default: no files.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export deployment logs, to move them to another store.

    The logs are printed on stdout. Each line is one entry in JSON. With --json, the output is one JSON array. `onward
    import-log` reads the lines.

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
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `onward export-log` wrote.")],
    files: Annotated[Path | None, typer.Option("--files", help="The folder of `export-log --files`.")] = None,
    as_json: Json = False,
) -> None:
    """Import deployment logs from another store.

    Entries keep their numbers, and every file is checked against its digest. If the import is interrupted, run it again
    to complete it. A second import of the same file changes nothing.

    Example: onward import-log cnn.jsonl --files moved
    """
    from onward.registry.operations import transfer

    found = transfer.import_(file, files)
    if as_json:
        print_json([vars(log) for log in found])
        return
    for log in found:
        say(f"{log.environment} of {log.model}: {log.added} entries imported, {log.present} existed already")
    if not found:
        say(f"{file} contains no entries")


def prune(
    model: Model,
    older_than: Annotated[
        str, typer.Option("--older-than", help="The minimum age in hours, days or weeks: 12h, 30d or 8w.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, but delete nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete old versions of a model that are not needed any more.

    Versions stay if they are live, or were live within the given time. The newest version and versions with an alias
    stay too. Rollbacks still work afterwards, because each environment keeps its own copy of deployed files. Run
    `mlflow gc` to free the disk space.

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
    rows = [
        (candidate.version, done, f"was registered at {candidate.created.isoformat(timespec='seconds')}")
        for candidate in found.deleted
    ]
    rows += [(candidate.version, "kept", reason) for candidate, reason in found.kept]
    print_table(("version", "", "why"), [(str(version), what, why) for version, what, why in sorted(rows)])


environments = typer.Typer(no_args_is_help=True, help="Set up the environments of params.yaml on a shared server.")


@environments.command("create")
def create_environments(
    models: Models,
    as_json: Json = False,
) -> None:
    """Create everything that the environments need for some models.

    On a server with users, an administrator runs this before the first promotion, and then owns the environments.
    `onward environments grant` then allows users to deploy. In all other cases, `onward promote` creates what is
    missing, except for a `server_webhook`.

    Example: onward environments create cnn classifier
    """
    from onward.registry.operations import promotion

    made = promotion.create_environments(models)
    if as_json:
        print_json({"created": made})
    else:
        say(*[f"created {name}" for name in made] or ["Everything exists already."])


@environments.command("grant")
def grant_environment(
    environment: Annotated[str, typer.Argument(metavar="NAME", help="The environment, such as staging.")],
    user: Annotated[str, typer.Option("--to", help="The name of the user on the MLflow server.")],
    as_json: Json = False,
) -> None:
    """Allow a user of the MLflow server to deploy to an environment. Only an administrator can run this.

    The user gets MLflow's permission EDIT on the environment's logs, on the experiment that contains its files, and on
    the versions of its models.

    Example: onward environments grant staging --to bob
    """
    from onward.registry.operations import permissions

    granted = permissions.grant(environment, user)
    if as_json:
        print_json({"environment": environment, "user": user, "granted": [vars(found) for found in granted]})
        return
    for found in granted:
        say(f"{user} may edit {found.kind.replace('_', ' ')} {found.name}{'' if found.changed else ', as before'}")


stores = typer.Typer(no_args_is_help=True, help="Maintain the embedded store: mlflow.db and mlartifacts/.")


@stores.command("move")
def move_store(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be rewritten, but write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the embedded store use the files beside it, after its folder was moved or copied.

    MLflow records absolute paths in mlflow.db, and this command rewrites them. It writes to no other file, so the
    original of a copy stays unchanged.

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
