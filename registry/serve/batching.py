"""A bounded queue of requests, and the threads that take them from it, one by one or joined to batches.

With a delay, a thread that takes a request waits up to this long for further ones that fit to it. The wait adapts. It
ends as soon as the batch has as many requests as the largest recent one, because callers that wait for their answers
send no more. One batch in PROBE waits for more, to notice new callers. A wait that brought nothing halves the next; a
batch of several requests restores it. A request never waits longer than the delay for others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onward.registry.serve.protocol import Fault

# An input without an axis of samples must be equal in all requests of a batch. Larger ones are not compared.
_LARGEST_SHARED_BYTES = 1024
# Below this share of the delay, a thread does not wait at all.
_LEAST_PATIENCE = 1 / 64
# The number of recent batches whose largest says how many requests to expect. One batch in PROBE expects more.
PROBE = 16


@dataclass(frozen=True)
class Batching:
    """How requests are queued and joined.

    Attributes:
        queue: requests that may wait; further ones get an error at once.
        delay_s: the longest time that a request waits for others, in s; 0 joins nothing.
        most: the most samples of a batch; None for the version's own best size.
    """

    queue: int = 64
    delay_s: float = 0.0
    most: int | None = None


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        given: the inputs by name.
        wanted: the only version that may answer; "" for any.
        request: the request's identifier.
        future: receives the answer, or a Fault.
        loop: the event loop of `future`.
        seconds: the time limit of the answer; nothing is computed after it.
        key: equal for requests that can be joined; None if this one cannot.
        samples: the number of its samples.
        most: the most samples of a batch that contains it.
        arrived: when it arrived, on the clock of time.perf_counter.
    """

    given: Mapping[str, Any]
    wanted: str
    request: str
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    seconds: float
    key: Hashable | None = None
    samples: int = 1
    most: int = 0
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def gone(self) -> bool:
        """Whether the answer is not needed any more: the caller left, or the time is over."""
        return self.future.cancelled() or time.perf_counter() > self.arrived + self.seconds

    def finish(self, result: Any) -> None:
        """Deliver the answer, or a Fault, from any thread."""
        try:
            self.loop.call_soon_threadsafe(_settle, self.future, result)
        except RuntimeError:  # the loop was closed, so the caller is gone
            return


