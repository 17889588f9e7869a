"""An observer that hands requests to a thread of its own, over a bounded queue.

The thread that answers a request only puts it into the queue. If the queue is full, the observation is dropped and
counted, so the request never waits.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onward.registry.serve.observer import Observation

_LOG = logging.getLogger("onward.serve")
# Requests that may wait, and the bytes of their tensors. A request can have 64 MB, so their number is not enough.
MOST_REQUESTS, MOST_BYTES = 2000, 64 * 2**20


class QueuedObserver(ABC):
    """Base of observers that may take their time.

    Args:
        name: the name of its thread.
        every: seconds between two calls of `tick`.
    """

    def __init__(self, name: str, every: float) -> None:
        self._queue: queue.SimpleQueue[tuple[Observation, int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._bytes = 0
        self._every, self._closed, self._logged = every, False, ""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def seen(self, request: Observation) -> None:
        """Put a request into the queue, or count it as dropped. Never blocks."""
        size = _bytes(request.inputs) + _bytes(request.outputs or {})
        with self._lock:
            fits = not self._closed and self._waiting < MOST_REQUESTS and self._bytes + size <= MOST_BYTES
            if fits:
                self._waiting += 1
                self._bytes += size
                self._queue.put((request, size))  # a SimpleQueue never blocks here
        if not fits:
            self.dropped(request)

    def close(self, timeout_s: float = 30.0) -> None:
        """Handle the requests in the queue, and end the thread.

        Args:
            timeout_s: the longest time to wait, in seconds.
        """
        with self._lock:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout_s)

    @abstractmethod
    def handle(self, request: Observation) -> None:
        """Handle a request. Called in the observer's own thread."""

    @abstractmethod
    def dropped(self, request: Observation) -> None:
        """Count a request that did not fit. Called in the thread that answered it, so it must not block."""

    @abstractmethod
    def tick(self, last: bool) -> None:
        """Do what is due. Called in the observer's own thread, every `every` seconds and at the end.

        Args:
            last: whether the thread ends now.
        """

    def _run(self) -> None:
        due, ended = time.monotonic() + self._every, False
        while not ended:
            try:
                found = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                pass
            else:
                ended = found is None
                if found is not None:
                    self._handle(*found)
            if ended or time.monotonic() >= due:
                self._attempt("its regular work", self.tick, ended)
                due = time.monotonic() + self._every

    def _handle(self, request: Observation, size: int) -> None:
        with self._lock:
            self._waiting -= 1
            self._bytes -= size
        self._attempt("a request", self.handle, request)

    def _attempt(self, what: str, function: Any, argument: Any) -> None:
        try:
            function(argument)
        except Exception as error:
            if repr(error) != self._logged:  # the same fault may come with each request
                _LOG.exception("%s: %s failed; requests are answered as before", self._thread.name, what)
            self._logged = repr(error)


def _bytes(tensors: Mapping[str, Any]) -> int:
    return sum(
        sum(map(len, value.ravel().tolist())) if value.dtype.hasobject else int(value.nbytes)
        for value in tensors.values()
        if isinstance(value, np.ndarray)
    )
