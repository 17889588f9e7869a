"""A shadow: a candidate computes a share of the live version's requests, too, and its answers are only compared.

This happens outside the request path: in a thread of its own with low priority, behind a bounded queue that drops and
counts. For the latency, that thread runs both versions on the same request, in turns, because the times of different
threads, batches and moments could not be compared.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from onward.registry.errors import OnwardError
from onward.registry.evidence.shadow import ShadowEvidence
from onward.registry.serve.agreement import Judge, Outputs, Pair, agreement
from onward.registry.serve.observer import Observation
from onward.registry.serve.versions import identity_of, samples_of, version_of

if TYPE_CHECKING:
    from onward.registry.inference.model import Loaded
    from onward.registry.serve.events import Events
    from onward.registry.serve.following import Follower
    from onward.registry.serve.metrics import Metrics

_LOG = logging.getLogger("onward.serve")
_QUEUE = 32
_QUEUE_BYTES = 64 * 2**20
# Compared outputs that are kept for the judgement: a uniform sample of all requests.
_KEPT = 2000
_KEPT_BYTES = 64 * 2**20
_NICE = 10
# Seconds between two judgements.
JUDGE_S = 10.0


@dataclass
class Tally:
    """What was compared of one candidate with one live version.

    Attributes:
        candidate: the candidate.
        live: the live version.
    """

    candidate: Loaded
    live: Loaded
    requests: int = 0
    failed: int = 0
    began: str = field(default_factory=lambda: _now())
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    pairs: list[Pair] = field(default_factory=list)
    random: random.Random = field(default_factory=random.Random)

    def add(self, wanted: Outputs, got: Outputs, ratio: float) -> None:
        """Add a request that both versions computed.

        Args:
            wanted: the live version's outputs.
            got: the candidate's outputs.
            ratio: the candidate's run time over the live version's.
        """
        self.requests += 1
        self.ratios.append(ratio)
        room = max(16, min(_KEPT, _KEPT_BYTES // max(1, 2 * _bytes(wanted))))
        if len(self.pairs) < room:
            self.pairs.append((wanted, got))
        elif (place := self.random.randrange(self.requests)) < room:  # reservoir sampling (Vitter 1985, algorithm R)
            self.pairs[place % len(self.pairs)] = (wanted, got)

    def evidence(self, environment: str) -> ShadowEvidence:
        """Judge what was compared so far.

        Args:
            environment: the environment of the live version.
        """
        outputs = Judge(self.candidate).judge(self.pairs)
        kept = agreement(outputs) * (1 - self.failed / self.requests if self.requests else 1.0)
        axes = self.candidate.sample_axes
        (sha256, manifest), (live_sha256, live_manifest) = identity_of(self.candidate), identity_of(self.live)
        return ShadowEvidence(
            environment=environment,
            version=version_of(self.candidate),
            sha256=sha256,
            manifest=manifest,
            live_version=version_of(self.live),
            live_sha256=live_sha256,
            live_manifest=live_manifest,
            requests=self.requests,
            failed=self.failed,
            samples=sum(samples_of(axes, wanted) for wanted, _ in self.pairs),
            agreement=kept,
            latency_ratio=statistics.median(self.ratios) if self.ratios else 0.0,
            outputs=outputs,
            began=self.began,
            ended=_now(),
            host=socket.gethostname(),
        )


class Shadow:
    """The shadow of a served model. It is an observer of that model.

    Args:
        name: the model's name in URLs.
        environment: the environment of the live version; "" if it has none.
        live: returns the live version that is loaded now.
        candidate: the candidate, which follows its own environment.
        share: the share of requests that it computes, 0 to 1.
        metrics: where its requests are counted.
        events: the model's events.
        keep: receives the evidence after each judgement.
    """

    def __init__(
        self,
        name: str,
        environment: str,
        live: Callable[[], Loaded],
        candidate: Follower,
        share: float,
        metrics: Metrics,
        events: Events,
        keep: Callable[[ShadowEvidence], object],
    ) -> None:
        self._name, self._environment, self._live, self.candidate = name, environment, live, candidate
        self._share, self._metrics, self._events, self._keep = share, metrics, events, keep
        self.evidence: ShadowEvidence | None = None
        self._tally: Tally | None = None
        self._judged = 0
        self._queue: queue.Queue[Observation] = queue.Queue(_QUEUE)
        self._bytes = 0
        self._lock = threading.Lock()
        self._random = random.Random()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"onward-shadow-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Judge what was compared, and end the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def seen(self, request: Observation) -> None:
        """Queue a copy of a request, or drop and count it."""
        loaded = self.candidate.loaded
        if request.cause != "live" or request.outputs is None or loaded is None:
            return
        if identity_of(loaded) == identity_of(self._live()) or self._random.random() >= self._share:
            return
        size = _bytes(request.inputs) + _bytes(request.outputs)
        with self._lock:
            fits = not self._bytes or self._bytes + size <= _QUEUE_BYTES
            if fits:
                try:
                    self._queue.put_nowait(request)
                    self._bytes += size
                    return
                except queue.Full:
                    pass
        self._metrics.count((self._name, version_of(loaded)), onward_shadow_dropped=1)

    def _work(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # not available on every system
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        next_judgement = time.monotonic() + JUDGE_S
        while not self._stop.is_set():
            try:
                request = self._queue.get(timeout=min(1.0, JUDGE_S))
            except queue.Empty:
                request = None
            if request is not None:
                with self._lock:
                    self._bytes -= _bytes(request.inputs) + _bytes(request.outputs or {})
            try:
                if request is not None:
                    self._compare(request)
                if time.monotonic() >= next_judgement:
                    next_judgement = time.monotonic() + JUDGE_S
                    self._judge()
            except Exception:
                _LOG.exception("%s: the comparison of a request failed; the shadow goes on", self.candidate.target)
        self._judge()

    def _compare(self, request: Observation) -> None:
        """Run both versions on a request, and note the answers and the times."""
        live, candidate = self._live(), self.candidate.loaded
        if candidate is None or request.outputs is None:
            return
        labels = (self._name, version_of(candidate))
        if version_of(live) != request.version or identity_of(live)[0] != request.sha256:
            self._metrics.count(labels, onward_shadow_dropped=1)
            return
        tally = self._current(candidate, live)
        self._metrics.count(labels, onward_shadow_requests=1)
        try:
            first, second = (candidate, live) if tally.requests % 2 else (live, candidate)
            times = {id(first): _run(first, request), id(second): _run(second, request)}
            (seconds, got), (live_seconds, _) = times[id(candidate)], times[id(live)]
        except OnwardError:
            tally.requests += 1
            tally.failed += 1
            self._metrics.count(labels, onward_shadow_failed=1)
            return
        tally.add(request.outputs, got, seconds / max(live_seconds, 1e-9))

    def _current(self, candidate: Loaded, live: Loaded) -> Tally:
        """The tally of two versions. Another version on either side begins a new one."""
        tally, pair = self._tally, (identity_of(candidate), identity_of(live))
        if tally is None or (identity_of(tally.candidate), identity_of(tally.live)) != pair:
            self._judge()
            self._tally = tally = Tally(candidate, live)
            self._judged = 0
            text = f"version {version_of(candidate)} is compared with version {version_of(live)}"
            self._events.note(self.candidate.target, "shadow started", text)
        return tally

    def _judge(self) -> None:
        tally = self._tally
        if tally is None or tally.requests == self._judged:
            return
        self._judged = tally.requests
        self.evidence = found = tally.evidence(self._environment)
        self._metrics.set(
            (self._name, found.version),
            onward_shadow_agreement=found.agreement,
            onward_shadow_latency_ratio=found.latency_ratio,
        )
        if self._environment:
            self._keep(found)


def _run(loaded: Loaded, request: Observation) -> tuple[float, Outputs]:
    """The seconds that a run takes, and its outputs."""
    feed = loaded.checked(request.inputs)
    begun = time.perf_counter()
    outputs = loaded.run(feed)
    return time.perf_counter() - begun, outputs


def _bytes(arrays: Outputs) -> int:
    return sum(int(array.nbytes) for array in arrays.values())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
