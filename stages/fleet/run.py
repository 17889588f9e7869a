"""Runs the pipelines of many models on a Ray cluster, and follows them.

Each model goes through three phases, each a task of Ray on any machine that has what the phase needs. Ray decides where
and when tasks run. This module submits the next phase of a model when one has ended, saves what is known after every
stage, and at the end writes one dvc.lock.
"""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onward.registry import checkout, ray_cluster
from onward.registry.errors import UsageError
from onward.registry.host import hardware
from onward.registry.store.connection import tracking_uri
from onward.stages.fleet import cluster, hosts, locks, packed, plan
from onward.stages.fleet.hosts import wanted
from onward.stages.fleet.phases import FINISH, JOINED, MEASURE, PREPARE, Progress
from onward.stages.fleet.plan import FINAL, Plan
from onward.stages.fleet.tasks import Board, Outcome, Target, Terms, run_phase
from onward.stages.select import HOST_CLASS

POLL_SECONDS = 0.5
# How often Ray runs a task again after the machine was lost.
RETRIES = 5
# Models that are under way at a time, per CPU of the cluster. A limit lets measurements, which wait until a machine is
# free, have their turn before all models are prepared.
AHEAD = 4
CANCEL_SECONDS = 20.0


@dataclass
class Result:
    """What came of a run.

    Attributes:
        run: The run's name.
        commit: The commit.
        models: The progress of each model.
        seconds: How long the run took.
        known: The models that an earlier run had ended.
        merged: Whether dvc.lock was written.
        interrupted: Whether the user ended the run.
    """

    run: str
    commit: str
    models: dict[str, Progress] = field(default_factory=dict)
    seconds: float = 0.0
    known: list[str] = field(default_factory=list)
    merged: bool = False
    interrupted: bool = False


def run(
    models: list[str],
    address: str | None,
    revision: str | None,
    processors: int,
    timeout_s: float,
    watch: Callable[[Mapping[str, Progress]], None],
) -> Result:
    """Run the pipelines of models.

    Args:
        models: Their names; empty for all.
        address: The Ray cluster; None to start one on this machine.
        revision: The git revision; None for the commit that is checked out.
        processors: The number of CPUs of each pipeline.
        timeout_s: The time limit of a phase in seconds.
        watch: Called with the progress of all models, whenever some was made and at least every second.

    Returns:
        What came of it. Models that were stopped by a fault of a machine say why.

    Raises:
        UsageError: There are mistakes in params.yaml or the arguments, or the set-up lacks something.
    """
    ray_cluster.require_ray()
    begun = time.monotonic()
    commit = packed.commit_of(revision)
    store = tracking_uri()
    made = plan.make(models, commit, store)
    if address is not None:
        ray_cluster.require_reachable(store)
        _require_remote(made)
    terms = Terms(
        run=f"{int(time.time()):x}-{uuid.uuid4().hex[:6]}",
        code=made.code,
        store=store,
        cache=made.cache if address is None else None,
        remote=address is not None,
        processors=processors,
        timeout_s=timeout_s,
    )
    progress = plan.known(made)
    result = Result(terms.run, commit, progress, known=[m for m, one in progress.items() if one.state in FINAL])
    for one in progress.values():
        if one.state not in FINAL:
            one.state, one.reason = "waiting", ""
    watch(progress)
    if len(result.known) < len(progress):
        offered = hosts.offered(hardware.describe(), made.hosts)
        with ray_cluster.connected(address, offered) as ray:
            cluster.require_hosts(ray.nodes(), made.hosts, processors)
            _Driver(ray, made, terms, progress, watch).drive(result)
    if commit == packed.commit_of("HEAD"):
        locks.update(checkout.root() / locks.LOCK, [one.lock for one in progress.values()])
        plan.complete_checkout()
        result.merged = True
    result.seconds = time.monotonic() - begun
    return result


def _require_remote(made: Plan) -> None:
    """Check that the machines of a cluster can share results."""
    if not made.has_remote:
        raise UsageError(
            "the machines of a cluster share results through DVC's default remote, and there is none: "
            "`dvc remote add --default NAME URL`"
        )


