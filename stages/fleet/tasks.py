"""What runs on the cluster: the tasks, one for each phase of a model, and the board, which knows how far they are.

The board is an actor on the machine that started the fleet. Tasks report to it after every stage. If a machine is lost,
Ray runs its tasks again elsewhere, and they go on after the last stage that was reported.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onward.registry import processors
from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.records import Machine
from onward.registry.files import contents, write_atomically
from onward.stages.fleet import clone_process
from onward.stages.fleet.clone_process import Stopped
from onward.stages.fleet.locks import Entries
from onward.stages.fleet.packed import Pack, unpack
from onward.stages.fleet.phases import MEASURE, STAGES, Event, Job, Progress

HOST = ("build/host/machine.json", "build/host/toolchain.json")


class Board:
    """How far each model is. Only the newest attempt of a model's task may report.

    Args:
        models: What is known about each model.
    """

    def __init__(self, models: Mapping[str, Progress]) -> None:
        self._models = dict(models)
        self._changed: dict[str, int] = dict.fromkeys(models, 0)
        self._newest: dict[tuple[str, str], int] = {}
        self._clock = 0

    def begin(self, model: str, phase: str, node: str, host: str) -> tuple[int, Entries]:
        """Register an attempt of a task.

        Args:
            model: The model.
            phase: The phase.
            node: The machine.
            host: The class of machines that is measured, if it is not the main one.

        Returns:
            The attempt's number, and the entries of dvc.lock that are known so far. Those of a measurement on another
            machine are left out.
        """
        one = self._models[model]
        one.attempts += 1
        self._newest[model, host] = one.attempts
        one.state, one.phase, one.node, one.stage = "running", phase, node, ""
        self._touch(model)
        if not host:
            return one.attempts, one.lock
        others = {f"{stage}@{model}" for stage in STAGES[MEASURE]}
        lock = {name: entry for name, entry in one.lock.items() if name not in others}
        return one.attempts, {**lock, **one.elsewhere.get(host, {})}

    def report(self, model: str, host: str, attempt: int, event: Event) -> bool:
        """Take in an event of an attempt.

        Returns:
            Whether the attempt may go on. It may not if Ray has started another one, because it took the machine of
            this one for lost.
        """
        one = self._models[model]
        if attempt != self._newest[model, host]:
            return False
        stage = f"{event.stage} on {host}" if host else event.stage
        if event.verdict is not None:
            one.verdict, one.cells = event.verdict, event.cells
        elif event.state == "running":
            one.stage = stage
        elif event.state == "done":
            one.stage = ""
            if event.seconds:
                one.seconds[stage], one.nodes[stage] = event.seconds, one.node
                one.cpu_seconds[stage], one.ended[stage] = event.cpu_seconds, event.ended
            one.done += [stage] if stage not in one.done else []
            one.computed += [stage] if event.computed else []
            if host:
                one.elsewhere = {**one.elsewhere, host: event.lock}
            else:
                one.lock = {**one.lock, **event.lock}
        self._touch(model)
        return True

    def changes(self, since: int) -> tuple[int, list[Progress]]:
        """List the models that changed after a state of the board.

        Args:
            since: The number of the last state that the caller knows; -1 for none.

        Returns:
            The number of the present state, and the models.
        """
        return self._clock, [replace(self._models[model]) for model, at in self._changed.items() if at > since]

    def _touch(self, model: str) -> None:
        self._clock += 1
        self._changed[model] = self._clock


@dataclass(frozen=True)
class Outcome:
    """How a phase ended.

    Attributes:
        reason: Why it stopped without a verdict; empty if its stages are done.
        host: The files that describe the machine, by path.
        evidence: The files of a measurement on another class of machines than the main one, by path in their folder.
    """

    reason: str = ""
    host: Mapping[str, bytes] = field(default_factory=dict)
    evidence: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The class of machines that a measurement runs on.

    Attributes:
        name: Its name; empty for any machine.
        host: What its machines have in common; None for any machine.
        main: Whether it is the main class, whose measurement is the benchmark stage's own result.
    """

    name: str = ""
    host: HostClass | None = None
    main: bool = True

    @property
    def other(self) -> str:
        """Its name if it is not the main class."""
        return "" if self.main else self.name


