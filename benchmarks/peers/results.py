"""What was measured, as it is kept in against_peers.json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

ONWARD, EAGER = "onward", "PyTorch eager"


class Speed(BaseModel):
    """A ratio of undisturbed latencies with its 95 % bootstrap interval: under 1 is faster."""

    value: float
    low: float
    high: float


class Entry(BaseModel):
    """One file, or the module itself. Speeds are per size and over `all` sizes (geometric mean); `seconds` is how long
    a peer's command took; `reason` says why there is nothing to time, `faults` how its answers break the budget."""

    name: str
    peer: str = ""
    reason: str = ""
    faults: str = ""
    quality: float | None = None
    cosine: float | None = None
    snr_db: float | None = None
    size_mb: float | None = None
    p50_ms: dict[str, float] = {}
    to_plain: dict[str, Speed] = {}
    onward_to_it: dict[str, Speed] = {}
    seconds: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it answered, and within the budget."""
        return bool(self.to_plain) and not self.faults


class Result(BaseModel):
    """An architecture. `stages` are seconds of Onward's, from when each last ran."""

    architecture: str
    sizes: list[str]
    rounds: int
    chosen: str
    machine: dict[str, Any] = {}
    entries: list[Entry]
    stages: dict[str, float] = {}

    def entry(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)


class Repeat(BaseModel):
    """One of the repeated selections: what was chosen, and how much slower it truly is than the best candidate."""

    variant: str
    behind: float


class Measured(BaseModel):
    """Everything of a pass; what has not been measured is missing."""

    rounds: int = 0
    versions: dict[str, str] = {}
    results: dict[str, Result] = {}
    repeats: list[Repeat] = []
    predict_overhead_us: float | None = None
    olive_commands_s: float | None = None
    not_measured: dict[str, str] = {}
