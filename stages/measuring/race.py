"""Times variants in separate workers, in rounds of random order, and judges their outputs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from onward.registry.evidence.records import Measurement, OutputKind, Ratio
from onward.registry.text import plain_words
from onward.stages.config.schema import ModelParams
from onward.stages.measuring import statistics
from onward.stages.measuring.samples import Samples
from onward.stages.parity.check import Expected, check, crashed, sentence
from onward.stages.parity.evaluate import Arrays, batches, weigh
from onward.stages.workers.worker import Tensors, Worker, WorkerFailure

# A turn lasts as long as this many calls, so that it has a median, but no longer than this many seconds: with calls of
# a tenth of a second, the number of rounds determines the accuracy.
CALLS_A_TURN, LONGEST_TURN = 3, 0.15

# Milliseconds. In longer calls, a cold cache and sleeping threads cost under 1 %.
LONG_CALL = 50.0

# Recreating sessions may take this share of the measuring time. Sessions are recreated at least every RARELY rounds.
RENEWING, RARELY = 0.25, 5

# A race is decided if every interval is this narrow (high / low), or if every other interval starts this far above the
# end of the fastest one's (low / high): more rounds would change little, and not which variant is fastest.
NARROW, APART = 1.03, 1.05

# Seconds of calls, and their least number, after which a session is warm.
WARM, WARM_CALLS = 0.1, 2


class Turn(NamedTuple):
    """How long one variant is timed at one size in one round.

    Attributes:
        seconds: Duration of the timed calls.
        warmup: Number of calls before the first turn.
    """

    seconds: float
    warmup: int


class Feed(NamedTuple):
    """The inputs at one size.

    Attributes:
        sizes: Size of each named dimension.
        tensors: Arrays by input name.
    """

    sizes: dict[str, int]
    tensors: Tensors


@dataclass(eq=False)
class BenchmarkedVariant:
    """A variant under measurement.

    Attributes:
        result: What is known about it; filled in place.
        worker: The process that runs it.
        rounds: Latencies in milliseconds, as rounds[size][round].
        warmups: Number of warm-up calls by size.
        weights: The weight of each size in means over sizes; a missing one is 1.
        barred: Why it cannot be chosen, although it takes part in the race; empty if it can.
    """

    result: Measurement
    worker: Worker
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    warmups: dict[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    barred: str = ""

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.result.variant

    @property
    def standing(self) -> bool:
        """Whether it has not failed."""
        return self.result.status == "passed"

    @property
    def is_graph(self) -> bool:
        """Whether it is an ONNX file, as opposed to the original module."""
        return bool(self.result.files)

    @property
    def p50_ms(self) -> dict[str, float]:
        """Median latency of all calls by size, in milliseconds."""
        return {size: float(np.median(np.concatenate(rounds))) for size, rounds in self.rounds.items()}

    def fail(self, reason: str) -> None:
        """Set its status to failed, with this reason."""
        self.result.status = "failed"
        self.result.reason = plain_words(reason)

    def ratios(self, plain: BenchmarkedVariant) -> dict[str, Ratio]:
        """Compute the latency relative to the plain export's, by size and, under "all", over all sizes.

        See `statistics.ratio` for the formula. Empty if there are no rounds.
        """
        pairs = self._pairs(plain)
        found = {size: statistics.ratio([pair]) for size, pair in pairs.items()}
        return found | {"all": self._mean(pairs)} if pairs else {}

    def ratio(self, plain: BenchmarkedVariant) -> Ratio:
        """Compute the latency relative to the plain export's over all sizes; 1 for the plain export itself."""
        if self is plain:
            return Ratio(value=1, low=1, high=1)
        return self._mean(self._pairs(plain))

    def _mean(self, pairs: Mapping[str, tuple[statistics.Array, statistics.Array]]) -> Ratio:
        return statistics.ratio(list(pairs.values()), [self.weights.get(size, 1.0) for size in pairs])

    def _pairs(self, plain: BenchmarkedVariant) -> dict[str, tuple[statistics.Array, statistics.Array]]:
        """By size, the medians of the rounds that both ran: its own and the plain export's."""
        count = min((len(of.rounds[size]) for of in (self, plain) for size in self.rounds), default=0)
        return {size: (self.medians(size)[:count], plain.medians(size)[:count]) for size in self.rounds}

    def medians(self, size: str) -> statistics.Array:
        """Return the median latency of each round at one size, in milliseconds; shape [rounds]."""
        return np.array([np.median(latencies) for latencies in self.rounds[size]])