@dataclass(frozen=True)
class Terms:
    """What all tasks of a run have in common.

    Attributes:
        run: The run's name.
        code: The digest of the Onward that started it.
        store: The URI of the MLflow store, with credentials.
        cache: The folder of DVC's cache; None for the machine's own one.
        remote: Whether results go through the team's DVC remote.
        processors: The number of processors for a pipeline, apart from measurements, which have all of a machine.
        timeout_s: The time limit of a phase in seconds.
    """

    run: str
    code: str
    store: str
    cache: str | None
    remote: bool
    processors: int
    timeout_s: float


def run_phase(
    pack: Pack, files: Mapping[str, bytes], model: str, phase: str, terms: Terms, target: Target, board: Any
) -> Outcome:
    """Run a phase of a model in a clean clone on this machine.

    Args:
        pack: The commit.
        files: The files to write into the clone.
        model: The model's name.
        phase: The phase.
        terms: What all tasks have in common.
        target: The class of machines that a measurement is about.
        board: The handle of the Board.

    Returns:
        How it ended.
    """
    import ray

    def asked(reference: Any) -> Any:
        """The answer of the board. While the main thread of a task waits for one, Ray gives its CPUs to other tasks."""
        return waiting.submit(ray.get, reference).result()

    waiting = ThreadPoolExecutor(1)
    attempt, lock = asked(board.begin.remote(model, phase, _machine(ray), target.other))
    cache = Path(terms.cache) if terms.cache else _own_cache()
    cache.mkdir(parents=True, exist_ok=True)
    job = Job(
        model=model, phase=phase, cache=str(cache), remote=terms.remote, run=terms.run, code=terms.code,
    )  # fmt: skip

    def received(event: Event) -> None:
        if not asked(board.report.remote(model, target.other, attempt, event)):
            raise Stopped("another machine took over")

    with tempfile.TemporaryDirectory(prefix="onward-fleet-", ignore_cleanup_errors=True) as folder, ExitStack() as held:
        clone = Path(folder) / "clone"
        clone.mkdir()
        project = unpack(pack, files, lock, clone)
        try:
            described = _describe_host(project, cache / f"host-{terms.run}")
            if phase == MEASURE and target.host is not None:
                _require(target.host, described)
            allowed = None if phase == MEASURE else held.enter_context(processors.reserved(terms.processors))
            clone_process.run(project, Path(folder), job, terms.store, allowed, terms.timeout_s, received)
        except Stopped as stopped:
            return Outcome(reason=str(stopped))
        evidence = contents(project / "build" / model / "benchmark") if target.other else {}
    return Outcome(host=described, evidence=evidence)


def _own_cache() -> Path:
    """The folder in which this machine keeps results between tasks and runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "onward" / "fleet"


def _machine(ray: Any) -> str:
    """The name of this node of the cluster, if it has one; else the host's name."""
    here = ray.get_runtime_context().get_node_id()
    named = next((node["NodeName"] for node in ray.nodes() if node["NodeID"] == here), "")
    return platform.node() if not named or named[0].isdigit() else str(named)


def _describe_host(project: Path, known: Path) -> dict[str, bytes]:
    """Write build/host in a clone, which describes the machine; it is determined once per machine and run."""
    if not all((project / path).is_file() for path in HOST):
        if not all((known / path).is_file() for path in HOST):
            command = [sys.executable, "-m", "onward.stages", "host"]
            done = subprocess.run(command, cwd=project, capture_output=True, text=True)
            if done.returncode:
                raise Stopped(f"the machine cannot be described: {done.stderr.strip()[-500:]}")
            for path in HOST:
                write_atomically(known / path, (project / path).read_bytes())
        for path in HOST:
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_bytes((known / path).read_bytes())
    return {path: (project / path).read_bytes() for path in HOST}


def _require(host: HostClass, described: Mapping[str, bytes]) -> None:
    """Check that the machine is of the class that its Ray resource says."""
    machine = Machine.model_validate(json.loads(described[HOST[0]])["machine"])
    if lacks := host.lacks(machine):
        raise Stopped(
            f"{platform.node()} offers this class of hosts to Ray, but {lacks}: start its Ray node with `onward fleet "
            "node`"
        )
