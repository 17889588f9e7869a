"""Promotions and rollbacks while the MLflow server is down, slow, hanging, or answers half of all requests with 500.

A faulty proxy is in front of a real server. Half of its 500s replace the request; the other half replace the answer,
after the server has done the work.
"""

from __future__ import annotations

import http.client
import http.server
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.findings import Finding
from benchmarks.registry_races import ENVIRONMENT, MODEL, change, prepare
from onward.registry.errors import StoreUnreachable
from onward.registry.operations import overview
from onward.registry.store.store import Store
from tests.servers import free_port, wait_until

# The values of MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES.
TIMEOUT_S, RETRIES = 5, 1
LIMIT_S = TIMEOUT_S * (RETRIES + 1) + 3


class Proxy(http.server.ThreadingHTTPServer):
    """Pass requests to the server on `port`, with a `fault`: none, slow, hangs, 500s."""

    daemon_threads = True

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.fault, self.draw, self.stop = port, "none", random.Random(seed), threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault
        chance = self.server.draw.random() if fault == "500s" else 1.0
        if fault == "hangs":
            self.server.stop.wait(2 * LIMIT_S)
            return
        if fault == "slow":
            time.sleep(0.2)
        if chance < 0.25:
            self._send(500, b"{}", "application/json")
            return
        server = http.client.HTTPConnection("127.0.0.1", self.server.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        server.request(self.command, self.path, body or None, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if chance < 0.5:
            self._send(500, b"{}", "application/json")
        else:
            self._send(answer.status, content, answer.headers.get("Content-Type", ""))

    def _send(self, code: int, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._answer)


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/outages.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with open(folder / "log", "wb") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    try:
        wait_until(answers)
        yield port
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def outages(folder: Path, changes: int, seed: int) -> Iterator[Finding]:
    """Promote and roll back by turns under each fault, and check the log without the fault."""
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(RETRIES),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    }
    before = {name: os.environ.get(name) for name in (*settings, "MLFLOW_TRACKING_URI")}
    with _server(folder) as port:
        proxy = Proxy(port, seed)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
            prepare()
            for number in range(2):
                change(Store(), number, "before")
            os.environ |= {**settings, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server_port}"}
            store = Store()
            counts = {"none": 4, "slow": 4, "500s": changes, "hangs": min(3, changes // 6), "down": 3}
            for fault, count in counts.items():
                yield from _through(store, proxy, fault, count)
        finally:
            proxy.stop.set()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _through(store: Store, proxy: Proxy, fault: str, count: int) -> Iterator[Finding]:
    known = {entry.key for entry in store.log(ENVIRONMENT, MODEL).history.counted}
    outcomes: dict[str, str] = {}
    longest = 0.0
    proxy.fault = fault
    if fault == "down":
        proxy.shutdown()
        proxy.server_close()
    for number in range(count):
        actor, start = f"{fault}{number}", time.perf_counter()
        try:
            answer = change(store, number, actor)
        except StoreUnreachable as error:
            # The message names this command if the entry may have been written.
            answer = "unsure" if "onward history" in str(error) else "unreachable"
        except Exception as error:  # the benchmark reports any other error
            answer = f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        longest = max(longest, time.perf_counter() - start) if answer == "unreachable" else longest
        outcomes[actor] = answer
    title = f"server: {fault}"
    listed = ", ".join(f"{times} {answer}" for answer, times in Counter(outcomes.values()).most_common())
    yield Finding(title, "success or exit code 4", listed, "error" not in listed)
    if fault in ("hangs", "down"):
        yield Finding(title, f"error within {LIMIT_S} s", f"{longest:.1f} s", longest < LIMIT_S)
        if fault == "down":
            return
    proxy.fault = "none"
    new = [entry for entry in store.log(ENVIRONMENT, MODEL).history.counted if entry.key not in known]
    counted = {entry.actor for entry in new}
    won = {actor for actor, answer in outcomes.items() if answer == "won"}
    unsure = {actor for actor, answer in outcomes.items() if answer == "unsure"}
    right = won <= counted <= won | unsure and len(new) == len(counted)
    listed = f"{len(won)} won, {len(new)} counted, {len(unsure)} unsure"
    yield Finding(title, "results agree with the log", listed, right)
    change(store, 0, "after")
    change(store, 1, "after")
    works = overview.check(MODEL, ENVIRONMENT, store).met
    drift = [str(drift) for model in overview.status(store) for state in model.environments for drift in state.drift]
    found = "; ".join(drift) or "no differences"
    yield Finding(title, "afterwards, the live version works and aliases match", found, works and not drift)