@dataclass(eq=False)
class OwnJob(Job):
    """A request that the thread which received it computes itself, without the queue.

    Attributes:
        result: the answer, or a Fault; None before `finish`.
    """

    future: Any = None
    loop: Any = None
    seconds: float = 60.0
    result: Any = None

    @property
    def gone(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() > self.arrived + self.seconds

    def finish(self, result: Any) -> None:
        """Keep the answer, or a Fault."""
        self.result = result


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def key_of(axes: Mapping[str, int | None], given: Mapping[str, Any]) -> tuple[Hashable, int] | None:
    """What requests must have in common to be joined, and the number of samples of this one.

    Args:
        axes: the axis of samples of each input.
        given: the inputs by name.

    Returns:
        None if the request cannot be joined with others.
    """
    parts: list[Hashable] = []
    counts = set()
    for name in sorted(given):
        value, axis = given[name], axes.get(name)
        if not isinstance(value, np.ndarray) or name not in axes:
            return None
        shape = list(value.shape)
        if axis is None:
            if value.nbytes > _LARGEST_SHARED_BYTES or value.dtype.hasobject:
                return None
            parts.append((name, value.dtype.str, tuple(shape), value.tobytes()))
            continue
        if axis >= len(shape):
            return None
        counts.add(shape.pop(axis))
        parts.append((name, value.dtype.str, tuple(shape)))
    return (tuple(parts), counts.pop()) if len(counts) == 1 and 0 not in counts else None


class Batcher:
    """The queue and the threads of one model.

    Args:
        name: the name of the threads.
        run: computes jobs and finishes each of them. The jobs of one call have the same key.
        batching: the limits.
        workers: the number of threads.
    """

    def __init__(self, name: str, run: Callable[[list[Job]], None], batching: Batching, workers: int) -> None:
        self._name, self._run, self._batching = name, run, batching
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._collecting: set[Hashable] = set()
        self._taken = 0
        self._patience = batching.delay_s
        self._recent: deque[int] = deque(maxlen=PROBE)  # requests in recent batches
        self._batches = 0
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.workers = 0
        self.resize(workers)

    @property
    def pending(self) -> int:
        """The number of requests that wait or run."""
        return len(self._waiting) + self._taken

    def resize(self, workers: int) -> None:
        """Change the number of threads. Threads that are too many end after their run.

        Args:
            workers: the number of threads.
        """
        with self._changed:
            self.workers = workers
            running = {thread.name for thread in self._threads}
            for number in range(workers):
                name = f"onward-{self._name}-{number}"
                if name not in running:
                    self._threads.append(threading.Thread(target=self._work, args=(number,), name=name, daemon=True))
                    self._threads[-1].start()
            self._changed.notify_all()

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            Fault: the queue is full, or the server ends.
        """
        with self._changed:
            most = self.workers + self._batching.queue
            if self._closed:
                raise Fault(503, f"{self._name} is not served any more")
            if self.pending >= most:
                raise Fault(429, f"{self._name} has {most} requests already: try again later")
            self._waiting.append(job)
            # A thread that collects a batch must see each request; otherwise, one idle thread is enough.
            if self._collecting:
                self._changed.notify_all()
            else:
                self._changed.notify()

    def enter(self) -> bool:
        """Take the place of a thread for one run, if a thread is idle and nothing waits. `leave` gives it back."""
        with self._changed:
            if self._closed or self._waiting or self._taken >= self.workers:
                return False
            self._taken += 1
            return True

    def leave(self) -> None:
        """Give a thread's place back."""
        with self._changed:
            self._taken -= 1

    def withdraw(self, job: Job) -> bool:
        """Remove a request because its caller does not wait any more.

        Returns:
            False if the request runs already.
        """
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def close(self) -> None:
        """Let all requests finish, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _work(self, number: int) -> None:
        while jobs := self._take(number):
            try:
                self._run(jobs)
            finally:
                with self._changed:
                    self._taken -= len(jobs)

    def _take(self, number: int) -> list[Job]:
        """The next request, with others that can be joined; empty if the thread should end."""
        with self._changed:
            while True:
                if number >= self.workers:
                    self._threads.remove(threading.current_thread())
                    return []
                first = next((job for job in self._waiting if job.key is None or job.key not in self._collecting), None)
                if first is not None:
                    break
                if self._closed:
                    return []
                self._changed.wait()
            self._grab(first)
            return [first] if first.key is None else self._collect(first)

    def _collect(self, first: Job) -> list[Job]:
        """Add requests with the same key until the batch is full or the first one has waited long enough."""
        jobs, total = [first], first.samples
        until = first.arrived + self._patience
        self._collecting.add(first.key)
        waited = False
        try:
            while True:
                for job in [job for job in self._waiting if job.key == first.key]:
                    if total + job.samples <= first.most:
                        self._grab(job)
                        jobs.append(job)
                        total += job.samples
                left = until - time.perf_counter()
                if total >= first.most or left <= 0 or self._closed or self._enough(len(jobs)):
                    break
                waited = True
                self._changed.wait(left)
        finally:
            self._collecting.discard(first.key)
            if self._waiting:
                self._changed.notify_all()
        self._batches += 1
        self._recent.append(len(jobs))
        if len(jobs) > 1:
            self._patience = self._batching.delay_s
        elif waited:
            less = self._patience / 2
            self._patience = less if less > self._batching.delay_s * _LEAST_PATIENCE else 0.0
        return jobs

    def _enough(self, requests: int) -> bool:
        """Whether a batch has as many requests as can be expected."""
        return bool(self._recent) and self._batches % PROBE != 0 and requests >= max(self._recent)

    def _grab(self, job: Job) -> None:
        self._waiting.remove(job)
        self._taken += 1
