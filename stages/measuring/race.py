"""Variants in workers of their own: timed against each other in rounds of random order, judged by what they compute."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from onward.registry.evidence.records import Measurement, OutputKind, Ratio
from onward.stages.config.schema import ModelParams
from onward.stages.measuring import statistics
from onward.stages.measuring.samples import Samples
from onward.stages.parity.check import Expected, check, crashed, sentence
from onward.stages.parity.evaluate import Arrays, batches, weigh
from onward.stages.transforms.builder import plain_words
from onward.stages.workers.worker import Tensors, Worker, WorkerFailure

# A turn is as long as this many calls take, for a median of fewer is none; but no longer than so many seconds, for a
# graph that takes a tenth of a second has its accuracy from the rounds.
CALLS_A_TURN, LONGEST_TURN = 3, 0.15

# Milliseconds of a call beside which those that a cold cache and sleeping threads cost are under 1 %.
LONG_CALL = 50.0

# Making sessions anew may take so large a share of the time that measuring takes, unless sessions would have to last
# longer than so many rounds.
RENEWING, RARELY = 0.25, 5

# A race tells enough where each interval is so narrow, or where every other one begins so far behind the end of the
# first one's: more rounds would change little then, and not who is first.
NARROW, APART = 1.03, 1.05

# Seconds of calls, and two at least, after which nothing warms up any more that warms up in a race.
WARM, WARM_CALLS = 0.1, 2


class Turn(NamedTuple):
    """How long a turn at one size lasts, and how many calls precede the first one."""

    seconds: float
    warmup: int


class Feed(NamedTuple):
    """What is fed at one size."""

    sizes: dict[str, int]
    tensors: Tensors


@dataclass(eq=False)
class BenchmarkedVariant:
    """A variant under measurement: its worker, and its latencies as rounds[size][round], in milliseconds."""

    result: Measurement
    worker: Worker
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    warmups: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.result.variant

    @property
    def standing(self) -> bool:
        return self.result.status == "passed"

    @property
    def is_graph(self) -> bool:
        """Whether it is a file, and not the original itself."""
        return bool(self.result.files)

    @property
    def p50_ms(self) -> dict[str, float]:
        """Median latency of all calls, per size."""
        return {size: float(np.median(np.concatenate(rounds))) for size, rounds in self.rounds.items()}

    def fail(self, reason: str) -> None:
        self.result.status = "failed"
        self.result.reason = plain_words(reason)

    def ratios(self, plain: BenchmarkedVariant) -> dict[str, Ratio]:
        """Latency relative to the plain export's, both undisturbed, per size and over `all` sizes."""
        pairs = self._pairs(plain)
        found = {size: statistics.ratio([pair]) for size, pair in pairs.items()}
        return found | {"all": statistics.ratio(list(pairs.values()))} if pairs else {}

    def ratio(self, plain: BenchmarkedVariant) -> Ratio:
        """The same over all sizes alone; the plain export's own is 1, whether it has run or not."""
        if self is plain:
            return Ratio(value=1, low=1, high=1)
        return statistics.ratio(list(self._pairs(plain).values()))

    def _pairs(self, plain: BenchmarkedVariant) -> dict[str, tuple[statistics.Array, statistics.Array]]:
        """Per size, the median latency of each round that both ran, its own and the plain export's."""
        count = min((len(of.rounds[size]) for of in (self, plain) for size in self.rounds), default=0)
        return {size: (self.medians(size)[:count], plain.medians(size)[:count]) for size in self.rounds}

    def medians(self, size: str) -> statistics.Array:
        """The median latency of each round, in milliseconds: shape (rounds,)."""
        return np.array([np.median(latencies) for latencies in self.rounds[size]])


@dataclass(frozen=True)
class Questions:
    """What every contestant of a model is asked, and what the original answered."""

    model: str
    settings: ModelParams
    expected: list[Expected]
    wanted: Arrays
    samples: Arrays
    kinds: list[OutputKind]

    def judge(self, competitor: BenchmarkedVariant) -> None:
        """What the variant computes on this machine. A float32 graph out of tolerance fails, and so does one that gave
        no answer or ran on another provider; what a graph of lower precision lost is for select to weigh."""
        result, worker, settings = competitor.result, competitor.worker, self.settings
        try:
            result.session_ms = worker.start()["session_ms"]
            result.parity = check(worker, self.expected, settings.tolerance)
            weighed = weigh(worker.run, settings, self.samples, self.wanted, self.kinds, f"models.{self.model}")
            result.quality, result.agreement, result.snr_db, result.cosine, result.fidelity = weighed
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


