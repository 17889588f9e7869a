"""Records the machine's load during a benchmark, so that readers can judge whether something disturbed it."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

FILE = "system.json"
# Seconds between samples. A sample takes about a millisecond of one core, so it does not disturb a measurement.
INTERVAL = 2.0
# With more samples, every second one is dropped and the interval doubles.
MOST_SAMPLES = 400


class SystemLog:
    """Samples CPU, memory and load in a thread, for the length of a `with` block; then writes system.json.

    Args:
        folder: Where system.json is written.

    Attributes:
        started: When the block was entered: UTC, in ISO 8601, to the second.
        ended: When it was left.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._samples: list[dict[str, float]] = []
        self.started = self.ended = ""

    def __enter__(self) -> SystemLog:
        self.started = _now()
        psutil.cpu_percent()  # the first call only starts the interval
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.ended = _now()
        if kind is None:
            content: dict[str, Any] = {"samples": [*self._samples, self._one()]}
            (self._folder / FILE).write_text(json.dumps(content, indent=1) + "\n")

    def _sample(self) -> None:
        interval = INTERVAL
        while not self._stop.wait(interval):
            self._samples.append(self._one())
            if len(self._samples) > MOST_SAMPLES:
                del self._samples[::2]
                interval *= 2

    def _one(self) -> dict[str, float]:
        """One sample; the names are those of MLflow's own system metrics where it has them."""
        memory = psutil.virtual_memory()
        found = {
            "timestamp": round(time.time(), 3),
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round((memory.total - memory.available) / 1e6, 1),
            "system_memory_usage_percentage": memory.percent,
            "load_average": round(psutil.getloadavg()[0], 2),
        }
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        if frequency is not None and frequency.current:
            found["cpu_frequency_megahertz"] = round(frequency.current, 1)
        return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
