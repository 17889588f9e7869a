"""Keeps every measured latency, so that figures can be computed again in other ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onward.registry.evidence.records import Measurement

FILE = "samples.parquet"


class Samples:
    """Latencies in milliseconds, each with its runtime, variant, scenario, size and round."""

    def __init__(self) -> None:
        self._turns: list[tuple[str, str, str, str, int, Sequence[float]]] = []

    def add(self, result: Measurement, scenario: str, size: str, number: int, latencies_ms: Sequence[float]) -> None:
        """Keep the latencies of one turn.

        Args:
            result: The measurement, for its runtime and variant.
            scenario: "screening", "tuning", "single stream", "sweep", or "N callers".
            size: Key of the size, such as "b8".
            number: Number of the round, from 0.
            latencies_ms: One latency per call, in milliseconds.
        """
        self._turns.append((result.runtime, result.variant, scenario, size, number, latencies_ms))

    def save(self, folder: Path) -> None:
        """Write samples.parquet to a folder: one row per call, in the order of the calls."""
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
