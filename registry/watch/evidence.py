"""The latencies that a version was released with, for a host like the one of the benchmark."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onward.registry.errors import NotReady, OnwardError
from onward.registry.evidence.records import Latency, TensorSpec
from onward.registry.evidence.reports import BenchmarkReport, ExportReport, load
from onward.registry.host import hardware
from onward.registry.monitoring.decay import Call, LatencyBaseline, latency_baseline
from onward.registry.serve.versions import workers_for
from onward.registry.store.store import Store

if TYPE_CHECKING:
    from onward.registry.serve.served import ServedModel

SOURCE = "the release's benchmark"
_JOINED = " joined"
_CALLERS = re.compile(r"(\d+) callers")
# The scenario of the race: one call after the other.
_RACE = "single stream"


@dataclass(frozen=True)
class Host:
    """A host and the way that a model runs on it.

    Attributes:
        fingerprint: the digest of the machine's description.
        provider: the execution provider in use.
        workers: how many runs happen at the same time.
        joined: whether requests are joined. Then the time of a run is that of several requests, which a benchmark of
            single calls does not have.
    """

    fingerprint: str
    provider: str
    workers: int = 1
    joined: bool = False

    def __str__(self) -> str:
        return f"{self.fingerprint} {self.provider} x{self.workers}{_JOINED if self.joined else ''}"


def this_host(model: ServedModel) -> Host:
    """This host, and the way that a served model runs on it.

    Args:
        model: the model.
    """
    loaded = model.session.loaded
    return Host(
        hardware.fingerprint(hardware.describe()),
        loaded.providers[0],
        model.sizes.workers or workers_for(loaded),
        model.sizes.batching.delay_s > 0,
    )


def parse_host(text: str) -> Host | None:
    """Read `str(host)`; None if the text has another form."""
    found = re.fullmatch(rf"(\S+) (\S+) x(\d+)({_JOINED})?", text)
    return Host(found[1], found[2], int(found[3]), bool(found[4])) if found else None


def baseline(store: Store, evidence: Mapping[str, str], here: Host) -> tuple[LatencyBaseline | None, str]:
    """Read the latencies of a version's benchmark.

    Args:
        store: the store.
        evidence: the version's tags.
        here: the host that serves.

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


def _baseline(folder: Path, evidence: Mapping[str, str], here: Host) -> tuple[LatencyBaseline | None, str]:
    benchmark, export = load(BenchmarkReport, folder / "benchmark.json"), load(ExportReport, folder / "export.json")
    if benchmark.machine is None or export.graph is None:
        return None, "latency: the version's benchmark does not name its host or its graph"
    provider = evidence.get("provider", "")
    if here.joined:
        return None, "latency: requests are joined to batches, so the version's first hour is the measure"
    if (hardware.fingerprint(benchmark.machine), provider) != (here.fingerprint, here.provider):
        return None, (
            f"latency: this host is not the one of the release's benchmark ({benchmark.machine.cpu}, "
            f"{provider or 'unknown provider'}), so the version's first hour is the measure"
        )
    variant, runtime = evidence.get("variant", ""), evidence.get("runtime", "")
    found = next((one for one in benchmark.measurements if (one.variant, one.runtime) == (variant, runtime)), None)
    if found is None:
        return None, f"latency: the benchmark did not measure {variant} on {runtime}"
    sizes = {one.size: size for one in found.latencies if (size := _elements(export.graph.inputs, one)) is not None}
    calls = _calls(folder / "samples.parquet", variant, runtime, sizes, here.workers)
    if calls is None:
        return None, (
            f"latency: the benchmark did not measure {here.workers} runs at the same time, so the version's first hour "
            "is the measure"
        )
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


def _calls(file: Path, variant: str, runtime: str, sizes: Mapping[str, int], workers: int) -> list[Call] | None:
    """The calls of a variant at known sizes, as long as they are with some workers at the same time.

    The race has one call after the other. The scenario of several callers, at one size, says how much longer a call
    takes beside others; the calls of all sizes are lengthened by that.

    Returns:
        None if the benchmark has no scenario of enough callers.

    Raises:
        NotReady: the file cannot be read.
    """
    try:
        from pyarrow import parquet

        wanted = [("variant", "==", variant), ("runtime", "==", runtime)]
        table = parquet.read_table(
            file, columns=["scenario", "size", "latency_ms"], filters=wanted, partitioning=None
        ).to_pydict()
    except ModuleNotFoundError:
        raise NotReady("this needs pyarrow: pip install 'onward[monitoring]'") from None
    except Exception as error:  # pyarrow's exceptions share no base but this
        raise NotReady(f"{file.name}: {' '.join(str(error).split())[:200]}") from None
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for scenario, size, ms in zip(table["scenario"], table["size"], table["latency_ms"], strict=True):
        times[scenario, size].append(float(ms))
    factor = 1.0
    if workers > 1:
        counts = {int(found[1]): key for key in times if (found := _CALLERS.fullmatch(key[0]))}
        enough = [count for count in counts if count >= workers]
        if not enough or (_RACE, counts[min(enough)][1]) not in times:
            return None
        beside = counts[min(enough)]
        factor = max(1.0, statistics.median(times[beside]) / statistics.median(times[_RACE, beside[1]]))
    return [
        Call(sizes[size], factor * ms)
        for (scenario, size), found in times.items()
        if scenario == _RACE and size in sizes
        for ms in found
    ]
