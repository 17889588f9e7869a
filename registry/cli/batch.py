"""The command `onward batch`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from onward.registry.cli.output import Json, print_json, print_note, say
from onward.registry.errors import UsageError
from onward.registry.text import printable

# How often the progress is printed.
LINE_SECONDS = 10.0


def batch(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="MODEL@ENVIRONMENT or MODEL/VERSION.")],
    source: Annotated[str, typer.Option("--input", metavar="PARQUET", help="A parquet file, or a folder of them.")],
    output: Annotated[str, typer.Option("--output", metavar="FOLDER", help="The folder for the results.")],
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster, such as ray://head:10001. Default: one on this machine."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=COLUMN", help="The column of an input, where it is not the input's name."),
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="INPUT=VALUE", help="The value of an input that all samples share, as JSON."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples in a batch. Default: the best size of the version's benchmark.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each worker, and threads of its session.")] = 1,
    require_signed: Annotated[
        bool, typer.Option("--require-signed", help="Run only a version that a signer deployed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a model over the rows of parquet files with Ray Data, on this machine or on a cluster.

    A row is a sample. Each input is a column of numbers, texts or lists; the other columns are copied to the results,
    which have a column for each output. Paths are local, or s3:// addresses. Every worker checks the version's digest,
    and its signature where signatures are required. Each file of results names the version and its sha256.

    Finished parts stay if the run ends early; the same command goes on with the rest.

    Example: onward batch cnn@production --input images/ --output answers/
    """
    from onward.registry.batch.run import Request, Summary, run

    request = Request(
        target, source, output, address, dict(_pairs(column, "--column")),
        {name: _value(name, text) for name, text in _pairs(shared, "--set")}, batch_size, cpus, require_signed,
    )  # fmt: skip
    begun = printed = time.monotonic()

    def watch(summary: Summary, parts: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= LINE_SECONDS:
            printed = now
            done = summary.parts + len(summary.failed)
            left = (now - begun) / done * (parts - summary.known - done) if done else 0
            print_note(f"batch: {summary.known + done} of {parts} parts, {summary.rows} rows, about {left:.0f} s left")

    summary = run(request, watch)
    if as_json:
        print_json(asdict(summary))
    else:
        known = f"; {summary.known} parts were there already" if summary.known else ""
        say(
            f"{summary.model} version {summary.version} (sha256 {summary.sha256[:12]}): {summary.rows} rows in "
            f"{summary.parts} parts, {summary.seconds:.1f} s{known}"
        )
        for part, reason in summary.failed.items():
            say(printable(f"failed: {part}: {reason}"))
        if summary.failed:
            say("run the same command again, once the reason is gone: finished parts stay")
    if summary.failed:
        raise typer.Exit(1)


def _pairs(given: list[str] | None, option: str) -> list[tuple[str, str]]:
    found = []
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"{option} {printable(text)}: write INPUT=VALUE")
        found.append((name, value))
    return found


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UsageError(
            f"--set {name}: {printable(text)} is not JSON: write a number, a list or a quoted text"
        ) from None
