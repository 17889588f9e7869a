"""Finds session options for the finalists: threads, pinning, spinning, memory arena, execution mode, graph level.

On CUDA and OpenVINO, it tries their own options instead. Each option is tried alone on a finalist. The options that
help are combined, and the finalist with them runs in the final race as a separate variant, to prove that they help.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from onward.registry import processors
from onward.registry.evidence.records import Measurement, Ratio
from onward.registry.evidence.session_options import CUDA, OPENVINO, OPENVINO_NATIVE, SessionOptions
from onward.stages.measuring.race import BenchmarkedVariant, Feed, Turn, session_lifetime_of
from onward.stages.measuring.samples import Samples
from onward.stages.measuring.screening import Deadline, run_rung
from onward.stages.workers.circumstances import CURRENT
from onward.stages.workers.worker import Worker

# Latency ratio that an option alone must stay below to be used; otherwise ONNX Runtime's default is kept.
HELPS = 0.97

# Number of the best options that run a second rung: one rung is too short to show a gain of 3 %.
PROMISING = 4

Start = Callable[[Measurement], Worker]


def trials(provider: str, processors: Collection[int], precisions: Sequence[str] = ()) -> Iterator[SessionOptions]:
    """Yield the options to try alone, the most promising first.

    ONNX Runtime pins its default threads to processors, but not an explicit number of threads; `affinity` pins those.
    On CUDA, where no CPU thread multiplies, the options are the provider's own. OpenVINO has its own threads.

    Args:
        provider: ONNX Runtime's execution provider, or OpenVINO itself.
        processors: The usable processors, counted from 1.
        precisions: Lower precisions in which the provider can run operators that the graph leaves in float32.
    """
    count = len(processors)
    if provider in (OPENVINO, OPENVINO_NATIVE):
        yield from (SessionOptions.model_validate({"precision": precision}) for precision in precisions)
        if count > 1:
            yield SessionOptions(threads=1)
            yield SessionOptions(threads=count)
            yield SessionOptions(performance="throughput")
        if provider == OPENVINO:
            yield SessionOptions(graph_level="disabled")
        return
    if provider == CUDA:
        yield SessionOptions(tf32=True)
        yield SessionOptions(nhwc=True)
        yield SessionOptions(tf32=True, nhwc=True)
        return
    yield SessionOptions(threads=1)
    if count > 1:
        yield SessionOptions(threads=count)
        yield SessionOptions(threads=count, affinity=";".join(map(str, sorted(processors)[1:])))
        yield SessionOptions(spinning=False)
        yield SessionOptions(execution_mode="parallel")
    yield SessionOptions(arena=False)
    yield SessionOptions(graph_level="extended")
    yield SessionOptions(graph_level="basic")


def combine(gains: Sequence[tuple[SessionOptions, Ratio]]) -> SessionOptions:
    """Combine the options that provably help; if two set the same option, take the faster one.

    Args:
        gains: Options with the finalist's latency under them, relative to ONNX Runtime's defaults. They help if the
            ratio is below HELPS and its interval below 1.
    """
    combined: dict[str, object] = {}
    for options, gain in sorted(gains, key=lambda tried: tried[1].value):
        given = options.to_load()
        if gain.value < HELPS and gain.high < 1 and not combined.keys() & given.keys():
            combined |= given
    return SessionOptions.model_validate(combined)


def tune(
    finalist: BenchmarkedVariant,
    start: Start,
    feeds: Mapping[str, Feed],
    turns: Mapping[str, Turn],
    deadline: Deadline,
    order: random.Random,
    samples: Samples,
    precisions: Sequence[str] = (),
) -> BenchmarkedVariant | None:
    """Find the session options that make a finalist faster.

    Args:
        finalist: The variant, already timed.
        start: Creates a worker for a measurement's file and options.
        feeds: The inputs by size.
        turns: The turn by size.
        deadline: When the search ends.
        order: Random order of sizes and variants.
        samples: Keeps every latency.
        precisions: Lower precisions that the runtime can compute in.

    Returns:
        A new variant of the same file with the options that help; None if none helps or the deadline passed.
    """
    given = finalist.result.options
    default = _variation(finalist, finalist.name, given, start)
    here = sorted(processors.usable())[: processors.count()]
    # A float32 graph in lower precision is a variant of its own, which takes part in screening.
    lower = () if given.precision or finalist.result.precision == "float32" else precisions
    alone = trials(finalist.result.provider, here, lower)
    tried = [_variation(finalist, f"{finalist.name} ({options})", given | options, start) for options in alone]
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
        best = combine([(given.changes(c.result.options), gains[c]) for c in left])
    finally:
        for competitor in (default, *tried):
            competitor.worker.close()
    if best == SessionOptions():
        return None
    best = (given | best).limited_to(CURRENT.graph_level)
    return _variation(finalist, f"{finalist.name}-tuned", best, start)


def _variation(finalist: BenchmarkedVariant, name: str, options: SessionOptions, start: Start) -> BenchmarkedVariant:
    """A finalist's file under other session options."""
    graph = finalist.result.graph or finalist.name
    changed = {"variant": name, "graph": graph, "options": options, "ratios": {}, "latencies": []}
    if options.tf32 and finalist.result.precision == "float32":
        changed["precision"] = "tf32"
    result = finalist.result.model_copy(update=changed)
    return BenchmarkedVariant(result, start(result), weights=finalist.weights)
