"""Session options for the finalists: threads, pinning, spinning, memory arena, execution mode, graph level; and what
its provider has options for.

Each option is tried alone on a finalist, those that help are put together, and what came of it runs in the final race
as a variant of its own: options are believed no more than optimisers are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from onward.registry import processors
from onward.registry.evidence.records import Measurement, Ratio
from onward.registry.evidence.session_options import CUDA, SessionOptions
from onward.stages.measuring.race import BenchmarkedVariant, Feed, Turn, session_lifetime_of
from onward.stages.measuring.samples import Samples
from onward.stages.measuring.screening import Deadline, run_rung
from onward.stages.workers.worker import Worker

# An option that gains less than this alone is left as ONNX Runtime has it.
HELPS = 0.97

# After a rung of all, this many of the best options run another one: a gain of 3 % is not seen in few rounds.
PROMISING = 4

Start = Callable[[Measurement], Worker]


def trials(provider: str, processors: Collection[int]) -> Iterator[SessionOptions]:
    """Options to try alone, the likeliest to help first. `processors`, counted from 1, are those that may be used.

    A number of threads that is given is not pinned to processors, where ONNX Runtime's default is; `affinity` pins. On
    CUDA, where no thread of this machine multiplies, they are the provider's own.
    """
    if provider == CUDA:
        yield SessionOptions(tf32=True)
        yield SessionOptions(nhwc=True)
        yield SessionOptions(tf32=True, nhwc=True)
        return
    yield SessionOptions(threads=1)
    count = len(processors)
    if count > 1:
        yield SessionOptions(threads=count)
        yield SessionOptions(threads=count, affinity=";".join(map(str, sorted(processors)[1:])))
        yield SessionOptions(spinning=False)
        yield SessionOptions(execution_mode="parallel")
    yield SessionOptions(arena=False)
    yield SessionOptions(graph_level="extended")
    yield SessionOptions(graph_level="basic")


def combine(gains: Sequence[tuple[SessionOptions, Ratio]]) -> SessionOptions:
    """The options that helped beyond doubt, put together; of two that set the same one, the better. With each, its
    latency relative to the finalist's own with ONNX Runtime's options: under HELPS is a help."""
    together: dict[str, object] = {}
    for options, gain in sorted(gains, key=lambda tried: tried[1].value):
        given = options.to_load()
        if gain.value < HELPS and gain.high < 1 and not together.keys() & given.keys():
            together |= given
    return SessionOptions.model_validate(together)


def tune(
    finalist: BenchmarkedVariant,
    start: Start,
    feeds: Mapping[str, Feed],
    turns: Mapping[str, Turn],
    deadline: Deadline,
    order: random.Random,
    samples: Samples,
) -> BenchmarkedVariant | None:
    """The finalist with the session options that help it, as a contestant of its own; None where none does.

    `start` makes a worker for a measurement's file and options.
    """
    default = _variation(finalist, finalist.name, SessionOptions(), start)
    alone = trials(finalist.result.provider, sorted(processors.usable())[: processors.count()])
    tried = [_variation(finalist, f"{finalist.name} ({options})", options, start) for options in alone]
    session_lifetime_rounds, left = session_lifetime_of([finalist], turns), tried
    try:
        for _ in range(2):
            run_rung([default, *left], feeds, turns, session_lifetime_rounds, deadline, order, samples, "tuning")
            if deadline.over or not default.standing:
                return None
            gains = {c: c.ratio(default) for c in left if c.standing}
            left = sorted((c for c in gains if gains[c].value < 1), key=lambda c: gains[c].value)[:PROMISING]
            if not left:
                return None
        best = combine([(c.result.options, gains[c]) for c in left])
    finally:
        for competitor in (default, *tried):
            competitor.worker.close()
    return _variation(finalist, f"{finalist.name}-tuned", best, start) if best != SessionOptions() else None


def _variation(finalist: BenchmarkedVariant, name: str, options: SessionOptions, start: Start) -> BenchmarkedVariant:
    changed = {"variant": name, "graph": finalist.name, "options": options, "ratios": {}, "latencies": []}
    if options.tf32 and finalist.result.precision == "float32":
        changed["precision"] = "tf32"
    result = finalist.result.model_copy(update=changed)
    return BenchmarkedVariant(result, start(result))
