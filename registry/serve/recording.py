"""Records a sample of the requests of `onward serve --record FOLDER`.

Each window of time has a uniform sample of its requests, which becomes one file (registry/monitoring/recorded.py).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onward.registry.errors import UsageError
from onward.registry.monitoring import recorded
from onward.registry.monitoring.recorded import Row, Tensor
from onward.registry.monitoring.windows import Reservoir
from onward.registry.serve.queued import QueuedObserver

if TYPE_CHECKING:
    from onward.registry.serve.metrics import Metrics
    from onward.registry.serve.observer import Observation

_LOG = logging.getLogger("onward.serve")
Keep = Literal["keep", "hash", "drop"]
KEEPS = ("keep", "hash", "drop")


@dataclass(frozen=True)
class Recording:
    """What is recorded, and for how long it is kept.

    Attributes:
        folder: where the files are written.
        window: the length of a window, in seconds.
        samples: the number of requests of a window that are recorded.
        keep: what is recorded of a tensor, by its name or by MODEL/NAME: the values, a digest, or nothing. Without an
            entry, numbers are kept, and texts are dropped.
        tensor_bytes: of a larger tensor, only a digest is recorded.
        most_bytes: the largest size of the folder's files. The oldest files are deleted.
        hours: the age at which a file is deleted.
    """

    folder: Path
    window: float = 60.0
    samples: int = 200
    keep: Mapping[str, Keep] = field(default_factory=dict)
    tensor_bytes: int = 64 * 2**10
    most_bytes: int = 10**9
    hours: float = 30 * 24


class Recorder(QueuedObserver):
    """Samples requests, and writes them to files.

    Args:
        recording: what is recorded.
        metrics: where recorded and dropped requests are counted.
        hosts: the fingerprint of host and provider, by the model's name in URLs.

    Raises:
        UsageError: the folder cannot be made or written to.
    """

    def __init__(self, recording: Recording, metrics: Metrics, hosts: Mapping[str, str]) -> None:
        super().__init__("onward-record", min(1.0, recording.window))
        self._recording, self._metrics, self._hosts = recording, metrics, hosts
        self._server = secrets.token_hex(8)
        self._begun = _begin(recording.window)
        self._windows: dict[str, Reservoir[Row]] = defaultdict(lambda: Reservoir(recording.samples))
        self._names: dict[str, str] = {}
        _require_writable(recording.folder)

    def handle(self, request: Observation) -> None:
        """Add a request to the window's sample, or not."""
        self.tick(last=False)
        self._names[request.target] = request.model
        reservoir = self._windows[request.target]
        place = reservoir.place()
        if place is not None:
            reservoir.put(place, self._row(request))

    def dropped(self, request: Observation) -> None:
        """Count a request that did not fit into the queue."""
        self._metrics.count((request.model, request.version), onward_recording_dropped=1)

    def tick(self, last: bool) -> None:
        """Write the window if it is over."""
        now = _begin(self._recording.window)
        if now == self._begun and not last:
            return
        windows, begun = dict(self._windows), self._begun
        self._windows.clear()
        self._begun = now
        for target, reservoir in windows.items():
            self._write(target, reservoir.items, begun)
        if windows:
            recorded.expire(self._recording.folder, self._recording.hours, self._recording.most_bytes, time.time())

    def _write(self, target: str, rows: list[Row], begun: float) -> None:
        versions: defaultdict[str, int] = defaultdict(int)
        for row in rows:
            versions[row.version] += 1
        model = self._names[target]
        try:
            recorded.write(self._recording.folder, target, rows, begun, self._server)
        except OSError as error:
            _LOG.warning("%s: %d recorded requests are lost: %s", target, len(rows), error)
            for version, count in versions.items():
                self._metrics.count((model, version), onward_recording_dropped=count)
            return
        for version, count in versions.items():
            self._metrics.count((model, version), onward_recorded_requests=count)

    def _row(self, request: Observation) -> Row:
        return Row(
            target=request.target,
            version=request.version,
            sha256=request.sha256,
            entry=request.entry,
            host=self._hosts.get(request.model, ""),
            request=request.request,
            arrived=request.arrived,
            latency_us=request.latency_us,
            queue_us=request.queue_us,
            compute_us=request.compute_us,
            outcome=request.outcome,
            cause=request.cause,
            size=elements(request.inputs),
            # The names and types of an invalid request are the caller's, so no rule for tensors fits them.
            inputs=self._tensors(request.model, request.inputs) if request.outcome != "invalid" else (),
            outputs=self._tensors(request.model, request.outputs or {}),
        )

    def _tensors(self, model: str, arrays: Mapping[str, Any]) -> tuple[Tensor, ...]:
        keep, found = self._recording.keep, []
        for name, value in arrays.items():
            numbers = np.asarray(value).dtype.kind in "biuf"
            rule = keep.get(f"{model}/{name}") or keep.get(name) or ("keep" if numbers else "drop")
            found.append(recorded.to_tensor(name, value, rule, self._recording.tensor_bytes))
        return tuple(found)


def parse_keep(texts: list[str]) -> dict[str, Keep]:
    """Read the values of `--record-tensor`.

    Args:
        texts: NAME=keep, NAME=hash or NAME=drop. NAME may be MODEL/NAME.

    Raises:
        UsageError: a value has another form, or a name has two values.
    """
    found: dict[str, Keep] = {}
    for text in texts:
        name, _, rule = text.rpartition("=")
        if not name or rule not in KEEPS:
            raise UsageError(f"--record-tensor {text!r}: write NAME=keep, NAME=hash or NAME=drop")
        if name in found:
            raise UsageError(f"--record-tensor: {name!r} is given twice")
        found[name] = rule  # type: ignore[assignment]  # one of KEEPS
    return found


def elements(arrays: Mapping[str, Any]) -> int:
    """The number of elements of all arrays together."""
    return sum(int(np.size(value)) for value in arrays.values())


def _begin(window: float) -> float:
    """When the present window began, in seconds since 1970."""
    return time.time() // window * window


def _require_writable(folder: Path) -> None:
    """Make the folder, which only its owner can read, and check that files can be written to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".onward-{secrets.token_hex(8)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--record {folder}: cannot be written to: {error.strerror}") from None
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("--record needs the package pyarrow: pip install 'onward[monitoring]'") from None
