"""`onward serve` under load on this machine, beside bare `session.run`, `mlflow models serve` and MLServer.

    python -m benchmarks.serving [--only latency throughput swaps kills soak] [--out FILE]

All servers have the same model folder and session threads. They run at the same time, and get load by turns, in rounds
of random order. MLServer has an environment of its own (benchmarks/runtimes/mlserver.txt), and is left out where that
cannot be installed. The table is printed, and written to --out FILE. The exit code is 1 if a limit does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import serving_faults
from benchmarks.findings import Finding, table
from benchmarks.serving_http2 import GrpcCall
from benchmarks.serving_load import (
    Call,
    Http,
    Load,
    drive,
    grpc_request,
    grpcio_call,
    mlflow_json,
    rest_binary,
    rest_json,
)
from benchmarks.serving_servers import free_port, grpc_echo, mlflow_serve, mlserver, model_folder, onward, running
from onward.registry.artifact.serving_plan import MODEL
from onward.registry.host import hardware
from onward.registry.serve.grpc_messages import SERVICE

PARTS = ("latency", "throughput", "swaps", "kills", "soak")
MODELS = ("mlp", "transformer")
# Limits of the p50 over a bare session.run at concurrency 1, in ms.
LIMITS_MS = {"REST, raw tensors": 0.6, "gRPC": 0.5}
# The least throughput at concurrency 8 as a multiple of a peer's.
TIMES = 1.5
REST, GRPC, MLFLOW, MLSERVER = "REST, raw tensors", "gRPC", "mlflow models serve", "MLServer, JSON"
METHOD = f"/{SERVICE}/ModelInfer"
# grpcio alone: its client in Python, and its server with a handler that returns each request as it is.
GRPCIO, ECHO = "gRPC, grpcio's client", "gRPC, echo without Onward"
# One way to send requests: makes the call of one thread.
Ways = dict[str, Callable[[], Call]]


def bare(model: Path, sample: dict[str, Any], threads: int) -> Call:
    """A call of `session.run` in this process."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model / MODEL), options, providers=["CPUExecutionProvider"])

    def call() -> tuple[int, bytes]:
        session.run(None, sample)
        return 200, b""

    return call


