"""What the server tells others about each request, such as a recorder of samples.

    model.observers.append(recorder)

An observer runs in the thread that computed the answer, after the answer is known. So it must return at once: put the
observation into a bounded queue, and count what does not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from onward.registry.serve.protocol import Array

_LOG = logging.getLogger("onward.serve")

# success: the caller got outputs. invalid: the request was wrong. failed: the model or the machine failed.
# refused: the queue was full, or the caller did not wait for the answer.
Outcome = Literal["success", "invalid", "failed", "refused"]
# live: the environment's version answers. canary: a candidate answers. shadow: a candidate computed a copy of a
# request; its outputs were not sent.
Cause = Literal["live", "canary", "shadow"]


@dataclass(frozen=True)
class Observation:
    """One request, after its answer is known.

    Attributes:
        model: the name in URLs.
        target: the target of the version that computed, such as "cnn@production".
        version: the version that computed, as the response names it.
        sha256: its digest.
        entry: the number of its entry in the environment's log; 0 for a file or a version.
        request: the request's identifier; "" if it has none.
        arrived: when the request arrived, in seconds since 1970.
        latency_us: time from the arrival to the answer, in µs.
        queue_us: time before the model ran, in µs.
        compute_us: time of the model's run, in µs; of the whole batch if requests were joined.
        outcome: how it ended.
        inputs: arrays by name. They must not be changed.
        outputs: arrays by name; None without an answer. They must not be changed.
        cause: why this version computed it.
    """

    model: str
    target: str
    version: str
    sha256: str
    entry: int
    request: str
    arrived: float
    latency_us: float
    queue_us: float
    compute_us: float
    outcome: Outcome
    inputs: Mapping[str, Array] = field(repr=False)
    outputs: Mapping[str, Array] | None = field(repr=False)
    cause: Cause = "live"


class Observer(Protocol):
    """Receives observations."""

    def seen(self, request: Observation) -> None:
        """Take note of a request. Must not block and must not raise; may be called from several threads at once."""


def tell(observers: Iterable[Observer], observation: Observation) -> None:
    """Give an observation to all observers. One that raises is logged, and the request is answered anyway.

    Args:
        observers: the observers.
        observation: what they receive.
    """
    for observer in observers:
        try:
            observer.seen(observation)
        except Exception:
            _LOG.exception("%s: %s failed on a request; the answer is sent anyway", observation.model, observer)
