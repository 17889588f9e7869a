"""The commands `onward fleet run` and `onward fleet node`."""

from __future__ import annotations

from typing import Annotated

import typer

from onward.registry.cli.output import Json, print_json, say
from onward.registry.errors import INTERRUPTED

app = typer.Typer(no_args_is_help=True)


@app.command("run")
def run(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: all of params.yaml.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster, such as ray://head:10001. Default: one on this machine."),
    ] = None,
    rev: Annotated[
        str | None, typer.Option(metavar="REVISION", help="The git revision. Default: what is checked out, unchanged.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each pipeline; measurements have a whole machine.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="MINUTES", help="Time limit of a phase of a model.")] = 360,
    as_json: Json = False,
) -> None:
    """Run the pipelines of many models at once on a Ray cluster, and write dvc.lock.

    Every model's pipeline runs in a clean clone of the commit. Results are shared through DVC, and logged to MLflow as
    by `dvc repro`. Each measurement has a machine to itself. A run that was interrupted goes on where it was.

    Exit codes: 0 if all models passed; 1 if any failed or was stopped.

    Example: onward fleet run --address ray://head:10001
    """
    from onward.stages.fleet.report import as_document, printed
    from onward.stages.fleet.run import run as run_fleet
    from onward.stages.fleet.table import displayed

    with displayed() as display:
        result = run_fleet(list(models or []), address, rev, cpus, timeout * 60, display.update)
    if as_json:
        print_json(as_document(result))
    else:
        say(*printed(result))
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(one.state != "passed" for one in result.models.values()):
        raise typer.Exit(1)


@app.command("node", context_settings={"allow_extra_args": True})
def node(
    context: typer.Context,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT|head", help="The head's address, or head to be it.")],
) -> None:
    """Make this machine a node of a Ray cluster for fleets, until Ctrl-C.

    It runs `ray start` with what the machine offers: its CPUs, measurements, and the classes of `hosts` in params.yaml
    that it belongs to. Arguments after -- go to `ray start`.

    Example: onward fleet node head:6379
    """
    from onward.stages.config.load import read
    from onward.stages.fleet.cluster import join

    raise typer.Exit(join(None if address == "head" else address, read().hosts, context.args))
