"""Computes the answers of one session: checks each request, joins those that fit together, and splits the answers.

A batch runs on one version, and each request of it keeps its own error: inputs are checked before they are joined, and
if the joined run fails, the requests run one by one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.registry.errors import OnwardError, UsageError
from onward.registry.evidence.sample_axes import part
from onward.registry.serve.batching import Batcher, Batching, Job, OwnJob, key_of
from onward.registry.serve.observer import Cause, Observation, Observer, Outcome, tell
from onward.registry.serve.protocol import Array, Fault
from onward.registry.serve.versions import largest_batch, samples_of, sha256_of, version_of

if TYPE_CHECKING:
    from onward.registry.inference.model import Loaded
    from onward.registry.serve.metrics import Metrics

_LOG = logging.getLogger("onward.serve")
Outputs = dict[str, Array]
# Runs shorter than this are computed in the thread of the event loop: a thread would take longer to wake up.
AT_ONCE_S = 0.00025
_Ready = tuple[Job, dict[str, Array]]  # a request, and its checked inputs


@dataclass(frozen=True)
class Answer:
    """The outputs of a request.

    Attributes:
        version: the version that computed them.
        outputs: arrays by name.
    """

    version: str
    outputs: Outputs


class Engine:
    """The requests of one session.

    Args:
        name: the model's name in URLs.
        target: the target of the session.
        loaded: returns the model that is loaded now.
        metrics: where requests are counted.
        observers: who sees each request.
        batching: how requests are queued and joined.
        workers: how many runs happen at the same time.
        cause: why this session computes.
    """

    def __init__(
        self,
        name: str,
        target: str,
        loaded: Callable[[], Loaded],
        metrics: Metrics,
        observers: Sequence[Observer],
        batching: Batching,
        workers: int,
        cause: Cause = "live",
    ) -> None:
        self._name, self._target, self._loaded = name, target, loaded
        self._metrics, self._observers, self._batching, self._cause = metrics, observers, batching, cause
        self._short: tuple[str, int] = ("", -1)  # of a version: its file, and the most input bytes of a short run
        self._limit: tuple[str, int] = ("", 0)  # of a version: its digest, and its largest batch
        self.batcher = Batcher(name if cause == "live" else f"{name}-{cause}", self._run, batching, workers)

    async def answer(self, given: Mapping[str, Any], wanted: str, request: str, seconds: float) -> Answer:
        """Compute the outputs of a request, on the version that is loaded when the request starts to run.

        Args:
            given: the inputs by name.
            wanted: the only version that may answer; "" for any.
            request: the request's identifier.
            seconds: the time limit. A request that is older is not computed any more.

        Raises:
            Fault: the inputs are not what the model documents, the queue is full, or another version is loaded.
        """
        loop = asyncio.get_running_loop()
        job = Job(given, wanted, request, loop.create_future(), loop, seconds)
        if self._batching.delay_s > 0:
            self._plan(job)
        try:
            self.batcher.submit(job)
        except Fault:
            self._seen(self._loaded(), job, "refused")
            raise
        try:
            answer: Answer = await job.future
        except asyncio.CancelledError:
            if self.batcher.withdraw(job):
                self._seen(self._loaded(), job, "refused")
            raise
        return answer

    def at_once(self, given: Mapping[str, Any], wanted: str, request: str, seconds: float) -> Answer | None:
        """Compute a request in this thread, if that is quicker than to wake another one: its run is short.

        Args:
            given: as in `answer`.
            wanted: as in `answer`.
            request: as in `answer`.
            seconds: as in `answer`.

        Returns:
            None if the run may be long, requests may be joined, or others wait. Then `answer` computes it.

        Raises:
            Fault: as in `answer`.
        """
        file, most = self._short
        if self._batching.delay_s > 0 or size_of(given) > most or file != str(self._loaded().path):
            return None
        if not self.batcher.enter():
            return None
        try:
            job = OwnJob(given, wanted, request, seconds=seconds)
            self._run([job])
        finally:
            self.batcher.leave()
        if isinstance(job.result, BaseException):
            raise job.result
        if job.gone:
            raise Fault(504, f"{self._name} did not answer within {seconds:g} s")
        answer: Answer = job.result
        return answer

    def _time(self, loaded: Loaded, given: Mapping[str, Any], seconds: float) -> None:
        """Remember whether a run was short."""
        size, (file, most) = size_of(given), self._short
        if file != str(loaded.path):
            most = -1
        self._short = (str(loaded.path), max(most, size) if seconds < AT_ONCE_S else min(most, size - 1))

    def _plan(self, job: Job) -> None:
        """Set what the request can be joined with."""
        loaded = self._loaded()
        most = self._most(loaded)
        found = key_of(loaded.sample_axes, job.given) if most > 1 else None
        if found is not None:
            job.key, job.samples, job.most = (job.wanted, *found[:1]), found[1], most

    def _most(self, loaded: Loaded) -> int:
        """The largest batch of a version; 0 if its requests are not joined."""
        known = str(loaded.path)
        if self._limit[0] != known:
            self._limit = (known, largest_batch(loaded, self._batching.most))
        return self._limit[1]

    def _run(self, jobs: list[Job]) -> None:
        """Compute requests, and finish each of them."""
        loaded = self._loaded()
        try:
            ready = self._check(loaded, jobs)
            total = sum(job.samples for job, _ in ready)
            if len(ready) > 1 and total <= self._most(loaded) and self._joined(loaded, ready):
                return
            for one in ready:
                self._alone(loaded, one)
        except Exception:
            _LOG.exception("%s: a request failed inside the server", self._name)
            for job in jobs:
                job.finish(Fault(500, f"{self._name}: the server failed on the request; see its log"))

    def _check(self, loaded: Loaded, jobs: list[Job]) -> list[_Ready]:
        """The requests that can be computed, with their inputs. The others are finished."""
        ready = []
        for job in jobs:
            if job.gone:
                self._seen(loaded, job, "refused")
                job.finish(Fault(504, f"{self._name} did not begin within {job.seconds:g} s"))
                continue
            version = version_of(loaded)
            try:
                if job.wanted and job.wanted != version:
                    raise Fault(404, f"{self._name} has version {version} loaded, not {job.wanted}")
                ready.append((job, loaded.checked(job.given)))
            except UsageError as error:
                self._fail(loaded, job, "invalid", Fault(400, str(error)))
            except Fault as fault:
                self._fail(loaded, job, "invalid", fault)
        return ready

    def _alone(self, loaded: Loaded, one: _Ready) -> None:
        job, feed = one
        begun = time.perf_counter()
        try:
            outputs = compute(loaded, feed)
        except UsageError as error:
            self._fail(loaded, job, "invalid", Fault(400, str(error)), begun)
            return
        except OnwardError as error:
            self._fail(loaded, job, "failed", Fault(500, str(error)), begun)
            return
        ended = time.perf_counter()
        self._time(loaded, job.given, ended - begun)
        samples = samples_of(loaded.sample_axes, feed)
        self._count_run(loaded, samples)
        self._succeed(loaded, job, outputs, samples, begun, ended)

    def _joined(self, loaded: Loaded, ready: list[_Ready]) -> bool:
        """Compute requests in one run; False if that is not possible. Then nothing was finished."""
        axes, counts = loaded.sample_axes, [samples_of(loaded.sample_axes, feed) for _, feed in ready]
        begun = time.perf_counter()
        try:
            outputs = compute(loaded, _join(axes, [feed for _, feed in ready]))
        except (OnwardError, ValueError):  # ValueError: a swap changed what a request needs
            return False
        ended = time.perf_counter()
        total = sum(counts)
        if any(np.ndim(value) <= (axes[n] or 0) or value.shape[axes[n] or 0] != total for n, value in outputs.items()):
            return False
        self._count_run(loaded, total)
        at = 0
        for (job, _), count in zip(ready, counts, strict=True):
            own = {name: part(value, axes[name], at, count).copy() for name, value in outputs.items()}
            self._succeed(loaded, job, own, count, begun, ended)
            at += count
        return True

    def _count_run(self, loaded: Loaded, samples: int) -> None:
        labels = (self._name, version_of(loaded))
        self._metrics.count(labels, nv_inference_exec_count=1)
        self._metrics.observe_batch(labels, samples)

    def _succeed(self, loaded: Loaded, job: Job, outputs: Outputs, samples: int, begun: float, ended: float) -> None:
        self._metrics.count(
            (self._name, version_of(loaded)),
            nv_inference_request_success=1,
            nv_inference_count=samples,
            nv_inference_request_duration_us=(ended - job.arrived) * 1e6,
            nv_inference_queue_duration_us=(begun - job.arrived) * 1e6,
            nv_inference_compute_infer_duration_us=(ended - begun) * 1e6,
        )
        job.finish(Answer(version_of(loaded), outputs))
        self._tell(loaded, job, "success", begun, ended, outputs)

    def _fail(self, loaded: Loaded, job: Job, outcome: Outcome, fault: Fault, begun: float | None = None) -> None:
        job.finish(fault)
        self._seen(loaded, job, outcome, begun)

    def _seen(self, loaded: Loaded, job: Job, outcome: Outcome, begun: float | None = None) -> None:
        """Count a request without an answer, and tell the observers."""
        self._metrics.count((self._name, version_of(loaded)), nv_inference_request_failure=1)
        now = time.perf_counter()
        self._tell(loaded, job, outcome, now if begun is None else begun, now)

    def _tell(
        self, loaded: Loaded, job: Job, outcome: Outcome, begun: float, ended: float, outputs: Outputs | None = None
    ) -> None:
        if not self._observers:
            return
        seen = Observation(
            model=self._name,
            target=self._target,
            version=version_of(loaded),
            sha256=sha256_of(loaded),
            entry=int(loaded.origin.get("entry", 0)),
            request=job.request,
            arrived=time.time() - (time.perf_counter() - job.arrived),
            latency_us=(ended - job.arrived) * 1e6,
            queue_us=(begun - job.arrived) * 1e6,
            compute_us=(ended - begun) * 1e6,
            outcome=outcome,
            inputs=job.given,
            outputs=outputs,
            cause=self._cause,
        )
        tell(self._observers, seen)


def size_of(given: Mapping[str, Any]) -> int:
    """The size of a request's inputs in bytes.

    Args:
        given: the inputs by name.
    """
    return sum(int(getattr(value, "nbytes", 0)) for value in given.values())


def compute(loaded: Loaded, feed: Mapping[str, Array]) -> Outputs:
    """Run a model on checked inputs.

    Args:
        loaded: the model.
        feed: the array of each input, by name.

    Raises:
        OnwardError: the runtime failed.
    """
    return loaded.run(feed)


def _join(axes: Mapping[str, int | None], feeds: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inputs of several requests as one, along their axes of samples. Inputs without such an axis are equal."""
    return {
        name: value if axes[name] is None else np.concatenate([feed[name] for feed in feeds], axes[name] or 0)
        for name, value in feeds[0].items()
    }
