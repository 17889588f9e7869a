"""The process that runs one phase of a model's pipeline in a clean clone.

    python -m onward.stages.fleet.pipeline FD < job.json

Reads a Job from stdin, runs the stages of its phase with DVC, and writes an Event per line to the file descriptor FD.
DVC and the stages print to stdout and stderr, which the task keeps as the log. DVC is used as a library, because each
of its commands takes as long to start as a quick stage runs.

The exit code is 0 if all stages of the phase left a report, whatever its verdict.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from onward.registry.errors import NotReady, OnwardError
from onward.stages.config import paths
from onward.stages.config.code import installed
from onward.stages.fleet import dvc_data, locks
from onward.stages.fleet.phases import FINISH, JOINED, STAGES, Event, Job

if TYPE_CHECKING:
    from dvc.repo import Repo

PARENT_CHECK_SECONDS = 1.0
_RUNS = "runs"


def main() -> int:
    """Run the phase of the job on stdin; returns the exit code."""
    _end_with_parent()
    job = Job.model_validate_json(sys.stdin.buffer.read())
    with os.fdopen(int(sys.argv[1]), "w") as events:
        return _run(job, events)


def _run(job: Job, events: TextIO) -> int:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    def send(event: Event) -> None:
        events.write(event.model_dump_json() + "\n")
        events.flush()

    repo = Repo(config={"cache": {"dir": job.cache}, "core": {"analytics": False, "check_update": False}})
    stage = ""
    try:
        _require_code(job.code)
        if job.remote:
            _pull_run_cache_once(repo, job)
        dvc_data.bring(repo, job.remote)
        _restore(repo, job)
        if (paths.root() / JOINED).is_dir():
            send(_joined(repo, job))
        for stage in STAGES[job.phase]:
            send(Event(stage=stage, state="running"))
            send(_reproduced(repo, stage, job))
        if job.phase == FINISH:
            send(_verdict(job.model))
    except (DvcException, OnwardError, OSError) as error:
        send(Event(stage=stage, state="stopped", reason=_words(error)))
        return 1
    finally:
        repo.close()
    return 0


def _verdict(model: str) -> Event:
    """The verdict about a model."""
    from onward.stages.reports import found
    from onward.stages.verdict import cells, facts, row_of  # takes a quarter of a second

    row = row_of(model, found(model))
    return Event(verdict=facts(row), cells=cells(row))


def _restore(repo: Repo, job: Job) -> None:
    """Put the results of earlier phases into the clone."""
    from dvc.exceptions import CheckoutError

    phases = list(STAGES)
    earlier = [f"{stage}@{job.model}" for phase in phases[: phases.index(job.phase)] for stage in STAGES[phase]]
    if not earlier:
        return
    try:
        repo.checkout(earlier, force=True)  # quicker than to pull, if this machine ran the earlier phases
    except CheckoutError:
        if not job.remote:
            raise
        repo.pull(earlier)


def _joined(repo: Repo, job: Job) -> Event:
    """Add the measurements on other classes of machines to the main one, as a part of the benchmark's results."""
    from onward.stages.select import ELSEWHERE

    name = f"benchmark@{job.model}"
    shutil.copytree(paths.root() / JOINED, paths.build(job.model, "benchmark") / ELSEWHERE, dirs_exist_ok=True)
    repo.commit(name, force=True)
    if job.remote:
        repo.push(name)
    return Event(stage="benchmark", lock={name: locks.load(paths.root() / locks.LOCK)[name]})


def _reproduced(repo: Repo, stage: str, job: Job) -> Event:
    """Bring one stage up to date; push its results if the remote is in use."""
    name = f"{stage}@{job.model}"
    begun, wall, used = time.monotonic(), time.time(), _children_seconds()
    with _commands() as commands:
        repo.reproduce(name, single_item=True, pull=job.remote)
    if job.remote:
        repo.push(name)
        _push_run_cache(repo, wall)
    return Event(
        stage=stage,
        seconds=round(time.monotonic() - begun, 2),
        cpu_seconds=round(_children_seconds() - used, 2),
        ended=time.time(),
        computed=bool(commands),
        lock={name: locks.load(paths.root() / locks.LOCK)[name]},
    )


@contextlib.contextmanager
def _commands() -> Iterator[list[str]]:
    """Collect DVC's messages that it runs a stage's command, rather than restoring known results."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("Running stage"):
                found.append(record.getMessage())

    listener, logger = Listener(), logging.getLogger("dvc.stage.run")
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)


def _require_code(wanted: str) -> None:
    """Refuse to run with another Onward: its stages would give other results under the same settings.

    Raises:
        NotReady: This machine has another one.
    """
    if installed() != wanted:
        raise NotReady(
            f"{platform.node()} has another version of Onward than the machine that started the run "
            f"(here {version('onward')}): install the same one on all machines"
        )


def _children_seconds() -> float:
    """The CPU time of all ended child processes of this one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _pull_run_cache_once(repo: Repo, job: Job) -> None:
    """Copy the remote's run cache to this machine's, once per machine and run.

    With `pull`, DVC copies all of it before every stage, which takes longer the more models there are.
    """
    from dvc.stage.cache import RunCacheNotSupported

    mark = Path(job.cache) / f"run-cache-{job.run}"
    with open(mark, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not mark.stat().st_size:
            with contextlib.suppress(RunCacheNotSupported):
                repo.stage_cache.pull(None)
            file.write("pulled\n")
    repo.stage_cache.pull = lambda *_, **__: []


def _push_run_cache(repo: Repo, since: float) -> None:
    """Copy the entries of this machine's run cache that are newer than a time to the remote.

    DVC itself would copy all entries every time.
    """
    from dvc.exceptions import DvcException

    local = Path(repo.cache.legacy.path)
    try:
        remote = repo.cloud.get_remote_odb(None, "push --run-cache", hash_name="md5-dos2unix")
    except DvcException:  # an HTTP remote has no run cache; without it, dvc.lock alone says what is known
        return
    for path in (local / _RUNS).glob("*/*/*"):
        if path.stat().st_mtime >= since - 1:
            target = remote.fs.join(remote.path, path.relative_to(local).as_posix())
            remote.fs.makedirs(remote.fs.parent(target), exist_ok=True)
            remote.fs.put_file(str(path), target)


def _end_with_parent() -> None:
    """End this process and all that it started as soon as its parent is gone, which a killed machine's task is."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _words(error: Exception) -> str:
    """An error and its causes on one line."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        if str(cause) and str(cause) not in found:
            found.append(str(cause))
        cause = cause.__cause__
    return "; ".join(found)


if __name__ == "__main__":
    sys.exit(main())
