"""A served model: the session that follows its environment, the engine that answers, and its canary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from onward.registry.serve.batching import Batching
from onward.registry.serve.engine import Answer, Engine
from onward.registry.serve.events import Events
from onward.registry.serve.following import Follower
from onward.registry.serve.observer import Observer
from onward.registry.serve.versions import version_of, workers_for

if TYPE_CHECKING:
    from onward.registry.inference.session import InferenceSession
    from onward.registry.serve.canary import Canary
    from onward.registry.serve.metrics import Metrics
    from onward.registry.serve.shadow import Shadow


@dataclass(frozen=True)
class Sizes:
    """How much a model computes at the same time.

    Attributes:
        batching: how requests are queued and joined.
        workers: the number of runs at the same time; None for as many as the processors and the version's threads
            allow.
    """

    batching: Batching = field(default_factory=Batching)
    workers: int | None = None


class ServedModel:
    """A model that the server offers.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or a path.
        name: the name in URLs.
        session: the loaded session.
        metrics: where requests are counted.
        sizes: how much it computes at the same time.
    """

    def __init__(
        self, target: str, name: str, session: InferenceSession, metrics: Metrics, sizes: Sizes | None = None
    ) -> None:
        self.target, self.name, self._metrics, self.sizes = target, name, metrics, sizes or Sizes()
        self.events = Events()
        self.observers: list[Observer] = []
        self.canary: Canary | None = None
        self.shadow: Shadow | None = None
        self._follower = Follower(target, name, self.events, metrics, session)
        self._engine = Engine(
            name,
            target,
            lambda: self.session.loaded,
            metrics,
            self.observers,
            self.sizes.batching,
            self.sizes.workers or workers_for(session.loaded),
        )
        self._closed = False
        metrics.read(
            "onward_queued_requests",
            lambda: ((name, version_of(self.session.loaded)), float(self._engine.batcher.pending)),
        )

    @property
    def session(self) -> InferenceSession:
        """The session."""
        return self._follower.session

    @property
    def reachable(self) -> bool:
        """Whether the last look at the registry succeeded."""
        return self._follower.reachable

    @property
    def ready(self) -> bool:
        """Whether the model is loaded, replayed and warmed up."""
        return self._follower.ready and not self._closed

    def start(self) -> None:
        """Replay the recorded inputs on this host and warm the model up; then it is ready.

        Raises:
            Refused: the model does not repeat its recorded answers here.
        """
        self._follower.start()
        self._gauges()

    def follow(self) -> bool:
        """Load the version that is live now, if it is another one. A version that fails never serves.

        Returns:
            whether another version serves now.
        """
        changed = self._follower.follow()
        if changed and self.sizes.workers is None:
            self._engine.batcher.resize(workers_for(self.session.loaded))
        self._gauges()
        return changed

    async def infer(
        self, given: Mapping[str, Any], wanted: str = "", request: str = "", seconds: float = 60.0
    ) -> Answer:
        """Compute the outputs of a request, on the version that is loaded when the request starts to run.

        Args:
            given: the inputs by name.
            wanted: the only version that may answer; "" for any.
            request: the request's identifier, for observers.
            seconds: the time limit. A request that is older is not computed any more.

        Raises:
            Fault: the inputs are not what the model documents, the queue is full, or another version is loaded.
        """
        canary = self.canary
        if canary is not None and not wanted and canary.takes(self.session.loaded):
            return await canary.answer(given, request, seconds, partial(self._engine.answer, given, "", request))
        return await self._engine.answer(given, wanted, request, seconds)

    def at_once(
        self, given: Mapping[str, Any], wanted: str = "", request: str = "", seconds: float = 60.0
    ) -> Answer | None:
        """Compute a short run without the queue; see Engine.at_once. A canary needs the queue."""
        return None if self.canary is not None else self._engine.at_once(given, wanted, request, seconds)

    def close(self) -> None:
        """Let running requests finish, and stop the threads."""
        self._closed = True
        for beside in (self.canary, self.shadow):
            if beside is not None:
                beside.close()
        self._engine.batcher.close()

    def _gauges(self) -> None:
        loaded = self.session.loaded
        self._metrics.set(
            (self.name, version_of(loaded)),
            onward_ready=float(self.ready),
            onward_live_entry=float(loaded.origin.get("entry", 0)),
            onward_registry_reachable=float(self.reachable),
        )
