"""Measures scenarios beyond a single stream: larger batches, concurrent callers, cold start."""

from __future__ import annotations

import statistics as plain_statistics
import time
from collections.abc import Callable, Iterator, Mapping

from onward.registry.evidence.records import Callers, Scenarios, SweepPoint
from onward.stages.config.schema import Benchmark, Dim
from onward.stages.measuring import statistics
from onward.stages.measuring.race import BenchmarkedVariant, Feed
from onward.stages.measuring.samples import Samples
from onward.stages.parity.sizes import size_key
from onward.stages.workers.worker import Worker

# Least gain in throughput that justifies a larger batch; no batch past the knee reaches it.
WORTH_DOUBLING = 1.10

# Processes started for the cold start; their median is reported.
COLD_STARTS = 3


def batches(dim: Dim) -> Iterator[int]:
    """Yield the batch sizes to sweep: doubled from the smallest on, then the largest."""
    size = dim.min or dim.multiple_of
    while size < dim.max:
        yield size
        size *= 2
    yield dim.max


def knee(points: list[SweepPoint]) -> SweepPoint | None:
    """Find the first batch size after which no larger one has WORTH_DOUBLING times its throughput.

    Args:
        points: The sweep, in increasing batch size.

    Returns:
        The point of that size; None if there are no points.
    """
    for number, point in enumerate(points):
        if all(later.throughput < WORTH_DOUBLING * point.throughput for later in points[number + 1 :]):
            return point
    return None


def measure(
    competitor: BenchmarkedVariant,
    fresh: Worker,
    feeds: Mapping[str, Feed],
    feed_of: Callable[[dict[str, int]], Feed],
    batch: tuple[str, Dim] | None,
    settings: Benchmark,
    samples: Samples,
) -> Scenarios:
    """Measure all scenarios of one variant after the race.

    Args:
        competitor: The variant.
        fresh: A worker of the same file and options that has not started, for the cold start.
        feeds: The inputs by size. Callers and the cold start use the first one.
        feed_of: Makes the inputs for the given sizes.
        batch: Name and range of the batch dimension; None if it is fixed.
        settings: The benchmark settings of the model.
        samples: Keeps every latency.

    Raises:
        WorkerFailure: A run failed.
    """
    first = next(iter(feeds.values()))
    seconds = settings.round_seconds
    points: list[SweepPoint] = []
    if batch is not None:
        name, dim = batch
        for size in batches(dim):
            feed = feed_of({**first.sizes, name: size})
            latencies = competitor.worker.measure(feed.tensors, 2 * seconds, 1)
            samples.add(competitor.result, "sweep", size_key(feed.sizes), 0, latencies)
            middle = plain_statistics.median(latencies)
            points.append(SweepPoint(sizes=feed.sizes, p50_ms=middle, throughput=size * 1e3 / middle))
            if len(points) > 2 and knee(points[-3:]) is points[-3]:
                break  # two doublings in a row gained too little
    callers = []
    for count in settings.callers:
        latencies, wall = competitor.worker.measure_callers(first.tensors, count, 2 * seconds)
        samples.add(competitor.result, f"{count} callers", size_key(first.sizes), 0, latencies)
        described = statistics.summarize([latencies], size_key(first.sizes), first.sizes, 0)
        items = len(latencies) * (first.sizes[batch[0]] if batch else 1)
        callers.append(
            Callers(
                callers=count, p50_ms=described.p50_ms, p95_ms=described.p95_ms, throughput=items / wall,
                samples=len(latencies),
            )
        )  # fmt: skip
    best = knee(points)
    return Scenarios(
        sweep=points,
        knee=best.sizes if best else None,
        callers=callers,
        cold_start_ms=_cold_start(fresh, first),
    )


def _cold_start(worker: Worker, feed: Feed) -> float:
    """Milliseconds from the start of a process to its first output, including the imports of NumPy and the runtime."""
    found = []
    for _ in range(COLD_STARTS):
        begin = time.perf_counter()
        worker.run(feed.tensors)
        found.append((time.perf_counter() - begin) * 1e3)
        worker.close()
    return plain_statistics.median(found)
