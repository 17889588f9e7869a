"""Every latency that was measured, kept: figures can be computed again, in ways that nobody thought of here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onward.registry.evidence.records import Measurement

FILE = "samples.parquet"


class Samples:
    """Latencies in milliseconds, each with who, where, in which scenario and round it was measured."""

    def __init__(self) -> None:
        self._turns: list[tuple[str, str, str, str, int, Sequence[float]]] = []

    def add(self, result: Measurement, scenario: str, size: str, number: int, latencies_ms: Sequence[float]) -> None:
        """Keep what one turn measured: `scenario` is screening, tuning, single stream, sweep or callers."""
        self._turns.append((result.runtime, result.variant, scenario, size, number, latencies_ms))

    def save(self, folder: Path) -> None:
        """Write samples.parquet: one row a call, in the order in which they were made."""
        import pyarrow as pa
        from pyarrow import parquet

        def column(index: int, kind: Any) -> Any:
            return pa.array([turn[index] for turn in self._turns for _ in turn[5]], kind)

        names = pa.dictionary(pa.int32(), pa.string())
        latencies = pa.array([value for turn in self._turns for value in turn[5]], pa.float32())
        columns = {
            "runtime": column(0, pa.string()).cast(names),
            "variant": column(1, pa.string()).cast(names),
            "scenario": column(2, pa.string()).cast(names),
            "size": column(3, pa.string()).cast(names),
            "round": column(4, pa.int32()),
            "latency_ms": latencies,
        }
        parquet.write_table(pa.table(columns), folder / FILE, compression="zstd")
