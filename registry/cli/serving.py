"""`onward serve`: serve live versions over HTTP. registry/cli/main.py adds it to the `onward` command."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from onward.registry.cli import watching
from onward.registry.cli.output import Json, print_json, say
from onward.registry.errors import UsageError


def serve(
    targets: Annotated[
        list[str], typer.Argument(metavar="TARGET...", help="MODEL@ENVIRONMENT, MODEL/VERSION, or .onnx files.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port.")] = 8080,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="gRPC port. Default: no gRPC.", show_default=False)
    ] = None,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at an environment.")] = 2.0,
    queue: Annotated[int, typer.Option(min=0, help="Requests per model that may wait; further ones get 429.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Requests per model at the same time. Default: by the processors.")
    ] = None,
    batch_delay_ms: Annotated[
        float,
        typer.Option(
            min=0,
            max=10_000,
            help="Longest time that a request waits to be joined with others into one run, in ms. 0: joins nothing.",
        ),
    ] = 0.0,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most samples of joined requests. Default: the best size of the version's batch sweep, else 32.",
            show_default=False,
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="A candidate of a served model, such as cnn@staging. It computes a share of the requests, too, and "
            "its answers are only compared. May be given once per model.",
        ),
    ] = None,
    shadow_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the requests that shadows compute, 0 to 1.")
    ] = 0.1,
    canary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET:PERCENT",
            help="A candidate that answers a percentage of the requests, such as cnn@staging:5, until it fails on too "
            "many. The live version answers those instead. A percentage alone is for the candidates of --shadow.",
        ),
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Largest request in MB.")] = 64.0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Longest time until an answer, in seconds.")] = 60.0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with one bearer token per line. Each request needs one of them.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate file, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key file of the certificate.")] = None,
    record: watching.Record = None,
    record_tensor: watching.RecordTensor = None,
    record_samples: watching.RecordSamples = 200,
    record_max_mb: watching.RecordMaxMb = 1000.0,
    record_hours: watching.RecordHours = 720.0,
    monitor: watching.Monitor = False,
    monitor_window: watching.MonitorWindow = 300.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log each request.")] = False,
    as_json: Json = False,
) -> None:
    """Serve models with the Open Inference Protocol over HTTP and gRPC, and follow their environments.

    A promotion or rollback is served within seconds: the new version is downloaded, checked, replayed and warmed up
    before it gets requests. If any of this fails, the old version stays. Each response names its version. With --json,
    the addresses and each line of the log are JSON objects.

    Example: onward serve cnn@production transformer@production --port 8080 --grpc-port 8081
    """
    from onward.registry.serve.candidates import canaries
    from onward.registry.serve.limits import Limits
    from onward.registry.serve.server import Options, Server

    if (tls_certificate is None) != (tls_key is None):
        raise UsageError("--tls-certificate and --tls-key belong together: give both")
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    if as_json:
        logging.getLogger().handlers[0].setFormatter(_JsonLines())
    for name in ("uvicorn", "mlflow", "urllib3", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    options = Options(
        host=host,
        port=port,
        grpc_port=grpc_port,
        poll=poll,
        queue=queue,
        workers=workers,
        batch_delay_ms=batch_delay_ms,
        max_batch=max_batch,
        shadows=tuple(shadow or ()),
        shadow_share=shadow_share,
        canaries=canaries(canary or (), shadow or ()),
        limits=Limits(int(max_mb * 1e6), timeout),
        tokens=_tokens(token_file),
        certificate=tls_certificate,
        key=tls_key,
    )
    server = Server(targets, options)
    scheme = "https" if tls_certificate else "http"
    urls = {model.target: f"{scheme}://{host}:{port}/v2/models/{model.name}/infer" for model in server.models.values()}
    if as_json:
        print_json(urls)
    else:
        for target, url in urls.items():
            say(f"{target}: {url}")
    watching.observe(
        server,
        record,
        record_tensor or [],
        record_samples,
        record_max_mb,
        record_hours,
        monitor_window if monitor else None,
    )
    server.run()


class _JsonLines(logging.Formatter):
    """Log records as JSON objects, one per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record: time, level, logger and text, the fields of a request, and the traceback of an error."""
        from onward.registry.serve.request_log import FIELDS

        found: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        found["message"] = record.getMessage()
        found |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found)


def _tokens(file: Path | None) -> frozenset[str]:
    if file is None:
        return frozenset()
    try:
        found = frozenset(filter(None, map(str.strip, file.read_text().splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {file}: {error}") from None
    if not found:
        raise UsageError(f"--token-file {file}: contains no token; write one per line")
    return found