@dataclass(frozen=True)
class Questions:
    """The inputs for every variant of a model, and the original's outputs.

    Attributes:
        model: Name of the model.
        settings: Its settings.
        expected: The verification cases with the original's outputs.
        wanted: The original's outputs on the evaluation samples.
        samples: The evaluation samples, with labels if there are any.
        kinds: The kind of each output.
    """

    model: str
    settings: ModelParams
    expected: list[Expected]
    wanted: Arrays
    samples: Arrays
    kinds: list[OutputKind]

    def judge(self, competitor: BenchmarkedVariant) -> None:
        """Run a variant on all inputs and store its parity, quality and node share in its result.

        A variant fails if it crashes or runs on another provider, and a float32 graph also fails if it is out of
        tolerance. The losses of lower precision are stored for the select stage.
        """
        result, worker, settings = competitor.result, competitor.worker, self.settings
        try:
            result.session_ms = worker.start()["session_ms"]
            result.parity = check(worker, self.expected, settings.tolerance)
            self.weigh(competitor)
            nodes = worker.profile(next(batches(settings, self.samples)))
        except WorkerFailure as failure:
            competitor.fail(failure.reason)
            return
        result.node_share = {provider: count / sum(nodes.values()) for provider, count in nodes.items()}
        failed = sentence(result.parity if result.precision == "float32" else crashed(result.parity))
        if failed:
            competitor.fail(failed)
        if not result.node_share.get(result.provider):
            competitor.fail(f"fell back to CPU: no node ran on {result.provider}")

    def weigh(self, competitor: BenchmarkedVariant) -> None:
        """Store what a variant's answers to the evaluation samples lose, compared with the original's.

        Raises:
            WorkerFailure: A run or the model's own measure failed.
        """
        key = f"models.{self.model}"
        weigh(competitor.worker.run, self.settings, self.samples, self.wanted, self.kinds, key).store(competitor.result)


def runs_out_of_tolerance(result: Measurement) -> bool:
    """Whether a judged variant answered all cases on its provider, some of them out of tolerance."""
    return bool(sentence(result.parity)) and not crashed(result.parity) and bool(result.node_share.get(result.provider))


def race_is_decided(plain: BenchmarkedVariant, others: Iterable[BenchmarkedVariant]) -> bool:
    """Say whether more rounds would change little.

    The rule uses only how narrow the intervals are (NARROW), or how far apart (APART). It ignores which variant leads,
    to avoid bias: a race that went on until a variant won would always have a winner.
    """
    if not plain.standing:
        return True
    intervals = [c.ratio(plain) for c in others if c.standing and c.is_graph]
    if all(interval.high / interval.low < NARROW for interval in intervals):
        return True
    first, *rest = sorted([Ratio(value=1, low=1, high=1), *intervals], key=lambda interval: interval.value)
    return all(interval.low > APART * first.high for interval in rest)


def race(
    competitors: Sequence[BenchmarkedVariant],
    feeds: Mapping[str, Feed],
    turns: Mapping[str, Turn],
    rounds: Iterable[int],
    order: random.Random,
    samples: Samples,
    scenario: str,
    session_lifetime_rounds: int = 0,
) -> Iterable[int]:
    """Time variants in rounds. Each round visits the sizes, and at each size the variants, in random order.

    All variants are loaded before the first is timed, because a starting process takes processor time from the measured
    one. Warm-up calls precede the first turn of each variant. One call precedes each later turn, unless calls are so
    long that it makes no difference. Variants that fail leave the race.

    Args:
        competitors: The variants; their `rounds` and `warmups` are filled in place.
        feeds: The inputs by size.
        turns: The turn by size.
        rounds: The numbers of the rounds, which may be endless.
        order: Random order of sizes and variants.
        samples: Keeps every latency.
        scenario: Name of this measurement in `samples`.
        session_lifetime_rounds: Rounds after which every graph gets a new session; 0 for never. The memory layout of a
            session changes its speed by some per cent, which is not a property of the graph.

    Yields:
        The number of each finished round, so that the caller can report it or stop.
    """
    standing = [competitor for competitor in competitors if competitor.standing]
    for competitor in standing:
        competitor.worker.spawn()
    for competitor in standing:
        try:
            competitor.worker.start()
        except WorkerFailure as failure:
            competitor.fail(failure.reason)
    for number in rounds:
        renewed = bool(session_lifetime_rounds and number and number % session_lifetime_rounds == 0)
        if renewed:
            for competitor in competitors:
                _renew(competitor)
        for competitor, size in _turns(competitors, feeds, order):
            if not competitor.standing:
                continue
            calls = _calls_before(competitor, size, turns[size].warmup, renewed)
            try:
                found = competitor.worker.measure(feeds[size].tensors, turns[size].seconds, calls)
            except WorkerFailure as failure:
                competitor.fail(failure.reason)
                continue
            competitor.rounds.setdefault(size, []).append(found)
            competitor.warmups[size] = competitor.warmups.get(size, 0) + calls
            samples.add(competitor.result, scenario, size, number, found)
        yield number