def by_turns(ways: Ways, concurrency: int, rounds: int, load: dict[str, float]) -> dict[str, list[Load]]:
    """One load per way and round, in random order. The first load of each way is not counted."""
    calls = {name: [make() for _ in range(concurrency)] for name, make in ways.items()}
    for each in calls.values():
        drive(each, count=20)
    order = random.Random(0)
    found: dict[str, list[Load]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            drive(calls[name], count=1)  # opens connections that the server closed meanwhile
            found[name].append(drive(calls[name], **load))  # type: ignore[arg-type]
    return found


def onward_ways(stack: ExitStack, name: str, model: Path, sample: dict[str, Any], folder: Path) -> Ways:
    """Start `onward serve` for a model, and return the ways to call it."""
    port, grpc_port = free_port(), free_port()
    stack.enter_context(running(onward([str(model)], port, grpc_port, folder)))
    body, headers = rest_binary(sample)
    request = grpc_request(name, sample)
    return {
        REST: lambda: Http(port, f"/v2/models/{name}/infer", body, headers),
        GRPC: lambda: GrpcCall(grpc_port, METHOD, request),
        GRPCIO: lambda: grpcio_call(grpc_port, METHOD, request),
    }


def latency(folder: Path, rounds: int, count: int, threads: int) -> Iterator[Finding]:
    """The p50 at concurrency 1 on the MLP, over that of a bare session.run."""
    model, sample = model_folder("mlp", folder, threads)
    with ExitStack() as stack:
        ways = onward_ways(stack, "mlp", model, sample, folder)
        ways["session.run"] = lambda: bare(model, sample, threads)
        echo = stack.enter_context(grpc_echo())
        request = grpc_request("mlp", sample)
        ways[ECHO] = lambda: GrpcCall(echo, METHOD, request)
        found = by_turns(ways, 1, rounds, {"count": count})
    base = [load.ms(50) for load in found["session.run"]]
    for name, most in LIMITS_MS.items():
        more = statistics.median(load.ms(50) - b for load, b in zip(found[name], base, strict=True))
        failed = sum(len(load.failed) for load in found[name])
        yield Finding(
            f"{name}: p50 over session.run, MLP, concurrency 1",
            f"at most {most} ms",
            f"{more:.3f} ms ({statistics.median(base):.3f} ms bare; {failed} failed)",
            more <= most and not failed,
        )
    for name in (GRPCIO, ECHO):
        p50 = statistics.median(load.ms(50) for load in found[name])
        yield Finding(f"{name}: p50 of the same request", "", f"{p50:.3f} ms", True)


def throughput(folder: Path, rounds: int, seconds: float, threads: int) -> Iterator[Finding]:
    """Requests per second and p99 at concurrency 1 and 8, beside the peers."""
    for name in MODELS:
        place = folder / f"throughput-{name}"
        place.mkdir()
        model, sample = model_folder(name, place, threads)
        with ExitStack() as stack:
            ways = onward_ways(stack, name, model, sample, place)
            port = free_port()
            stack.enter_context(running(mlflow_serve(model, port, place)))
            body, headers = mlflow_json(sample)
            ways[MLFLOW] = lambda port=port, body=body, headers=headers: Http(port, "/invocations", body, headers)  # type: ignore[misc]
            peer = free_port()
            started = mlserver(name, model, threads, peer, place)
            if started is not None:
                stack.enter_context(running(started))
                raw, raw_headers = rest_json(sample)
                path = f"/v2/models/{name}/infer"
                ways[MLSERVER] = lambda p=peer, b=raw, h=raw_headers, path=path: Http(p, path, b, h)  # type: ignore[misc]
            for concurrency in (1, 8):
                found = by_turns(ways, concurrency, rounds, {"seconds": seconds})
                yield from _beside(name, concurrency, found)


def _beside(name: str, concurrency: int, found: dict[str, list[Load]]) -> Iterator[Finding]:
    whole = {way: sum(loads, Load()) for way, loads in found.items()}
    ours = whole[REST]
    for way, load in whole.items():
        times = ours.throughput / load.throughput if load.throughput else float("inf")
        wanted = concurrency == 8 and way in (MLFLOW, MLSERVER)
        slower = times >= TIMES and ours.ms(99) < load.ms(99)
        yield Finding(
            f"{way}: {name}, concurrency {concurrency}",
            f"Onward's REST at least {TIMES} times as many, at lower p99" if wanted else "",
            f"{load.throughput:.0f} requests/s, p50 {load.ms(50):.2f} ms, p99 {load.ms(99):.2f} ms, "
            f"{len(load.failed)} failed; REST has {times:.2f} times as many",
            not wanted or slower,
        )


def run(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Measure the parts by turns, each in a folder of its own."""
    rounds, threads = arguments.rounds, arguments.threads
    parts: dict[str, Callable[[Path], Iterator[Finding]]] = {
        "latency": lambda folder: latency(folder, rounds, arguments.count, threads),
        "throughput": lambda folder: throughput(folder, rounds, arguments.seconds, threads),
        "swaps": lambda folder: serving_faults.swaps(folder, arguments.swaps),
        "kills": lambda folder: serving_faults.kills(folder, arguments.seconds),
        "soak": lambda folder: serving_faults.soak(folder, arguments.soak),
    }
    here = os.getcwd()
    for part in arguments.only:
        with tempfile.TemporaryDirectory(prefix="onward-serving-") as temporary:
            os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
            try:
                for finding in parts[part](Path(temporary)):
                    print(f"{part}: {finding.figure}: {finding.found}", file=sys.stderr, flush=True)
                    yield finding
            finally:
                os.chdir(here)


def main() -> int:
    """Run the parts, print and write the table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each comparison")
    parser.add_argument("--count", type=int, default=1000, help="requests of a round at concurrency 1")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of a round of the throughput")
    parser.add_argument("--threads", type=int, default=1, help="threads of every session")
    parser.add_argument("--swaps", type=int, default=200, help="promotions and rollbacks under load")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of the soak")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    out = arguments.out.resolve() if arguments.out else None
    begun = time.monotonic()
    found = list(run(arguments))
    machine = hardware.describe()
    written = (
        "# Serving\n\n"
        f"`python -m benchmarks.serving` on {machine.cpu} ({hardware.kind(machine)}), "
        f"{arguments.threads} thread(s) per session, in {time.monotonic() - begun:.0f} s.\n\n{table(found)}"
    )
    print(written, end="")
    if out:
        out.write_text(written)
    return 0 if all(finding.held for finding in found) else 1


if __name__ == "__main__":
    sys.exit(main())
