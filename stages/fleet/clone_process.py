"""Runs the process of one phase in a clone, within a time limit, on processors of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from onward.registry import checkout
from onward.stages.fleet.phases import Event, Job

POLL_SECONDS = 0.5
END_SECONDS = 5.0
LOG = "log"
LOG_LINES = 20
# Ray sets this for its tasks. The number of threads of a stage follows from the processors that it may use.
_THREADS = "OMP_NUM_THREADS"


class Stopped(Exception):
    """The process ended without a verdict; the message says why."""


def run(
    project: Path,
    own: Path,
    job: Job,
    store: str,
    allowed: set[int] | None,
    timeout_s: float,
    received: Callable[[Event], None],
) -> None:
    """Run a phase in a clone.

    Args:
        project: The project's folder in the clone.
        own: A folder outside of the clone, for the log and for what DVC keeps beside a repository.
        job: What to run.
        store: The URI of the MLflow store, with credentials.
        allowed: The processors that the stages may use, numbered from 0; None for all.
        timeout_s: The time limit in seconds.
        received: Called with each event.

    Raises:
        Stopped: The time limit passed, or the process ended with an error that is no verdict about the model.
    """
    environment = {**os.environ, checkout.PROJECT: str(project), "MLFLOW_TRACKING_URI": store}
    environment["PATH"] = path_with_this_python()
    environment["DVC_SITE_CACHE_DIR"] = str(own / "dvc")
    environment.pop(_THREADS, None)
    read, write = os.pipe()
    log = own / LOG
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "onward.stages.fleet.pipeline", str(write)],
            cwd=project, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            pass_fds=[write], start_new_session=True,
        )  # fmt: skip
    os.close(write)
    try:
        if allowed is not None:
            os.sched_setaffinity(process.pid, allowed)
        assert process.stdin is not None
        process.stdin.write(job.model_dump_json().encode())
        process.stdin.close()
        stopped = ""
        for event in _events(read, process, time.monotonic() + timeout_s):
            received(event)
            stopped = event.reason if event.state == "stopped" else stopped
        if process.wait():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise Stopped(f"{stopped or f'the process ended with code {process.returncode}'}\n{tail}")
    finally:
        os.close(read)
        _kill(process)


def path_with_this_python() -> str:
    """PATH with the folder of this interpreter first: DVC runs stages with the `python` that is first there."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _events(read: int, process: subprocess.Popen[bytes], deadline: float) -> Iterator[Event]:
    """The events of the process until it closes its end of the pipe."""
    rest = b""
    while True:
        if time.monotonic() > deadline:
            raise Stopped("the time limit passed (--timeout)")
        # A short wait: an interruption by Ray does not end a blocked call.
        if not select.select([read], [], [], POLL_SECONDS)[0]:
            continue
        part = os.read(read, 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield Event.model_validate_json(line)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
