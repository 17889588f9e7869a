"""Successive halving: a few short rounds for all variants, then for the faster half, until few enough are left.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (2016).
Screening compares speed alone. The outputs of the remaining variants are judged afterwards, fastest first, so that a
fast but wrong variant costs one judgement and no full measurement.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onward.stages import progress
from onward.stages.measuring.race import BenchmarkedVariant, Feed, Turn, race, session_lifetime_of
from onward.stages.measuring.samples import Samples

# Rounds of a rung. One of three rounds is likely to be undisturbed, unless all three are shorter than a burst of other
# load on the machine. So a rung lasts at least three rounds and RUNG_SECONDS, but at most MOST_ROUNDS.
ROUNDS_A_RUNG, MOST_ROUNDS, RUNG_SECONDS = 3, 15, 2.0

# Variants with a larger latency ratio to the plain export are dropped after a rung. Smaller ratios are not conclusive:
# a few short rounds are off by some per cent.
HOPELESS = 1.10

# Variants slower than the fastest acceptable one by more than this factor are dropped.
FAR_BEHIND = 1.3


@dataclass(frozen=True)
class Deadline:
    """The time limit of a model's search.

    Attributes:
        seconds: The limit.
        end: When it ends, in seconds of the monotonic clock.
    """

    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Create a deadline this many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        """Whether the limit has passed."""
        return time.monotonic() >= self.end

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return max(0.0, self.end - time.monotonic())


def halve(ratios: Mapping[str, float], keep: int) -> list[str]:
    """Select the faster half, without the variants slower than HOPELESS.

    Args:
        ratios: Latency relative to the plain export's, by variant.
        keep: Least number to select, if there are as many.

    Returns:
        Names of the selected variants, fastest first.
    """
    ranked = sorted((name for name in ratios if ratios[name] < HOPELESS), key=lambda name: ratios[name])
    return ranked[: max(keep, math.ceil(len(ratios) / 2))]


def screen(
    competitors: Sequence[BenchmarkedVariant],
    plain: BenchmarkedVariant,
    feeds: Mapping[str, Feed],
    turn: Turn,
    keep: int,
    deadline: Deadline,
    order: random.Random,
    samples: Samples,
) -> list[BenchmarkedVariant]:
    """Rank variants by speed in rungs of successive halving.

    Sets the ratios of each variant, and the reason of those that it drops. Stops at most one round after the deadline.

    Args:
        competitors: The variants, without the plain export.
        plain: The plain export, which runs in every rung for comparison.
        feeds: The inputs by size.
        turn: The turn at every size.
        keep: Number of variants at which to stop.
        deadline: When the search ends.
        order: Random order of sizes and variants.
        samples: Keeps every latency.

    Returns:
        The variants, fastest first, followed by the dropped ones, those of the last rung first.
    """
    left: list[BenchmarkedVariant] = [c for c in competitors if c.standing]
    out: list[BenchmarkedVariant] = []
    turns = dict.fromkeys(feeds, turn)
    attempt = 0
    while left:
        attempt += 1
        session_lifetime_rounds = session_lifetime_of([plain], turns)  # no other variant is loaded yet
        run_rung([plain, *left], feeds, turns, session_lifetime_rounds, deadline, order, samples, "screening")
        left = [c for c in left if c.standing and c.rounds.keys() == feeds.keys()]
        for competitor in left:
            competitor.result.ratios = competitor.ratios(plain)
        by_name = {c.name: c for c in left}
        speeds = {name: c.result.ratios["all"].value for name, c in by_name.items()}
        kept = halve(speeds, keep)
        dropped = sorted((c for c in left if c.name not in kept), key=lambda c: speeds[c.name])
        for competitor in dropped:
            competitor.result.reason = f"dropped after rung {attempt} of screening: {words(speeds[competitor.name])}"
            competitor.worker.close()
        out = [*dropped, *out]
        done = len(kept) == len(left) or len(kept) <= keep
        left = [by_name[name] for name in kept]
        if done or deadline.over:
            break
    return [*left, *out]


def run_rung(
    competitors: Sequence[BenchmarkedVariant],
    feeds: Mapping[str, Feed],
    turns: Mapping[str, Turn],
    session_lifetime_rounds: int,
    deadline: Deadline,
    order: random.Random,
    samples: Samples,
    scenario: str,
) -> None:
    """Run a few short rounds, and stop after the round in which the deadline passes.

    It takes the arguments of `race`, plus the deadline.
    """
    begun = 0.0
    progress.show(f"{scenario} of {len(competitors)} variants, round 1", seconds=deadline.left)
    for number in race(
        competitors, feeds, turns, range(MOST_ROUNDS), order, samples, scenario, session_lifetime_rounds
    ):
        progress.show(f"{scenario} of {len(competitors)} variants, round {number + 2}", seconds=deadline.left)
        begun = begun or time.monotonic()  # starts after the first round: loading does not count
        long_enough = time.monotonic() - begun >= RUNG_SECONDS
        if deadline.over or (long_enough and number + 1 >= ROUNDS_A_RUNG):
            break


def why_out(ratio: float, finalists: Mapping[str, float], most: int, deadline: Deadline) -> str:
    """Say why a screened variant is not measured further.

    Args:
        ratio: Its latency relative to the plain export's.
        finalists: The same of the finalists so far, by name, fastest first.
        most: Most finalists.
        deadline: When the search ends.

    Returns:
        The reason; empty if it is measured further.
    """
    if ratio > HOPELESS:
        return f"slower in screening: {words(ratio)}"
    if not finalists:
        return ""
    if len(finalists) >= most:
        return f"{words(ratio)} of screening; {len(finalists)} faster variants within the budget were measured instead"
    name, fastest = next(iter(finalists.items()))
    if ratio > FAR_BEHIND * fastest:
        return f"{words(ratio)} of screening; {name}: {words(fastest)}"
    return f"{words(ratio)} of screening; the search ran out of time" if deadline.over else ""


def words(ratio: float) -> str:
    """Describe a ratio of latencies in words."""
    if ratio <= 1:
        return f"{1 / ratio:.2f} times as fast as the plain export in its best rounds"
    return f"{ratio:.2f} times the plain export's latency in its best rounds"
