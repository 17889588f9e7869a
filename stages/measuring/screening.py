"""Successive halving: a few short rounds for everyone, then again for the faster half, until few enough are left.

After Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (2016): the
budget goes to those who may win. Only speed is screened; what the survivors compute is judged afterwards, the fastest
first, so that a fast variant that is wrong costs one judgement and no full measurement.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onward.stages.measuring.race import BenchmarkedVariant, Feed, Turn, race, session_lifetime_of
from onward.stages.measuring.samples import Samples

# Rounds of a rung: of three, one is likely to be undisturbed, unless they are so short that a neighbour on the machine
# outlasts them all. So a rung has as many as fit its seconds, up to a limit.
ROUNDS_A_RUNG, MOST_ROUNDS, RUNG_SECONDS = 3, 15, 2.0

# Who is this much slower than the plain export after a rung leaves, and those that are left are enough. Whoever is not
# may be the faster one: a few short rounds are off by some per cent.
HOPELESS = 1.10

# Who needs so many times as long as the fastest that is right is not measured further.
FAR_BEHIND = 1.3


@dataclass(frozen=True)
class Deadline:
    """When the search of a model has to be over."""

    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(seconds, time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end


def halve(ratios: Mapping[str, float], keep: int) -> list[str]:
    """Names of the faster half, but no fewer than `keep` where there are as many; the hopeless only to fill up none.

    `ratios` are latencies relative to the plain export's. Fastest first.
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
    """Rank contestants by speed, the fastest first, those dropped on the way behind those that were not.

    `competitors` are all but `plain`, which runs in every rung for comparison. Sets each one's ratios, and the reason
    of those that left. The last rung ends before `deadline` is over by more than a round.
    """
    left: list[BenchmarkedVariant] = [c for c in competitors if c.standing]
    out: list[BenchmarkedVariant] = []
    turns = dict.fromkeys(feeds, turn)
    attempt = 0
    while left:
        attempt += 1
        session_lifetime_rounds = session_lifetime_of([plain], turns)  # nobody else has been loaded yet
        run_rung([plain, *left], feeds, turns, session_lifetime_rounds, deadline, order, samples, "screening")
        left = [c for c in left if c.standing and c.rounds.keys() == feeds.keys()]
        for competitor in left:
            competitor.result.ratios = competitor.ratios(plain)
        by_name = {c.name: c for c in left}
        speeds = {name: c.result.ratios["all"].value for name, c in by_name.items()}
        kept = halve(speeds, keep)
        dropped = sorted((c for c in left if c.name not in kept), key=lambda c: speeds[c.name])
        for competitor in dropped:
            competitor.result.reason = f"left after rung {attempt} of screening: {words(speeds[competitor.name])}"
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
    """A few short rounds, which end with the one in which `deadline` is over."""
    begun = 0.0
    for number in race(
        competitors, feeds, turns, range(MOST_ROUNDS), order, samples, scenario, session_lifetime_rounds
    ):
        begun = begun or time.monotonic()  # all are loaded by now
        long_enough = time.monotonic() - begun >= RUNG_SECONDS
        if deadline.over or (long_enough and number + 1 >= ROUNDS_A_RUNG):
            break


def why_out(ratio: float, finalists: Mapping[str, float], most: int, deadline: Deadline) -> str:
    """Why a variant of this ratio to the plain export goes no further, beside the `finalists` there are already, the
    fastest first, and of which there may be `most`; empty where it does."""
    if ratio > HOPELESS:
        return f"slower in screening: {words(ratio)}"
    if not finalists:
        return ""
    if len(finalists) >= most:
        return f"{words(ratio)} of screening, and {len(finalists)} faster ones within the budget went on"
    name, fastest = next(iter(finalists.items()))
    if ratio > FAR_BEHIND * fastest:
        return f"{words(ratio)} of screening, in which {name} was {words(fastest)}"
    return f"{words(ratio)} of screening; the search was out of time" if deadline.over else ""


def words(ratio: float) -> str:
    """A ratio of latencies in words."""
    if ratio <= 1:
        return f"{1 / ratio:.2f} times as fast as the plain export in its best rounds"
    return f"{ratio:.2f} times the plain export's latency in its best rounds"
