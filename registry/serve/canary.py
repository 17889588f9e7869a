"""A canary: a candidate answers a share of the requests, until it fails on too many that the live version answers.

A request that fails on the candidate is sent to the live version, so no request is lost. If the live version fails on
it, too, the request is to blame and counts for neither. Each other request is one observation of the candidate: right
or wrong. The candidate is stopped by Page's cumulative sum (E. S. Page, Continuous inspection schemes, Biometrika 41,
1954) of the log likelihood ratio between an acceptable and an unacceptable share of errors. It stops after 4 errors in
a row at most, and a long time without errors does not delay the stop.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onward.registry.serve.engine import Answer, Engine
from onward.registry.serve.observer import Observer
from onward.registry.serve.protocol import Fault
from onward.registry.serve.versions import identity_of, version_of, workers_for

if TYPE_CHECKING:
    from onward.registry.inference.model import Loaded
    from onward.registry.serve.events import Events
    from onward.registry.serve.following import Follower
    from onward.registry.serve.metrics import Metrics
    from onward.registry.serve.served import Sizes

# The share of requests that fail on the candidate alone: one that is accepted, and one that is not.
ACCEPTED = 0.001
UNACCEPTABLE = 0.01
# The mean number of requests until a false stop is at least 1 / FALSE_STOPS (G. Lorden, Procedures for reacting to a
# change in distribution, Annals of Mathematical Statistics 42, 1971).
FALSE_STOPS = 1e-4
# The candidate gets this share of a request's time limit. The rest is left for the live version.
SHARE_OF_TIME = 0.5
# Faults that say nothing about the candidate: its queue is full, or it is not served any more.
_BUSY = (429, 503)


class ErrorRule:
    """Decides from one request after the other whether the candidate's errors are too many."""

    def __init__(self) -> None:
        self.sum = 0.0

    def wrong(self) -> bool:
        """Count a request that failed on the candidate alone, and return whether to stop it."""
        self.sum += math.log(UNACCEPTABLE / ACCEPTED)
        return self.sum >= -math.log(FALSE_STOPS)

    def right(self) -> None:
        """Count a request that the candidate answered."""
        self.sum = max(0.0, self.sum + math.log((1 - UNACCEPTABLE) / (1 - ACCEPTED)))


class Canary:
    """The canary of a served model.

    Args:
        name: the model's name in URLs.
        candidate: the candidate, which follows its own environment.
        percent: the share of requests that it answers, in percent.
        metrics: where its requests are counted.
        observers: who sees each of its requests.
        events: the model's events.
        sizes: how much it computes at the same time.
    """

    def __init__(
        self,
        name: str,
        candidate: Follower,
        percent: float,
        metrics: Metrics,
        observers: Sequence[Observer],
        events: Events,
        sizes: Sizes,
    ) -> None:
        self._name, self.candidate, self._share = name, candidate, percent / 100
        self._metrics, self._observers, self._events, self._sizes = metrics, observers, events, sizes
        self._lock = threading.Lock()
        self._rule = ErrorRule()
        self._judged = ("", "")  # the identity of the version that `_rule` judges
        self._stopped = False
        self._engine: Engine | None = None
        self._random = random.Random()

    def takes(self, live: Loaded) -> bool:
        """Whether the candidate answers the next request.

        Args:
            live: the live version. A candidate with the same files has nothing to answer.
        """
        loaded = self.candidate.loaded
        if loaded is None or identity_of(loaded) == identity_of(live):
            return False
        if identity_of(loaded) != self._judged:
            self._begin(loaded)
        return not self._stopped and self._random.random() < self._share

    async def answer(
        self, given: Mapping[str, Any], request: str, seconds: float, live: Callable[[float], Awaitable[Answer]]
    ) -> Answer:
        """Let the candidate answer a request, and the live version if the candidate fails.

        Args:
            given: the inputs by name.
            request: the request's identifier.
            seconds: the time limit of the request.
            live: computes the request on the live version, within the given seconds.

        Raises:
            Fault: as `live`.
        """
        engine, loaded = self._engine, self.candidate.loaded
        if engine is None or loaded is None:
            return await live(seconds)
        begun, limit = time.perf_counter(), seconds * SHARE_OF_TIME
        self._metrics.count((self._name, version_of(loaded)), onward_canary_requests=1)
        try:
            answer = await asyncio.wait_for(engine.answer(given, "", request, limit), limit)
        except Fault as fault:
            problem, blamed = fault.message, fault.status not in _BUSY
        except TimeoutError:
            problem, blamed = f"no answer within {limit:g} s", True
        else:
            with self._lock:
                self._rule.right()
            return answer
        answer = await live(max(0.0, seconds - (time.perf_counter() - begun)))
        if blamed:
            self._count_error(loaded, problem)
        return answer

    def close(self) -> None:
        """Let running requests finish, and stop the threads."""
        if self._engine is not None:
            self._engine.batcher.close()

    def _begin(self, loaded: Loaded) -> None:
        """Begin with a version of the candidate's environment."""
        with self._lock:
            if identity_of(loaded) == self._judged:
                return
            self._judged, self._stopped, self._rule = identity_of(loaded), False, ErrorRule()
            if self._engine is None:
                target, workers = self.candidate.target, self._sizes.workers or workers_for(loaded)
                self._engine = Engine(
                    self._name, target, self._now, self._metrics, self._observers, self._sizes.batching, workers,
                    "canary",
                )  # fmt: skip
        self._metrics.set((self._name, version_of(loaded)), onward_canary_share=self._share)
        text = f"version {version_of(loaded)} answers {100 * self._share:g} % of the requests of {self._name}"
        self._events.note(self.candidate.target, "canary started", text)

    def _now(self) -> Loaded:
        return self.candidate.session.loaded

    def _count_error(self, loaded: Loaded, problem: str) -> None:
        """Count a request that failed on the candidate and not on the live version."""
        labels = (self._name, version_of(loaded))
        self._metrics.count(labels, onward_canary_errors=1)
        with self._lock:
            if self._stopped or identity_of(loaded) != self._judged or not self._rule.wrong():
                return
            self._stopped = True
        self._metrics.count(labels, onward_canary_stops=1)
        self._metrics.set(labels, onward_canary_share=0.0)
        text = (
            f"version {version_of(loaded)} gets no more requests of {self._name}: it failed on too many that the live "
            f"version answered; the last error: {problem}"
        )
        self._events.note(self.candidate.target, "canary stopped", text)
