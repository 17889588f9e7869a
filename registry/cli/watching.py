"""`onward monitor`, and what `onward serve` needs to record and to monitor."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onward.registry.cli.output import Json, print_error, print_json, print_note, say
from onward.registry.errors import NotReady, StoreUnreachable, UsageError

if TYPE_CHECKING:
    from onward.registry.monitoring.watch import Judgement
    from onward.registry.serve.server import Server
    from onward.registry.watch.job import Result

# The folder with recorded requests, for a job that does not name it.
RECORDED = "ONWARD_RECORDED"

Record = Annotated[
    Path | None, typer.Option("--record", metavar="FOLDER", help="Record a sample of the requests in this folder.")
]
RecordTensor = Annotated[
    list[str] | None,
    typer.Option(
        "--record-tensor",
        metavar="NAME=RULE",
        help="keep, hash or drop the values of an input or output; NAME may be MODEL/NAME. May be repeated. Default: "
        "numbers are kept and texts are dropped.",
    ),
]
RecordSamples = Annotated[int, typer.Option(min=1, help="Requests per minute and model that are recorded.")]
RecordMaxMb = Annotated[float, typer.Option(min=1, help="Largest size of the folder in MB; the oldest files go first.")]
RecordHours = Annotated[float, typer.Option(min=0.01, help="Hours after which recorded requests are deleted.")]
Monitor = Annotated[
    bool, typer.Option("--monitor", help="Watch errors, latency and drift; roll back where the policy says so.")
]
MonitorWindow = Annotated[float, typer.Option(min=0.5, help="Seconds of a drift window of --monitor.")]


def monitor(
    target: Annotated[str, typer.Argument(metavar="MODEL@ENV", help="The environment of a model.")],
    recorded: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"The folder of `onward serve --record`. Default: that in {RECORDED}."),
    ] = None,
    window: Annotated[float, typer.Option(min=1, help="Seconds of a window.")] = 3600.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and exit. This is the default.")] = False,
    every: Annotated[
        float | None, typer.Option(min=1, help="Look every so many seconds, until Ctrl-C.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the HTML report to this file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only judge: write nothing to MLflow, roll back nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge the live version of an environment by recorded requests: errors, latency and drift.

    The results go to MLflow, and an alarm to `onward status`. Where `on_decay` in params.yaml says so, a decaying
    version is rolled back. Exit code: 0 without an alarm, 1 with one.

    Example: onward monitor cnn@production --recorded requests --window 3600
    """
    from onward.registry.watch import job

    if once and every is not None:
        raise UsageError("--once and --every exclude each other: give one")
    named = os.environ.get(RECORDED, "")
    folder = recorded or (Path(named) if named else None)
    if folder is None:
        raise UsageError(f"--recorded FOLDER, or {RECORDED}, has to name the folder of `onward serve --record`")
    if every is None:
        found = job.monitor(target, folder, window, write=not dry_run)
        _show(found, report, as_json)
        raise typer.Exit(1 if found.judgement.alarms else 0)
    while True:
        try:
            _show(job.monitor(target, folder, window, write=not dry_run), report, as_json, one_line=True)
        except (NotReady, StoreUnreachable) as error:  # there may be requests, or a store, at the next look
            print_error(error)
        time.sleep(every)


def _show(found: Result, report: Path | None, as_json: bool, one_line: bool = False) -> None:
    from onward.registry.files import write_atomically
    from onward.registry.report.page import finite
    from onward.registry.watch.results import lines

    print_note(found.note)
    if report is not None:
        from onward.registry.report.monitoring_page import render

        write_atomically(report, render([found.judgement], found.response).encode())
    if as_json:
        print_json(finite(_facts(found)), indent=None if one_line else 2)
        return
    say(*lines(found.judgement), *filter(None, [found.response]))


def _facts(found: Result) -> dict[str, Any]:
    """A result as a JSON object."""
    from dataclasses import asdict

    judgement: Judgement = found.judgement
    facts = asdict(judgement)
    return {
        **facts.pop("deployment"),
        **facts,
        "periods": facts["periods"][-100:],
        "alarm": bool(judgement.alarms),
        "response": found.response,
    }


def observe(
    server: Server,
    record: Path | None,
    tensors: list[str],
    samples: int,
    max_mb: float,
    hours: float,
    monitor_window: float | None,
) -> None:
    """Add a recorder and a monitor to the models of a server, and start them.

    Args:
        server: the server.
        record: the folder to record to; None to record nothing.
        tensors: the values of `--record-tensor`.
        samples: requests per minute and model that are recorded.
        max_mb: the largest size of the folder, in MB.
        hours: the age at which recorded requests are deleted.
        monitor_window: the length of a drift window, in seconds; None for no monitor.

    Raises:
        UsageError: an option is wrong, the folder cannot be written to, or nothing is an environment.
    """
    models = list(server.models.values())
    if record is None and tensors:
        raise UsageError("--record-tensor needs --record FOLDER")
    if monitor_window is not None and not any("@" in model.target for model in models):
        raise UsageError("--monitor watches environments: serve MODEL@ENVIRONMENT")
    if record is not None:
        from onward.registry.serve.recording import Recorder, Recording, parse_keep
        from onward.registry.watch.evidence import this_host

        keep = parse_keep(tensors)
        _require_known(keep, models)
        recording = Recording(record, samples=samples, keep=keep, most_bytes=int(max_mb * 1e6), hours=hours)
        hosts = {model.name: str(this_host(model)) for model in models}
        server.observe(Recorder(recording, server.metrics, hosts))
    if monitor_window is not None:
        from onward.registry.watch.live import LiveMonitor

        server.observe(LiveMonitor(models, server.metrics, monitor_window))


def _require_known(keep: dict[str, Any], models: list[Any]) -> None:
    """Check that each name of `--record-tensor` is that of an input or output, so that a typo keeps nothing private."""
    known: set[str] = set()
    for model in models:
        found = model.session.metadata
        for spec in (*found.inputs, *found.outputs):
            known |= {spec.name, f"{model.name}/{spec.name}"}
    for name in keep:
        if name not in known:
            raise UsageError(
                f"--record-tensor {name}: no model has this input or output; there are {', '.join(sorted(known))}"
            )
