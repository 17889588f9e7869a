"""What a single stream does not tell: larger batches up to the knee, callers at the same time, the first answer."""

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

# Twice the batch for less than this much more throughput is past the knee.
WORTH_DOUBLING = 1.10

# Processes started for the cold start; the median of them is stated.
COLD_STARTS = 3


def batches(dim: Dim) -> Iterator[int]:
    """Sizes to sweep: from the smallest by doubling to the largest, and the largest."""
    size = max(dim.min, 1)
    while size < dim.max:
        yield size
        size *= 2
    yield dim.max


def knee(points: list[SweepPoint]) -> SweepPoint | None:
    """The first size after which no larger one has WORTH_DOUBLING times the throughput; null without any."""
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
    """All scenarios of one variant, after the race.

    `fresh` is a worker like the contestant's, for the cold start. `batch` is the name of the dimension that samples
    are stacked on, and what it may be; None where it is fixed. `feed_of` makes what is fed at given sizes.

    Raises:
        WorkerFailure: a run came to nothing.
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
                break  # neither of two doublings was worth it
    callers = []
    for count in settings.callers:
        latencies, wall = competitor.worker.measure_callers(first.tensors, count, 2 * seconds)
        samples.add(competitor.result, f"{count} callers", size_key(first.sizes), 0, latencies)
        described = statistics.summarize([latencies], size_key(first.sizes), first.sizes, 0)
        items = len(latencies) * next(iter(first.sizes.values()), 1)
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
    """Milliseconds from the start of a process to its first answer, the imports of numpy and the runtime included."""
    found = []
    for _ in range(COLD_STARTS):
        begin = time.perf_counter()
        worker.run(feed.tensors)
        found.append((time.perf_counter() - begin) * 1e3)
        worker.close()
    return plain_statistics.median(found)