def race_is_decided(plain: BenchmarkedVariant, others: Iterable[BenchmarkedVariant]) -> bool:
    """Whether more rounds would change little. How wide intervals are decides, or that they lie far apart, and not
    whether somebody has won: a race that went on until somebody did would always have a winner."""
    if not plain.standing:
        return True
    variants = [c.ratio(plain) for c in others if c.standing and c.is_graph]
    if all(interval.high / interval.low < NARROW for interval in variants):
        return True
    first, *rest = sorted([Ratio(value=1, low=1, high=1), *variants], key=lambda interval: interval.value)
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
    """Time contestants in `rounds` of these numbers, in random order at each size in turn, as long as `turns` says of
    that size.

    All are loaded before the first is timed: a process that starts takes the processor from the one that is measured.
    The first turn of each is preceded by calls that warm up, each later one by one, unless calls are so long that
    waking up is nothing in them. After `session_lifetime_rounds` rounds (0: never) every graph has its session made
    anew: where its memory comes to lie makes some per cent of its speed, and that luck is not the graph's. Who fails
    leaves the race. Yields the number of each round that is over, so that the caller can say so or stop.
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
    """The turns of a round: sizes in random order, and at each all contestants in random order one after the other, so
    that those that are compared are timed within a fraction of a second."""
    for size in order.sample(list(sizes), len(sizes)):
        for competitor in order.sample(competitors, len(competitors)):
            yield competitor, size


def _renew(competitor: BenchmarkedVariant) -> None:
    """A session made anew in the same process. An original stays as it is: compiling it takes half a minute."""
    if competitor.standing and competitor.is_graph:
        try:
            competitor.worker.renew()
        except WorkerFailure as failure:
            competitor.fail(failure.reason)


def _calls_before(competitor: BenchmarkedVariant, size: str, warmup: int, renewed: bool) -> int:
    """Calls that precede a turn, of which `warmup` precede the first one."""
    last = competitor.rounds.get(size)
    if not last:
        return warmup
    is_long = bool(np.median(last[-1]) >= LONG_CALL)
    if renewed and competitor.is_graph:
        return 1 if is_long else min(WARM_CALLS, warmup)
    return int(not is_long)


def session_lifetime_of(competitors: Sequence[BenchmarkedVariant], turns: Mapping[str, Turn]) -> int:
    """How many rounds sessions are to last: one, where making them anew and warming them up is quick beside a round."""
    graphs = [competitor for competitor in competitors if competitor.standing and competitor.is_graph]
    renewing = sum((c.result.session_ms or 0.0) + WARM_CALLS * sum(c.p50_ms.values()) for c in graphs)
    measuring = 1e3 * len(graphs) * sum(turn.seconds for turn in turns.values())
    return min(RARELY, max(1, round(renewing / (RENEWING * measuring)))) if graphs else 1


def turns_of(calls: Mapping[str, float], feeds: Mapping[str, Feed], least: float, warmup: int) -> dict[str, Turn]:
    """What a turn at each size is, by how many milliseconds `calls` take, as far as that is known: `least` seconds, or
    as long as it needs for enough calls, after `warmup` calls, or as many as are enough."""
    found = dict.fromkeys(feeds, Turn(least, warmup))
    for size, milliseconds in calls.items():
        call = milliseconds / 1e3
        enough = max(WARM_CALLS, round(WARM / call))
        found[size] = Turn(max(least, min(CALLS_A_TURN * call, LONGEST_TURN)), min(warmup, enough))
    return {size: found[size] for size in feeds}


def figures(competitor: BenchmarkedVariant, plain: BenchmarkedVariant, feeds: Mapping[str, Feed]) -> Measurement:
    """The measurement with the latencies of the contestant's rounds and their ratios to the plain export's."""
    result = competitor.result
    if not competitor.standing:
        return result
    for size, feed in feeds.items():
        warmup = competitor.warmups[size]
        result.latencies.append(statistics.summarize(competitor.rounds[size], size, feed.sizes, warmup))
    if plain.standing:
        result.ratios = competitor.ratios(plain)
    try:
        result.session_ms = competitor.worker.start()["session_ms"]
        result.peak_memory_mb = competitor.worker.peak_memory_mb()
    except WorkerFailure as failure:
        competitor.fail(failure.reason)
    return result


def blank(variant: str, runtime: str, provider: str, precision: str, **more: Any) -> Measurement:
    """A measurement before anything was measured."""
    return Measurement(
        variant=variant, runtime=runtime, provider=provider, precision=precision, status="passed", **more
    )
