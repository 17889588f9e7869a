"""The search: which variants survive screening, how session options are combined, what the scenarios report."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry import processors
from onward.registry.evidence.records import FileDigest, Ratio, SweepPoint, worst_size
from onward.registry.evidence.session_options import CPU, CUDA, OPENVINO, OPENVINO_NATIVE, SessionOptions
from onward.stages.config.schema import Dim
from onward.stages.measuring.race import (
    LONGEST_TURN,
    WARM_CALLS,
    BenchmarkedVariant,
    Feed,
    Turn,
    blank,
    race,
    race_is_decided,
    session_lifetime_of,
    turns_of,
)
from onward.stages.measuring.samples import Samples
from onward.stages.measuring.scenarios import WORTH_DOUBLING, batches, knee
from onward.stages.measuring.screening import HOPELESS, MOST_ROUNDS, Deadline, halve, screen, why_out
from onward.stages.measuring.tuning import HELPS, combine, trials, tune
from onward.stages.workers.onnx_worker import time_callers

FEEDS = {"b1": Feed({"batch": 1}, {}), "b8": Feed({"batch": 8}, {})}


class Simulated:
    """A simulated worker: the latency of a variant times machine noise that changes from turn to turn."""

    def __init__(self, latency_ms: float, noise: np.random.Generator, calls: list[str], name: str) -> None:
        self.latency_ms, self.noise, self.calls, self.name = latency_ms, noise, calls, name

    def measure(self, inputs: Any, seconds: float, warmup: int) -> list[float]:
        self.calls.append(self.name)
        return list(self.latency_ms * self.noise.lognormal(0, 0.03, 9))

    def spawn(self) -> None:
        self.calls.append(f"{self.name} spawned")

    def start(self) -> dict[str, Any]:
        self.calls.append(f"{self.name} loaded")
        return {}

    def renew(self) -> None:
        self.calls.append(f"{self.name} renewed")

    def close(self) -> None:
        self.calls.append(f"{self.name} closed")


def field(latencies: list[float], calls: list[str], seed: int = 0) -> list[BenchmarkedVariant]:
    noise = np.random.default_rng(seed)
    return [
        BenchmarkedVariant(
            blank(f"v{number}", "cpu", "CPUExecutionProvider", "float32"),
            Simulated(latency, noise, calls, f"v{number}"),  # type: ignore[arg-type]
        )
        for number, latency in enumerate(latencies)
    ]


def screened(latencies: list[float], calls: list[str], keep: int = 3, seed: int = 0) -> list[BenchmarkedVariant]:
    """`latencies[0]` belongs to the plain export."""
    plain, *others = field(latencies, calls, seed)
    deadline = Deadline.after(60)
    return screen(others, plain, FEEDS, Turn(0.01, 2), keep, deadline, random.Random(seed), Samples())


@given(st.dictionaries(st.text(min_size=1), st.floats(0.1, 3), max_size=30), st.integers(1, 5))
def test_halving_keeps_the_fastest_half_and_drops_hopeless_variants(ratios: dict[str, float], keep: int) -> None:
    kept = halve(ratios, keep)
    hopeful = [name for name in ratios if ratios[name] < HOPELESS]
    assert set(kept) <= set(hopeful)
    assert len(kept) == min(len(hopeful), max(keep, (len(ratios) + 1) // 2))
    assert all(ratios[a] <= ratios[b] for a in kept for b in set(hopeful) - set(kept))


@pytest.mark.parametrize("seed", range(10))
def test_the_fastest_of_many_variants_survives_screening(seed: int) -> None:
    rng = random.Random(seed)
    latencies = [1.0, *(rng.uniform(0.6, 1.6) for _ in range(24))]
    latencies[1 + rng.randrange(24)] = 0.5
    calls: list[str] = []
    ranked = screened(latencies, calls, seed=seed)
    assert latencies[int(ranked[0].name[1:])] == 0.5
    assert len({c.name for c in ranked}) == 24
    turns = len([call for call in calls if call.endswith(tuple("0123456789"))])
    assert turns < 25 * len(FEEDS) * MOST_ROUNDS * 2  # every further rung has half as many variants


def test_noise_longer_than_three_short_rounds_does_not_eliminate_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, fastest, other = field([1.0, 0.85, 0.95], [])
    undisturbed, factors = fastest.worker.measure, iter([1.45] * 3 * len(FEEDS))
    monkeypatch.setattr(fastest.worker, "measure", lambda *asked: [next(factors, 1.0) * np.median(undisturbed(*asked))])
    ranked = screen([fastest, other], plain, FEEDS, Turn(0.01, 2), 1, Deadline.after(60), random.Random(0), Samples())
    assert ranked[0] is fastest


def test_a_dropped_variant_gets_a_reason_and_its_process_ends() -> None:
    calls: list[str] = []
    ranked = screened([1.0, 0.5, 0.6, 0.7, 2.0, 2.1, 2.2, 2.3], calls)
    left = [c for c in ranked if c.result.reason]
    assert {c.name for c in left} == {"v4", "v5", "v6", "v7"}
    assert all("dropped after rung 1 of screening: " in c.result.reason for c in left)
    assert {call for call in calls if "closed" in call} == {f"{c.name} closed" for c in left}


@pytest.mark.parametrize(
    ("ratio", "finalists", "seconds", "reason"),
    [
        (1.11, {}, 60, "slower in screening: 1.11 times the plain export's latency"),
        (1.09, {}, 60, ""),  # a few rounds cannot exclude that it is faster
        (0.99, {}, 0, ""),  # one variant is always judged
        (0.6, {"int8": 0.5}, 60, ""),
        (0.6, {"int8": 0.5}, 0, "1.67 times as fast as the plain export in its best rounds of screening; the search"),
        (0.8, {"int8": 0.5}, 60, "of screening; int8: 2.00 times as fast as the plain export in its best rounds"),
        (0.6, {"int8": 0.5, "other": 0.55}, 60, "; 2 faster variants within the budget were measured instead"),
    ],
)
def test_a_variant_that_cannot_win_is_not_measured_in_full(
    ratio: float, finalists: dict[str, float], seconds: float, reason: str
) -> None:
    said = why_out(ratio, finalists, 2, Deadline.after(seconds))
    assert reason in said
    assert bool(said) == bool(reason)


def test_a_search_out_of_time_finishes_its_current_round() -> None:
    calls: list[str] = []
    plain, *others = field([1.0] * 9, calls)
    ranked = screen(others, plain, FEEDS, Turn(0.01, 2), 2, Deadline.after(0), random.Random(0), Samples())
    assert len(ranked) == 8
    assert len([call for call in calls if call.endswith(tuple("0123456789"))]) == 9 * len(FEEDS)


def test_in_every_round_each_variant_runs_once_per_size_in_a_new_order() -> None:
    calls: list[str] = []
    competitors = field([1.0, 1.0, 1.0], calls)
    samples = Samples()
    lasting = dict.fromkeys(FEEDS, Turn(0.01, 3))
    assert list(race(competitors, FEEDS, lasting, range(4), random.Random(0), samples, "single stream")) == [0, 1, 2, 3]
    loaded = [f"v{number} {what}" for what in ("spawned", "loaded") for number in range(3)]
    assert calls[:6] == loaded  # a starting process would take processor time from the measured one
    rounds = [calls[start : start + 6] for start in range(6, 30, 6)]
    assert all(sorted(turns) == ["v0", "v0", "v1", "v1", "v2", "v2"] for turns in rounds)
    assert len({tuple(turns) for turns in rounds}) > 1
    assert competitors[0].warmups == {"b1": 3 + 3, "b8": 3 + 3}


def test_sessions_are_recreated_and_warmed_up_between_sittings() -> None:
    calls: list[str] = []
    plain, original = field([1.0, 1.0], calls)
    plain.result.files = [FileDigest(path="plain.onnx", sha256="0" * 64, size_bytes=1)]
    lasting = dict.fromkeys(FEEDS, Turn(0.01, 10))
    for _ in race(
        [plain, original],
        FEEDS,
        lasting,
        range(5),
        random.Random(0),
        Samples(),
        "single stream",
        session_lifetime_rounds=2,
    ):
        pass
    assert [call for call in calls if "renewed" in call] == ["v0 renewed"] * 2  # after the second and fourth round
    assert plain.warmups["b1"] == 10 + 1 + WARM_CALLS + 1 + WARM_CALLS
    assert original.warmups["b1"] == 10 + 1 + 1 + 1 + 1


@pytest.mark.parametrize(
    ("session_ms", "call_ms", "rounds"), [(20, 1, 1), (20, 5, 2), (20, 10, 3), (20, 15, 4), (900, 1, 5)]
)
def test_sessions_that_are_slow_to_create_or_warm_up_are_kept_longer(
    session_ms: float, call_ms: float, rounds: int
) -> None:
    competitors = field([1.0, 1.0], [])
    for competitor in competitors:
        competitor.result.files = [FileDigest(path="plain.onnx", sha256="0" * 64, size_bytes=1)]
        competitor.result.session_ms = session_ms
        competitor.rounds = {size: [[call_ms]] for size in FEEDS}
    assert session_lifetime_of(competitors, dict.fromkeys(FEEDS, Turn(0.04, 10))) == rounds


def test_a_turn_has_enough_calls_but_stays_short_for_slow_calls() -> None:
    feeds = {size: Feed({}, {}) for size in ("quick", "middling", "long", "unknown")}
    calls = {"quick": 0.1, "middling": 20.0, "long": 400.0, "left out": 1.0}
    assert turns_of(calls, feeds, 0.04, 10) == {
        "quick": Turn(0.04, 10),
        "middling": Turn(0.06, 5),
        "long": Turn(LONGEST_TURN, WARM_CALLS),
        "unknown": Turn(0.04, 10),
    }


def test_slow_calls_are_not_warmed_up_again() -> None:
    competitors = field([1.0, 100.0], [])
    for _ in race(
        competitors, FEEDS, dict.fromkeys(FEEDS, Turn(0.01, 3)), range(4), random.Random(0), Samples(), "single"
    ):
        pass
    assert [competitor.warmups["b1"] for competitor in competitors] == [3 + 3, 3]


def gain(value: float, spread: float = 0.01) -> Ratio:
    return Ratio(value=value, low=value - spread, high=value + spread)


def test_options_that_help_are_combined_and_others_are_dropped() -> None:
    one, two = SessionOptions(threads=1), SessionOptions(threads=2, affinity="2")
    still, flat = SessionOptions(spinning=False), SessionOptions(arena=False)
    assert combine([(one, gain(0.9)), (two, gain(0.8)), (still, gain(0.95)), (flat, gain(HELPS))]) == SessionOptions(
        threads=2, affinity="2", spinning=False
    )
    assert combine([(one, gain(1.2)), (flat, gain(1.0)), (still, gain(0.9, spread=0.2))]) == SessionOptions()


@given(st.integers(1, 64))
def test_every_trial_fits_the_number_of_processors(cores: int) -> None:
    tried = list(trials(CPU, range(1, cores + 1)))
    assert len({str(options) for options in tried}) == len(tried)
    assert all((options.threads or 1) <= cores for options in tried)
    assert SessionOptions() not in tried


def test_on_cuda_only_options_of_the_provider_are_tried() -> None:
    assert {key for options in trials(CUDA, range(1, 17)) for key in options.to_load()} == {"tf32", "nhwc"}


def test_on_openvino_only_its_own_options_are_tried() -> None:
    def keys(provider: str) -> set[str]:
        return {key for options in trials(provider, range(1, 5), ["bfloat16"]) for key in options.to_load()}

    assert keys(OPENVINO_NATIVE) == {"precision", "threads", "performance"}
    assert keys(OPENVINO) == {"precision", "threads", "performance", "graph_level"}
    assert list(trials(OPENVINO_NATIVE, [1])) == []


def test_trials_keep_the_options_that_a_finalist_already_has() -> None:
    """A float32 graph in bfloat16 stays in bfloat16 while threads are tried, and no other precision is."""
    finalist = field([1.0], [])[0]
    finalist.result.provider, finalist.result.precision = OPENVINO_NATIVE, "bfloat16"
    finalist.result.graph, finalist.result.options = "plain", SessionOptions(precision="bfloat16")
    finalist.weights = {"b1": 3.0}
    noise, tried = np.random.default_rng(0), []

    def start(result: Any) -> Any:
        tried.append(result)
        return Simulated(0.5 if result.options.threads == 1 else 1.0, noise, [], result.variant)

    turns = dict.fromkeys(FEEDS, Turn(0.01, 2))
    found = tune(finalist, start, FEEDS, turns, Deadline.after(60), random.Random(0), Samples(), ["float16"])
    if processors.count() > 1:
        assert found is not None
        assert found.result.options == SessionOptions(precision="bfloat16", threads=1)
        assert (found.result.graph, found.result.precision) == ("plain", "bfloat16")
        assert found.weights == {"b1": 3.0}
    assert {result.options.precision for result in tried} == {"bfloat16"}


def test_a_mean_over_sizes_uses_their_weights() -> None:
    plain, variant = field([1.0, 1.0], [])
    plain.rounds = {"b1": [[1.0]] * 3, "b8": [[1.0]] * 3}
    variant.rounds = {"b1": [[0.5]] * 3, "b8": [[2.0]] * 3}
    assert variant.ratios(plain)["all"].value == pytest.approx(1)
    variant.weights = {"b1": 3.0, "b8": 1.0}
    found = variant.ratios(plain)
    assert found["all"].value == variant.ratio(plain).value == pytest.approx(0.5**0.5)
    assert (found["b1"].value, found["b8"].value, worst_size(found)) == (0.5, 2.0, "b8")


@pytest.mark.parametrize(
    ("variants", "enough"),
    [
        ({"a": (0.8, 0.001), "b": (0.805, 0.001)}, True),  # narrow
        ({"a": (0.8, 0.1), "b": (0.82, 0.1)}, False),
        ({"a": (0.5, 0.1), "b": (0.8, 0.1)}, True),  # apart
        ({"a": (0.5, 0.1), "b": (0.45, 0.001)}, False),
        ({"a": (1.5, 0.1)}, True),  # the plain export leads clearly
        ({"a": (1.1, 0.1)}, False),
        ({}, True),
    ],
)
def test_a_race_stops_if_intervals_are_narrow_or_far_apart(
    variants: dict[str, tuple[float, float]], enough: bool
) -> None:
    rng, raced = np.random.default_rng(0), [(1.0, 0.0), *variants.values()]
    plain, *others = field([ratio for ratio, _ in raced], [])
    for competitor, (ratio, spread) in zip([plain, *others], raced, strict=True):
        competitor.result.files = [FileDigest(path="a.onnx", sha256="0" * 64, size_bytes=1)]
        competitor.rounds = {"b1": [[ratio * float(np.exp(noise))] for noise in rng.normal(0, spread, 20)]}
    assert race_is_decided(plain, others) is enough


@given(st.integers(0, 8), st.integers(1, 300))
def test_a_sweep_doubles_the_batch_from_the_smallest_to_the_largest(least: int, most: int) -> None:
    if least > most:
        return
    found = list(batches(Dim(min=least, max=most, typical=[most])))
    assert found[0] == min(max(least, 1), most)
    assert found[-1] == most
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(found))


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=10))
def test_no_batch_beyond_the_knee_is_worthwhile(throughputs: list[float]) -> None:
    points = [SweepPoint(sizes={"batch": 2**n}, p50_ms=1, throughput=t) for n, t in enumerate(throughputs)]
    found = knee(points)
    assert found is not None
    after = points[points.index(found) + 1 :]
    assert all(point.throughput < WORTH_DOUBLING * found.throughput for point in after)


def test_callers_run_concurrently() -> None:
    latencies, wall = time_callers(lambda: time.sleep(0.02), 0.1, 4)
    assert sum(latencies) / 1e3 > 2 * wall
    assert len(latencies) >= 4 * 2
