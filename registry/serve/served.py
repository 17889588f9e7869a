"""A served model: its session, its bounded queue of requests, and its way to follow its environment."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.registry import processors
from onward.registry.artifact.replay import BUNDLE, replay_in_subprocess
from onward.registry.artifact.serving_plan import PROVIDERS
from onward.registry.errors import MachineFault, OnwardError, Refused, StoreUnreachable, UsageError
from onward.registry.npz import arrays
from onward.registry.serve.observer import Observation, Observer, Outcome, tell
from onward.registry.serve.protocol import Fault, protocol_type

if TYPE_CHECKING:
    from onward.registry.evidence.records import TensorSpec
    from onward.registry.inference.model import Loaded
    from onward.registry.inference.session import InferenceSession
    from onward.registry.serve.metrics import Metrics

_LOG = logging.getLogger("onward.serve")
# Runs of the recorded inputs before a version gets requests, because first runs allocate memory.
WARM_UPS = 3
# The number of events that the server remembers for each model.
EVENTS = 50


@dataclass(frozen=True)
class Event:
    """Something that happened to a model: a version was loaded, or was refused.

    Attributes:
        at: when, in UTC, as ISO 8601.
        kind: "loaded", "refused" or "unreachable".
        text: what happened.
    """

    at: str
    kind: str
    text: str


@dataclass(frozen=True)
class Answer:
    """The outputs of a request.

    Attributes:
        version: the version that computed them.
        outputs: arrays by name.
    """

    version: str
    outputs: dict[str, np.ndarray[Any, Any]]


class ServedModel:
    """A model that the server offers.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or a path.
        name: the name in URLs.
        session: the loaded session.
        metrics: where requests are counted.
        queue: how many requests may wait; further ones get an error at once.
        workers: how many requests run at the same time; None for as many as this process has processors for.
    """

    def __init__(
        self,
        target: str,
        name: str,
        session: InferenceSession,
        metrics: Metrics,
        queue: int,
        workers: int | None = None,
    ) -> None:
        self.target, self.name, self.session, self._metrics = target, name, session, metrics
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.observers: list[Observer] = []
        self.reachable = not session.loaded.origin.get("cached", False)
        self.ready = False
        self._workers = workers or max(1, processors.count() // _threads(session.loaded))
        self._most = self._workers + queue
        self._pending = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix=f"onward-{name}")

    def start(self) -> None:
        """Replay the recorded inputs on this host and warm the model up; then it is ready.

        Raises:
            Refused: the model does not repeat its recorded answers here.
        """
        loaded = self.session.loaded
        folder = _folder(loaded)
        if (folder / BUNDLE).is_dir() or loaded.origin.get("version"):
            met, detail = replay_in_subprocess(folder, loaded.providers[0], allow_custom_ops=loaded.allow_custom_ops)
            if not met:
                raise Refused(f"{self.target}: version {version_of(loaded)} does not repeat its answers here: {detail}")
        warm_up(loaded)
        self.ready = True
        words = "" if self.reachable else "; the registry cannot be reached, and this version was live at the last look"
        self._note("loaded", f"version {version_of(loaded)} on {loaded.providers[0]}{words}")

    def follow(self) -> bool:
        """Load the version that is live now, if it is another one. A version that fails never serves.

        Returns:
            whether another version serves now.
        """
        before = version_of(self.session.loaded)
        try:
            changed = self.session.refresh(prepare=warm_up)
        except StoreUnreachable as error:
            if self.reachable:
                self._note("unreachable", f"version {before} stays: {error}")
            self.reachable = False
            self._gauges()
            return False
        except (OnwardError, OSError) as error:
            self.reachable = True
            text = f"version {before} stays: {error}"
            if not self.events or self.events[-1].text != text:
                self._metrics.count((self.name, before), onward_refused_versions=1)
                self._note("refused", text)
            return False
        self.reachable = True
        if changed:
            loaded = self.session.loaded
            self._metrics.count((self.name, version_of(loaded)), onward_swaps=1)
            self._note("loaded", f"version {version_of(loaded)} after version {before}")
        self._gauges()
        return changed

    async def infer(self, given: Mapping[str, Any], wanted: str = "", request: str = "") -> Answer:
        """Compute the outputs of a request, on the version that is loaded when the request starts to run.

        Args:
            given: the inputs by name.
            wanted: the only version that may answer; "" for any.
            request: the request's identifier, for observers.

        Raises:
            Fault: the inputs are not what the model documents, the queue is full, or another version is loaded.
        """
        with self._lock:
            if self._pending >= self._most:
                self._metrics.count((self.name, version_of(self.session.loaded)), nv_inference_request_failure=1)
                self._observe(self.session.loaded, given, request, "refused")
                raise Fault(429, f"{self.name} has {self._most} requests already: try again later")
            self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._run, given, wanted, request, time.perf_counter()
            )
        finally:
            with self._lock:
                self._pending -= 1

    def close(self) -> None:
        """Let running requests finish, and stop the threads."""
        self.ready = False
        self._pool.shutdown()

    def _run(self, given: Mapping[str, Any], wanted: str, request: str, arrived: float) -> Answer:
        begun = time.perf_counter()
        loaded = self.session.loaded
        version = version_of(loaded)
        labels = (self.name, version)
        try:
            if wanted and wanted != version:
                raise Fault(404, f"{self.name} has version {version} loaded, not {wanted}")
            outputs = named_outputs(loaded, given)
        except UsageError as error:
            self._metrics.count(labels, nv_inference_request_failure=1)
            self._observe(loaded, given, request, "invalid", (arrived, begun))
            raise Fault(400, str(error)) from None
        except MachineFault as error:
            self._metrics.count(labels, nv_inference_request_failure=1)
            self._observe(loaded, given, request, "failed", (arrived, begun))
            raise Fault(500, str(error)) from None
        except Fault:
            self._metrics.count(labels, nv_inference_request_failure=1)
            self._observe(loaded, given, request, "invalid", (arrived, begun))
            raise
        ended = time.perf_counter()
        self._metrics.count(
            labels,
            nv_inference_request_success=1,
            nv_inference_exec_count=1,
            nv_inference_count=_samples(loaded, given),
            nv_inference_request_duration_us=(ended - arrived) * 1e6,
            nv_inference_queue_duration_us=(begun - arrived) * 1e6,
            nv_inference_compute_infer_duration_us=(ended - begun) * 1e6,
        )
        self._observe(loaded, given, request, "success", (arrived, begun, ended), outputs)
        return Answer(version, outputs)

    def _observe(
        self,
        loaded: Loaded,
        given: Mapping[str, Any],
        request: str,
        outcome: Outcome,
        times: tuple[float, ...] = (),
        outputs: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        """Tell the observers of a request. `times` are its arrival, its begin and its end on the monotonic clock."""
        if not self.observers:
            return
        now = time.perf_counter()
        arrived, begun, ended = (*times, *(now, now, now)[len(times) :])
        seen = Observation(
            model=self.name,
            target=self.target,
            version=version_of(loaded),
            sha256=str(loaded.origin.get("sha256", "")),
            entry=int(loaded.origin.get("entry", 0)),
            request=request,
            arrived=time.time() - (now - arrived),
            latency_us=(ended - arrived) * 1e6,
            queue_us=(begun - arrived) * 1e6,
            compute_us=(ended - begun) * 1e6,
            outcome=outcome,
            inputs=given,
            outputs=outputs,
        )
        tell(self.observers, seen)

    def _note(self, kind: str, text: str) -> None:
        self.events.append(Event(datetime.now(UTC).isoformat(timespec="milliseconds"), kind, text))
        _LOG.log(logging.INFO if kind == "loaded" else logging.WARNING, "%s: %s: %s", self.target, kind, text)
        self._gauges()

    def _gauges(self) -> None:
        loaded = self.session.loaded
        self._metrics.set(
            (self.name, version_of(loaded)),
            onward_ready=float(self.ready),
            onward_live_entry=float(loaded.origin.get("entry", 0)),
            onward_registry_reachable=float(self.reachable),
            onward_queued_requests=float(self._pending),
        )


def version_of(loaded: Loaded) -> str:
    """The version of a loaded model, as responses name it; the beginning of its digest for a file."""
    version = loaded.origin.get("version")
    return str(version) if version else str(loaded.origin.get("sha256", ""))[:12] or "1"


def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as the protocol describes them: name, datatype and shape, with -1 for an open size.

    Args:
        specs: the inputs or outputs of the graph.
    """
    return [
        {
            "name": spec.name,
            "datatype": protocol_type(spec.dtype),
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape or ()],
        }
        for spec in specs
    ]


