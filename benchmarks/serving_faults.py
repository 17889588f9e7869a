"""`onward serve` while versions change, processes are killed, connections break, and over a long time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.findings import Finding
from benchmarks.registry_outages import Proxy
from benchmarks.registry_races import ENVIRONMENT, MODEL, change, prepare
from benchmarks.serving_load import Call, Http, Load, drive
from benchmarks.serving_servers import free_port, onward, running, start, stop
from onward.registry.store.store import Store

CALLERS = 4
X = np.arange(8, dtype=np.float32).reshape(2, 4)
# How long a change, or the recovery from a fault, may take until it is served, in s.
PATIENCE_S = 60.0
# The allowed growth of memory in the soak, as a share and in bytes.
GROWTH, GROWTH_BYTES = 0.03, 8e6
_EVERY_S = 1.0


def calls(port: int) -> list[Call]:
    """Calls with the input that every version multiplies by its number."""
    entry = {"name": "x", "datatype": "FP32", "shape": list(X.shape), "data": X.ravel().tolist()}
    body = json.dumps({"inputs": [entry]}).encode()
    return [Http(port, f"/v2/models/{MODEL}/infer", body, {}) for _ in range(CALLERS)]


def mixed(body: bytes) -> str:
    """What is wrong with an answer: its numbers must be those of the version that it names."""
    answer = json.loads(body)
    named = int(answer["model_version"])
    if np.array_equal(answer["outputs"][0]["data"], named * X.ravel()):
        return ""
    return f"the answer names version {named} and has the numbers of another one"


def version(port: int) -> int:
    """The version that a server answers with; 0 if it does not answer."""
    with suppress(OSError, ValueError, KeyError):
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}", timeout=5).read()
        return int(json.loads(answer)["versions"][0])
    return 0


def live() -> int:
    """The version that is live in the registry."""
    found = Store(create=False).head(ENVIRONMENT, MODEL).history.live
    return found.candidate_version if found else 0


def until_served(port: int) -> float:
    """Wait until the server answers with the live version; the seconds that it took, or inf."""
    begun, wanted = time.monotonic(), live()
    while time.monotonic() < begun + PATIENCE_S:
        if version(port) == wanted:
            return time.monotonic() - begun
        time.sleep(0.05)
    return float("inf")


class Background:
    """A constant load from threads, until it is stopped."""

    def __init__(self, port: int) -> None:
        self._stop, self.load = threading.Event(), Load()
        self._thread = threading.Thread(target=self._run, args=(port,))
        self._thread.start()

    def _run(self, port: int) -> None:
        self.load = drive(calls(port), check=mixed, stop=self._stop)

    def end(self) -> Load:
        """Stop the load, and return what it received."""
        self._stop.set()
        self._thread.join()
        return self.load


def _embedded(folder: Path) -> None:
    """A store of this benchmark with three versions. The first is live."""
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    prepare()
    change(Store(), 0, "benchmark")


def swaps(folder: Path, count: int) -> Iterator[Finding]:
    """Promotions and rollbacks under constant load."""
    _embedded(folder)
    port = free_port()
    process = onward([f"{MODEL}@{ENVIRONMENT}"], port, free_port(), folder, "--poll", "0.2")
    with running(process):
        drive(calls(port), count=50)
        steady = drive(calls(port), seconds=max(2.0, count / 20), check=mixed)
        load, store, slow = Background(port), Store(), []
        for number in range(count):
            change(store, number, "benchmark")
            slow.append(until_served(port))
        found = load.end()
    ratio = found.ms(99) / steady.ms(99)
    wrong = steady.failed + found.failed
    yield Finding(
        f"{count} promotions and rollbacks, {len(found.latencies)} requests",
        "no request dropped or mixed",
        f"{len(wrong)} failed" + (f": {wrong[0]}" if wrong else ""),
        not wrong,
    )
    yield Finding(
        "time until a change is served", f"under {PATIENCE_S:g} s", f"at most {max(slow):.1f} s", max(slow) < PATIENCE_S
    )
    yield Finding(
        "p99 during changes over p99 without",
        "at most 2",
        f"{ratio:.2f} ({found.ms(99):.2f} ms over {steady.ms(99):.2f} ms)",
        ratio <= 2,
    )


def kills(folder: Path, seconds: float) -> Iterator[Finding]:
    """Kill -9 of the server and of the registry, and a connection between them that hangs and fails."""
    _embedded(folder)
    database = os.environ["MLFLOW_TRACKING_URI"]
    registry_port, port, grpc_port = free_port(), free_port(), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(registry_port), "--workers", "1"]
    command += ["--backend-store-uri", database]
    health = f"http://127.0.0.1:{registry_port}/health"
    registry = start(command, health, folder / "registry.log")
    proxy = Proxy(registry_port, 17)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    settings = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server_port}",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    target = [f"{MODEL}@{ENVIRONMENT}"]
    os.environ |= settings | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
    live()  # the registry's first answer takes seconds
    os.environ |= settings
    process = onward(target, port, grpc_port, folder, "--poll", "0.3")
    os.environ["MLFLOW_TRACKING_URI"] = database
    try:
        drive(calls(port), count=20)
        yield from _through(proxy, "hangs", port, seconds)
        yield from _through(proxy, "500s", port, seconds)
        load = Background(port)
        stop(registry, signal.SIGKILL)
        change(Store(), 1, "benchmark")
        time.sleep(seconds)
        registry = start(command, health, folder / "registry.log")
        took, found = until_served(port), load.end()
        yield _recovered("kill -9 of the registry", took, found)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stop(registry, signal.SIGKILL)
        os.environ |= settings
        begun = time.monotonic()
        process = onward(target, port, grpc_port, folder, "--poll", "0.3")
        took = time.monotonic() - begun
        os.environ["MLFLOW_TRACKING_URI"] = database
        yield _recovered(
            "kill -9 of the server, started again without the registry", took, drive(calls(port), count=20, check=mixed)
        )
    finally:
        proxy.stop.set()
        proxy.shutdown()
        for one in (process, registry):
            stop(one, signal.SIGKILL)
        for name in settings:
            os.environ.pop(name, None)


def _through(proxy: Proxy, fault: str, port: int, seconds: float) -> Iterator[Finding]:
    """A fault of the connection while a version becomes live."""
    load, proxy.fault = Background(port), fault
    change(Store(), 1, "benchmark")
    time.sleep(seconds)
    proxy.fault = "none"
    took = until_served(port)
    yield _recovered(f"connection to the registry: {fault}", took, load.end())


def _recovered(figure: str, took: float, load: Load) -> Finding:
    failed = f"; {load.failed[0]}" if load.failed else ""
    found = (
        f"recovered after {took:.1f} s; {len(load.failed)} of {len(load.latencies) + len(load.failed)} failed{failed}"
    )
    return Finding(figure, "recovers, and no request fails", found, took < PATIENCE_S and not load.failed)


def soak(folder: Path, seconds: float) -> Iterator[Finding]:
    """The server's memory under constant load."""
    _embedded(folder)
    port = free_port()
    process = onward([f"{MODEL}@{ENVIRONMENT}"], port, free_port(), folder)
    with running(process):
        drive(calls(port), count=200)
        load, sizes = Background(port), []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(_EVERY_S)
            sizes.append(_resident(process.pid))
        found = load.end()
    fifth = max(1, len(sizes) // 5)
    before, after = float(np.median(sizes[fifth : 2 * fifth] or sizes)), float(np.median(sizes[-fifth:]))
    growth = after - before
    yield Finding(
        f"memory over {seconds:g} s and {len(found.latencies)} requests",
        f"grows by less than {GROWTH:.0%} or {GROWTH_BYTES / 1e6:g} MB",
        f"{before / 1e6:.0f} MB to {after / 1e6:.0f} MB; {len(found.failed)} failed",
        growth < max(GROWTH * before, GROWTH_BYTES) and not found.failed,
    )


def _resident(pid: int) -> int:
    """The resident memory of a process in bytes."""
    import psutil

    return int(psutil.Process(pid).memory_info().rss)
