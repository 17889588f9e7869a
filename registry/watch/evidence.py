"""The latencies that a version was released with, for a host like the one of the benchmark."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

from onward.registry.errors import NotReady, OnwardError
from onward.registry.evidence.records import Latency, TensorSpec
from onward.registry.evidence.reports import BenchmarkReport, ExportReport, load
from onward.registry.host import hardware
from onward.registry.monitoring.decay import Call, LatencyBaseline, latency_baseline
from onward.registry.store.store import Store

SOURCE = "the release's benchmark"
JOINED = ", requests joined"
# The scenario of the race: one call after the other.
_RACE = "single stream"


def host(provider: str, joined: bool = False) -> str:
    """The fingerprint of this host and the way that a model runs on it. Latencies of equal ones are comparable.

    Args:
        provider: the execution provider in use.
        joined: whether requests are joined. Then the time of a run is that of several requests, which a benchmark of
            single calls does not have.
    """
    return f"{hardware.fingerprint(hardware.describe())} {provider}{JOINED if joined else ''}"


def baseline(store: Store, evidence: Mapping[str, str], here: str) -> tuple[LatencyBaseline | None, str]:
    """Read the latencies of a version's benchmark.

    Args:
        store: the store.
        evidence: the version's tags.
        here: the fingerprint of the host that serves, from `host`.

    Returns:
        the latencies, or None and the reason.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
            folder = store.reports(evidence.get("run_id", ""), Path(temporary))
            if folder is None:
                return None, "latency: the version's run has no reports (any more)"
            return _baseline(folder, evidence, here)
    except (OnwardError, OSError) as error:
        return None, f"latency: the version's benchmark cannot be read: {error}"


def _baseline(folder: Path, evidence: Mapping[str, str], here: str) -> tuple[LatencyBaseline | None, str]:
    benchmark, export = load(BenchmarkReport, folder / "benchmark.json"), load(ExportReport, folder / "export.json")
    if benchmark.machine is None or export.graph is None:
        return None, "latency: the version's benchmark does not name its host or its graph"
    there = f"{hardware.fingerprint(benchmark.machine)} {evidence.get('provider', '')}"
    if here == there + JOINED:
        return None, "latency: requests are joined to batches, so the version's first hour is the measure"
    if there != here:
        return None, (
            f"latency: this host is not the one of the release's benchmark ({benchmark.machine.cpu}, "
            f"{evidence.get('provider', 'unknown provider')}), so the version's first hour is the measure"
        )
    variant, runtime = evidence.get("variant", ""), evidence.get("runtime", "")
    found = next((one for one in benchmark.measurements if (one.variant, one.runtime) == (variant, runtime)), None)
    if found is None:
        return None, f"latency: the benchmark did not measure {variant} on {runtime}"
    sizes = {one.size: size for one in found.latencies if (size := _elements(export.graph.inputs, one)) is not None}
    calls = _calls(folder / "samples.parquet", variant, runtime, sizes)
    made = latency_baseline(SOURCE, calls)
    return made, "" if made else f"latency: the benchmark has {len(calls)} calls of the version, which are too few"


def _elements(inputs: list[TensorSpec], latency: Latency) -> int | None:
    """The number of elements of all inputs at a size; None if a dimension is unknown."""
    total = 0
    for spec in inputs:
        sizes = [size if isinstance(size, int) else latency.sizes.get(size) for size in spec.shape]
        if any(size is None for size in sizes):
            return None
        total += math.prod(size for size in sizes if size is not None)
    return total


def _calls(file: Path, variant: str, runtime: str, sizes: Mapping[str, int]) -> list[Call]:
    """The calls of a variant at known sizes.

    Raises:
        NotReady: the file cannot be read.
    """
    try:
        from pyarrow import parquet

        wanted = [("variant", "==", variant), ("runtime", "==", runtime), ("scenario", "==", _RACE)]
        table = parquet.read_table(file, columns=["size", "latency_ms"], filters=wanted, partitioning=None)
        rows = zip(table["size"].to_pylist(), table["latency_ms"].to_pylist(), strict=True)
        return [Call(sizes[size], float(ms)) for size, ms in rows if size in sizes]
    except ModuleNotFoundError:
        raise NotReady("this needs pyarrow: pip install 'onward[monitoring]'") from None
    except Exception as error:  # pyarrow's exceptions share no base but this
        raise NotReady(f"{file.name}: {' '.join(str(error).split())[:200]}") from None