class _Driver:
    """Submits tasks and follows them."""

    def __init__(
        self, ray: Any, made: Plan, terms: Terms, progress: dict[str, Progress],
        watch: Callable[[Mapping[str, Progress]], None],
    ) -> None:  # fmt: skip
        self.ray, self.plan, self.terms, self.progress, self.watch = ray, made, terms, progress, watch
        # The first class of machines is the main one.
        self.targets = [Target(name, host, not number) for number, (name, host) in enumerate(made.hosts.items())]
        self.targets = self.targets or [Target()]
        self.pack = ray.put(made.pack)
        self.task = ray.remote(run_phase)
        self.running: dict[Any, tuple[str, str, Target]] = {}
        self.measured: dict[str, dict[str, Outcome]] = {}
        self.clock = -1
        self.interrupted = False
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        waiting = {model: one for model, one in progress.items() if one.state not in FINAL}
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(waiting)

    def drive(self, result: Result) -> None:
        """Run all models that are not in a final state; an interruption by the user ends all tasks."""
        waiting = [model for model, one in self.progress.items() if one.state not in FINAL]
        ahead = max(1, round(AHEAD * self.ray.cluster_resources().get("CPU", 1)))
        with self._noting_interrupts(), contextlib.suppress(KeyboardInterrupt):  # the second one ends the loop at once
            while (waiting or self.running) and not self.interrupted:
                while waiting and len({model for model, _, _ in self.running.values()}) < ahead:
                    self._submit(waiting.pop(0), PREPARE)
                ended, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
                self._catch_up()
                for reference in ended:
                    self._ended(*self.running.pop(reference), reference)
                self.watch(self.progress)
        if waiting or self.running:
            result.interrupted = True
            self._cancel()

    @contextlib.contextmanager
    def _noting_interrupts(self) -> Iterator[None]:
        """Note the first Ctrl-C, and let the second one interrupt as usual.

        As an exception, the first one would be lost if it came while Python runs a destructor, and Ray has many.
        """

        def note(*_: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _submit(self, model: str, phase: str, target: Target | None = None) -> None:
        target = target or Target()
        files = {**self.plan.files[model], **(self._evidence(model) if phase == FINISH else {})}
        task = self.task.options(max_retries=RETRIES, **wanted(phase, target.name, self.terms.processors))
        reference = task.remote(self.pack, files, model, phase, self.terms, target, self.board)
        self.running[reference] = model, phase, target
        self.progress[model].phase = phase

    def _evidence(self, model: str) -> dict[str, bytes]:
        """The files of the measurements that the last phase needs: the main machine, and all of the other classes."""
        found: dict[str, bytes] = {}
        for target in self.targets:
            outcome = self.measured[model][target.name]
            if target.main:
                found |= outcome.host
            else:
                assert target.host is not None
                found |= {f"{JOINED}/{target.name}/{path}": data for path, data in outcome.evidence.items()}
                found[f"{JOINED}/{target.name}/{HOST_CLASS}"] = target.host.model_dump_json().encode()
        return found

    def _ended(self, model: str, phase: str, target: Target, reference: Any) -> None:
        """Submit the next phase of a model, or note what came of it."""
        one = self.progress[model]
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            outcome = Outcome(reason=f"Ray could not run it: {ray_cluster.cause(error)}")
        if outcome.reason:
            one.reason = one.reason or outcome.reason
            for other, (name, _, _) in list(self.running.items()):
                if name == model:
                    self.ray.cancel(other)
        elif phase == PREPARE:
            one.state = "waiting"
            for measured in self.targets:
                self._submit(model, MEASURE, measured)
            return
        elif phase == MEASURE:
            self.measured.setdefault(model, {})[target.name] = outcome
            if len(self.measured[model]) == len(self.targets):
                one.state = "waiting"
                self._submit(model, FINISH)
            return
        one.state = "stopped" if one.reason else str((one.verdict or {}).get("verdict", "failed"))
        one.stage, one.node = "", ""
        plan.remember(self.plan, one)

    def _catch_up(self) -> None:
        """Take over what tasks have reported; save it, so that another run goes on from here."""
        self.clock, changed = self.ray.get(self.board.changes.remote(self.clock))
        for new in changed:
            old = self.progress[new.model]
            if old.state == "stopped":
                continue
            if (new.lock, new.elsewhere) != (old.lock, old.elsewhere):
                plan.remember(self.plan, new)
            self.progress[new.model] = new

    def _cancel(self) -> None:
        """End all tasks; what they have finished is kept."""
        for reference in self.running:
            self.ray.cancel(reference)
        with contextlib.suppress(KeyboardInterrupt):  # once more: do not wait
            if self.running:  # Ray refuses to wait for nothing
                self.ray.wait(list(self.running), num_returns=len(self.running), timeout=CANCEL_SECONDS)
        self._catch_up()
        for one in self.progress.values():
            if one.state not in (*FINAL, "stopped"):
                one.state = "cancelled"
