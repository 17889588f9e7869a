"""The measured results, as stored in against_peers.json and zoo.json."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, RootModel

ONWARD, EAGER = "onward", "PyTorch eager"


class Speed(BaseModel):
    """A ratio of undisturbed latencies with its 95 % bootstrap interval; below 1 is faster."""

    value: float
    low: float
    high: float


class Entry(BaseModel):
    """One file, or the module itself.

    Attributes:
        name: shown in the table.
        peer: the peer's key; empty for Onward, the plain export and the module.
        reason: why there is nothing to time.
        faults: how its answers break the budget.
        quality: the model's own measure, on the evaluation samples.
        cosine: of the worst evaluation sample.
        snr_db: signal-to-noise ratio in dB; None for identical answers.
        size_mb: size of the files in MB.
        p50_ms: by size.
        to_plain: ratio to the plain export, by size, and over `all` sizes (geometric mean).
        onward_to_it: ratio of Onward's choice to this entry, in the same form.
        seconds: duration of the peer's command.
    """

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
        """Whether it was timed and is within the budget."""
        return bool(self.to_plain) and not self.faults


class Result(BaseModel):
    """The results of an architecture.

    Attributes:
        architecture: its key.
        sizes: the measured sizes.
        rounds: of the race.
        chosen: Onward's choice on the CPU provider.
        best: the name of the entry of the fastest runtime, according to Onward's own measurement.
        released: its variant, runtime and options.
        changed: the share of task outcomes that differ between the original and the entry `best`.
        machine: description of the host.
        entries: everything that was measured, or why not.
        stages: seconds of the last run of each of Onward's stages.
    """

    architecture: str
    sizes: list[str]
    rounds: int
    chosen: str
    best: str = ONWARD
    released: str = ""
    changed: float | None = None
    machine: dict[str, Any] = {}
    entries: list[Entry]
    stages: dict[str, float] = {}

    def entry(self, name: str) -> Entry:
        """The entry of this name."""
        return next(entry for entry in self.entries if entry.name == name)


class Repeat(BaseModel):
    """One of the repeated selections: the choice, and by what share it is slower than the best candidate."""

    variant: str
    behind: float


class Measured(BaseModel):
    """All results. Architectures that were not measured are missing."""

    rounds: int = 0
    versions: dict[str, str] = {}
    results: dict[str, Result] = {}
    repeats: list[Repeat] = []
    predict_overhead_us: float | None = None
    olive_commands_s: float | None = None
    not_measured: dict[str, str] = {}


# Kinds of host, the most capable first, by the instruction set that sets them apart.
KINDS = {"amx_int8": "AMX", "avx512_vnni": "AVX512-VNNI", "avx2": "AVX2"}


def kind_of(instruction_sets: Collection[str]) -> str:
    """The kind of a host, such as "AVX2"."""
    return next((title for name, title in KINDS.items() if name in instruction_sets), "other")


class Hosts(RootModel[dict[str, Measured]]):
    """The results on each kind of host."""

    root: dict[str, Measured] = {}

    def of(self, kind: str) -> Measured:
        """The results on one kind of host, which are added if there are none."""
        return self.root.setdefault(kind, Measured())