def _turns(
    competitors: Sequence[BenchmarkedVariant], sizes: Mapping[str, Any], order: random.Random
) -> Iterable[tuple[BenchmarkedVariant, str]]:
    """The turns of a round: sizes in random order, and at each size all variants in random order.

    So variants that are compared are timed within a fraction of a second.
    """
    for size in order.sample(list(sizes), len(sizes)):
        for competitor in order.sample(competitors, len(competitors)):
            yield competitor, size


def _renew(competitor: BenchmarkedVariant) -> None:
    """Create a new session in the same process. Originals are left alone: compiling one takes half a minute."""
    if competitor.standing and competitor.is_graph:
        try:
            competitor.worker.renew()
        except WorkerFailure as failure:
            competitor.fail(failure.reason)


def _calls_before(competitor: BenchmarkedVariant, size: str, warmup: int, renewed: bool) -> int:
    """Number of untimed calls before a turn; `warmup` before the first one."""
    last = competitor.rounds.get(size)
    if not last:
        return warmup
    is_long = bool(np.median(last[-1]) >= LONG_CALL)
    if renewed and competitor.is_graph:
        return 1 if is_long else min(WARM_CALLS, warmup)
    return int(not is_long)


def session_lifetime_of(competitors: Sequence[BenchmarkedVariant], turns: Mapping[str, Turn]) -> int:
    """Choose how many rounds sessions last, so that recreating them takes at most the share RENEWING of the time.

    Returns:
        A number of rounds from 1 to RARELY.
    """
    graphs = [competitor for competitor in competitors if competitor.standing and competitor.is_graph]
    renewing = sum((c.result.session_ms or 0.0) + WARM_CALLS * sum(c.p50_ms.values()) for c in graphs)
    measuring = 1e3 * len(graphs) * sum(turn.seconds for turn in turns.values())
    return min(RARELY, max(1, round(renewing / (RENEWING * measuring)))) if graphs else 1


def turns_of(calls: Mapping[str, float], feeds: Mapping[str, Feed], least: float, warmup: int) -> dict[str, Turn]:
    """Choose the turn at each size.

    Args:
        calls: Milliseconds of one call by size; sizes may be missing.
        feeds: The inputs by size.
        least: Least duration of a turn in seconds. It grows to CALLS_A_TURN calls, up to LONGEST_TURN.
        warmup: Most warm-up calls. Fewer are made if they take WARM seconds.
    """
    found = dict.fromkeys(feeds, Turn(least, warmup))
    for size, milliseconds in calls.items():
        call = milliseconds / 1e3
        enough = max(WARM_CALLS, round(WARM / call))
        found[size] = Turn(max(least, min(CALLS_A_TURN * call, LONGEST_TURN)), min(warmup, enough))
    return {size: found[size] for size in feeds}


def figures(competitor: BenchmarkedVariant, plain: BenchmarkedVariant, feeds: Mapping[str, Feed]) -> Measurement:
    """Complete a variant's measurement after the race: latencies, ratios to the plain export, session time and memory.

    Args:
        competitor: The variant, with its rounds.
        plain: The plain export, with its rounds.
        feeds: The inputs by size.

    Returns:
        The variant's `result`, which is changed in place.
    """
    result = competitor.result
    if not competitor.standing:
        return result
    for size, feed in feeds.items():
        warmup = competitor.warmups[size]
        weight = competitor.weights.get(size, 1.0)
        result.latencies.append(statistics.summarize(competitor.rounds[size], size, feed.sizes, warmup, weight))
    if plain.standing:
        result.ratios = competitor.ratios(plain)
    try:
        result.session_ms = competitor.worker.start()["session_ms"]
        result.peak_memory_mb = competitor.worker.peak_memory_mb()
    except WorkerFailure as failure:
        competitor.fail(failure.reason)
    return result


def blank(variant: str, runtime: str, provider: str, precision: str, **more: Any) -> Measurement:
    """Create a measurement without figures."""
    return Measurement(
        variant=variant, runtime=runtime, provider=provider, precision=precision, status="passed", **more
    )
