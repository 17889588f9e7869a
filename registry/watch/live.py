"""`onward serve --monitor`: judges the versions that a server answers with, while it answers.

Everything runs in a thread of its own, so requests never wait. If the store cannot be reached, the monitor goes on and
tries again.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.registry.errors import OnwardError
from onward.registry.evidence.shadow import MINIMUM
from onward.registry.monitoring import drift, reference
from onward.registry.monitoring.decay import Call
from onward.registry.monitoring.watch import Alarm, Deployment, Judgement, Watch, drift_window
from onward.registry.monitoring.windows import Reservoir
from onward.registry.serve.queued import QueuedObserver
from onward.registry.serve.recording import elements
from onward.registry.serve.versions import folder_of
from onward.registry.store.store import Store
from onward.registry.watch import evidence, response, results

if TYPE_CHECKING:
    from onward.registry.serve.metrics import Metrics
    from onward.registry.serve.observer import Observation
    from onward.registry.serve.served import ServedModel

_LOG = logging.getLogger("onward.monitor")
# Seconds of a window of errors and latencies: an alarm needs 3 of them, and a rollback should come within a minute.
DECAY_WINDOW_S = 10.0
# Requests of a drift window that are kept, those that it needs, and the largest tensors of one request.
_SAMPLES, LEAST_SAMPLES, _TENSOR_BYTES = 1000, 100, 64 * 2**10
# The tensors of a window that are kept, in bytes.
_WINDOW_BYTES = 32 * 2**20
# Seconds between two looks, between two writes of figures to MLflow, between two HTML reports, and between two attempts
# of the same response.
_EVERY_S, WRITE_EVERY_S, _DRAW_EVERY_S, _AGAIN_S = 1.0, 30.0, 600.0, 60.0


@dataclass
class _Served:
    """What is known of one served environment."""

    watch: Watch
    drift_begun: float
    sample: Reservoir[tuple[float, Mapping[str, Any], Mapping[str, Any]]]
    windows: list[drift.Summary] = field(default_factory=list)
    judge: drift.Judge | None = None
    notes: tuple[str, ...] = ()
    prepared: bool = False
    alarms: tuple[Alarm, ...] = ()
    response: str = ""
    rolled_back: bool = False
    acted: float = 0.0
    written: float = 0.0
    drawn: float = 0.0
    written_to: float = 0.0
    unwritten: str = ""


class LiveMonitor(QueuedObserver):
    """Watches the environments that a server serves.

    Args:
        models: the served models. Those that are no environments are not watched.
        metrics: where alarms and rollbacks are counted.
        window: the length of a drift window, in seconds. Windows of errors and latencies have 10 s, or this if it is
            shorter.
    """

    def __init__(self, models: Iterable[ServedModel], metrics: Metrics, window: float = 300.0) -> None:
        super().__init__("onward-monitor", min(_EVERY_S, window))
        self._models = {model.target: model for model in models if "@" in model.target}
        self._metrics, self._window = metrics, window
        self._served: dict[str, _Served] = {}

    def handle(self, request: Observation) -> None:
        """Take note of a request."""
        if request.cause != "live" or request.target not in self._models:
            return
        if request.outcome == "refused":  # too much load says nothing about the version
            return
        state = self._state(request)
        if state is None:
            return
        success = request.outcome == "success"
        call = Call(elements(request.inputs), request.compute_us / 1000) if success else None
        state.watch.add(request.arrived, request.outcome, call)
        if success:
            self._keep(state, request)

    def _keep(self, state: _Served, request: Observation) -> None:
        """Add a request to the drift window's sample, or not."""
        if not state.sample.seen:
            size = sum(
                array.nbytes for array in (*_small(request.inputs).values(), *_small(request.outputs or {}).values())
            )
            state.sample = Reservoir(max(LEAST_SAMPLES, min(_SAMPLES, _WINDOW_BYTES // max(1, size))))
        place = state.sample.place()
        if place is not None:
            state.sample.put(place, (request.arrived, _small(request.inputs), _small(request.outputs or {})))

    def dropped(self, request: Observation) -> None:
        """Count a request that did not fit into the queue. It is not judged."""
        self._metrics.count((request.model, request.version), onward_monitor_dropped=1)

    def tick(self, last: bool) -> None:
        """Judge, act, and write results where they are due."""
        for target, state in list(self._served.items()):
            self._prepare(target, state)
            self._end_window(state)
            state.watch.flush(time.time())
            self._judge(target, state, last)

    def judgements(self) -> list[Judgement]:
        """What is known of each environment now."""
        return [
            state.watch.judgement(self._shadow_alarms(target, state), state.notes)
            for target, state in self._served.items()
        ]

    def _state(self, request: Observation) -> _Served | None:
        """The state of the request's deployment; None if a newer one was seen already."""
        state = self._served.get(request.target)
        if state is not None and request.entry < state.watch.deployment.entry:
            return None
        if state is None or request.entry > state.watch.deployment.entry:
            before = state.watch.measure if state is not None else None
            deployment = Deployment(request.target, request.version, request.sha256, request.entry)
            watch = Watch(deployment, before, min(DECAY_WINDOW_S, self._window))
            state = self._served[request.target] = _Served(watch, time.time(), Reservoir(_SAMPLES))
        return state

    def _prepare(self, target: str, state: _Served) -> None:
        """Read the version's reference and its benchmark, once it is loaded."""
        loaded = self._models[target].session.loaded
        if state.prepared or int(loaded.origin.get("entry") or 0) != state.watch.deployment.entry:
            return
        state.prepared = True
        try:
            known = reference.read(folder_of(loaded))
        except (OnwardError, OSError) as error:
            state.notes = (f"drift: the version's reference cannot be read: {error}",)
        else:
            missing = drift.explain(known)
            state.notes = (f"drift: {missing}",) if missing else ()
            state.judge = None if missing else drift.Judge(known)
        watch = state.watch
        try:
            here = evidence.this_host(self._models[target])
            watch.baseline, watch.baseline_note = evidence.baseline(Store(create=False), loaded.evidence, here)
        except OnwardError as error:
            watch.baseline_note = f"latency: the version's benchmark cannot be read: {error}"

    def _end_window(self, state: _Served) -> None:
        """Judge drift if a window is over and has enough requests."""
        now = time.time()
        if now - state.drift_begun < self._window or len(state.sample.items) < LEAST_SAMPLES:
            return
        rows = sorted(state.sample.items, key=lambda row: row[0])
        state.sample, state.drift_begun = Reservoir(_SAMPLES), now
        if state.judge is not None:
            state.windows = [*state.windows, state.judge.summarise(drift_window(rows))][-drift.LAST :]
            state.watch.features = tuple(state.judge.judge(state.windows))

    def _judge(self, target: str, state: _Served, last: bool) -> None:
        model, _, environment = target.partition("@")
        found = state.watch.judgement(self._shadow_alarms(target, state), state.notes)
        alarms = found.alarms
        with contextlib.suppress(OnwardError):  # a mistake in params.yaml: the response says so
            alarms = tuple(response.wanted(alarms, environment))
        found = replace(found, alarms=alarms)
        labels = (self._models[target].name, found.deployment.version)
        kinds = [alarm.kind for alarm in alarms]
        self._metrics.set(
            labels,
            onward_drift=float(sum(one.alarm for one in found.features)),
            onward_decay=float(sum(kind in ("errors", "rejections", "latency") for kind in kinds)),
        )
        new = {alarm.kind for alarm in alarms} != {alarm.kind for alarm in state.alarms}
        state.alarms = alarms
        now = time.monotonic()
        if new:
            for alarm in alarms:
                _LOG.warning("%s: ALARM: %s", found.deployment, alarm)
        if alarms and not state.rolled_back and (new or now - state.acted >= _AGAIN_S):
            state.acted = now
            new = self._act(model, environment, state, labels) or new
        due = bool(found.periods) and found.periods[-1].end > state.written_to and now - state.written >= WRITE_EVERY_S
        if new or due or (last and found.periods):
            state.written = now
            with_page = new or last or now - state.drawn >= _DRAW_EVERY_S
            state.drawn = now if with_page else state.drawn
            self._write(model, environment, state, found, with_page)

    def _shadow_alarms(self, target: str, state: _Served) -> tuple[Alarm, ...]:
        """What is wrong with the candidate that the model's shadow compares with the live version."""
        shadow = self._models[target].shadow
        found = shadow.evidence if shadow is not None else None
        if found is None or found.requests < MINIMUM or found.live_sha256 != state.watch.deployment.sha256:
            return ()
        if not found.faults:
            return ()
        what = f"the candidate, version {found.version}, differs from it on {found.requests} requests"
        return (Alarm("shadow", f"{what}: {'; '.join(found.faults)}"),)

    def _act(self, model: str, environment: str, state: _Served, labels: tuple[str, str]) -> bool:
        """Do what the policy says about the alarms, and return whether the outcome is another one than before."""
        deployment = state.watch.deployment
        try:
            done = response.respond(Store(create=False), model, environment, deployment.entry, state.alarms)
        except OnwardError as error:  # such as a mistake in params.yaml
            done = response.Response(f"no automatic rollback: {error}")
        changed = done.text != state.response
        if done.text and changed:
            _LOG.warning("%s: %s", deployment, done.text)
        state.response, state.rolled_back = done.text, done.rolled_back
        if done.rolled_back:
            self._metrics.count(labels, onward_automatic_rollbacks=1)
        return changed

    def _write(self, model: str, environment: str, state: _Served, found: Judgement, with_page: bool) -> None:
        try:
            results.write(
                Store(create=False),
                model,
                environment,
                found,
                state.written_to,
                state.response,
                socket.gethostname(),
                with_page,
            )
        except OnwardError as error:
            if str(error) != state.unwritten:
                _LOG.warning("%s: the results could not be written to MLflow: %s", found.deployment, error)
            state.unwritten = str(error)
            return
        state.unwritten = ""
        if found.periods:
            state.written_to = found.periods[-1].end


def _small(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the tensors of numbers that are small enough to keep. A view would keep the whole batch in memory."""
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    return {
        name: array.copy()
        for name, array in arrays.items()
        if array.dtype.kind in "biuf" and array.nbytes <= _TENSOR_BYTES
    }