def named_outputs(loaded: Loaded, given: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a model once.

    Args:
        loaded: the model.
        given: the inputs by name.

    Returns:
        all outputs by name.
    """
    found = loaded.predict((dict(given),), {})
    return found if isinstance(found, dict) else {loaded.output_names[0]: found}


def warm_up(loaded: Loaded) -> None:
    """Run a model some times on its recorded inputs, if it has any.

    Raises:
        OnwardError: the model rejects its recorded inputs.
    """
    file = _folder(loaded) / BUNDLE / "inputs.npz"
    if file.is_file():
        recorded = arrays(file)
        for _ in range(WARM_UPS):
            named_outputs(loaded, recorded)


def _folder(loaded: Loaded) -> Path:
    """The folder of a version: it contains files for other runtimes in providers/NAME."""
    parent = loaded.path.parent
    return parent.parent.parent if parent.parent.name == PROVIDERS else parent


def _threads(loaded: Loaded) -> int:
    served = loaded.metadata().served
    return (served.options.threads if served and served.options.threads else 0) or processors.count()


def _samples(loaded: Loaded, given: Mapping[str, Any]) -> int:
    axes = loaded.sample_axes
    for name, value in given.items():
        axis = axes.get(name)
        if axis is not None and np.ndim(value) > axis:
            return int(np.shape(value)[axis])
    return 1
