"""Statistics and choice: no chosen variant is slower than the plain export or outside the budget."""

from __future__ import annotations

import math
import statistics
from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from onward.registry.evidence.records import FileDigest, Latency, Measurement, Ratio
from onward.registry.evidence.session_options import SessionOptions
from onward.stages.config.schema import Budget
from onward.stages.measuring.statistics import (
    FEWEST_FOR_P90,
    FEWEST_FOR_P95,
    FEWEST_FOR_P99,
    Array,
    drift,
    quotient,
    ratio,
    summarize,
    undisturbed,
)
from onward.stages.parity.budget import Judgement
from onward.stages.select import WORTHWHILE, choose, pareto
from tests.conftest import not_none


@pytest.mark.parametrize("count", [1, 63, 64, 129, 130, 661, 662])
def test_too_few_samples_give_no_percentile(count: int) -> None:
    values = list(range(1, count + 1))
    figures = summarize([values], "b1", {"batch": 1}, 3)
    for name, share, fewest in (("p90", 90, 64), ("p95", 95, 130), ("p99", 99, 662)):
        stated = getattr(figures, f"{name}_ms")
        assert stated == (pytest.approx(np.percentile(values, share)) if count >= fewest else None), name
        assert (f"{name} needs {fewest}" in figures.withheld) == (count < fewest)
    assert bool(figures.withheld) == (count < 662)


@pytest.mark.parametrize(
    ("percentile", "fewest"), [(0.90, FEWEST_FOR_P90), (0.95, FEWEST_FOR_P95), (0.99, FEWEST_FOR_P99)]
)
def test_the_minimum_sample_count_follows_the_early_stopping_rule(percentile: float, fewest: int) -> None:
    assert stats.binom.cdf(1, fewest, 1 - percentile) <= 0.01 < stats.binom.cdf(1, fewest - 1, 1 - percentile)


def test_throughput_counts_items_of_a_batch() -> None:
    assert summarize([[2.0, 2.0]], "b8", {"batch": 8}, 0).throughput == pytest.approx(4000)
    assert summarize([[0.5]], "b8", {"batch": 8, "length": 3}, 0).throughput == pytest.approx(16000)
    assert summarize([[2.0]], "one", {}, 0).throughput == pytest.approx(500)
    assert summarize([[0.0]], "b1", {"batch": 1}, 0).throughput == math.inf
    with pytest.raises(ValueError, match="no latencies"):
        summarize([], "b1", {}, 0)


def test_latencies_of_all_rounds_are_summarized_together() -> None:
    figures = summarize([[3.0, 1.0], [2.0], [8.0]], "b1", {"batch": 2}, 7)
    assert (figures.samples, figures.warmup, figures.sizes) == (4, 7, {"batch": 2})
    assert (figures.p50_ms, figures.mean_ms, figures.min_ms, figures.max_ms) == (2.5, 3.5, 1.0, 8.0)
    assert figures.std_ms == pytest.approx(statistics.stdev([3, 1, 2, 8]))
    assert summarize([[3.0]], "b1", {}, 0).std_ms == 0
    assert summarize([[1.0], [3.0]], "b1", {}, 0).std_ms == pytest.approx(math.sqrt(2))
    assert figures.drift is None
    assert summarize([[1.0 + n] for n in range(6)], "b1", {}, 0).drift == pytest.approx(5.5 / 1.5 - 1)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.randoms())
@example([5.0, 4.0, 3.0, 2.0, 1.0, 6.0, 7.0, 8.0], Random(0))
def test_a_latency_is_estimated_from_the_fastest_quarter_of_the_rounds(logs: list[float], random: Random) -> None:
    assert undisturbed(np.array(logs)) == pytest.approx(np.mean(sorted(logs)[: math.ceil(len(logs) / 4)]))
    random.shuffle(logs)
    quarter = sorted(logs)[: math.ceil(len(logs) / 4)]
    assert undisturbed(np.array(logs)) == pytest.approx(np.mean(quarter))
    assert undisturbed(np.array([logs, logs[::-1]])) == pytest.approx([np.mean(quarter)] * 2)


@given(st.floats(0.01, 100), st.floats(1, 2), st.floats(0.01, 100), st.floats(1, 2))
def test_a_ratio_of_ratios_has_an_interval_between_the_wider_one_and_both_combined(
    over: float, over_spread: float, under: float, under_spread: float
) -> None:
    first = Ratio(value=over, low=over / over_spread, high=over * over_spread)
    second = Ratio(value=under, low=under / under_spread, high=under * under_spread)
    found = quotient(first, second)
    assert found.value == pytest.approx(over / under)
    for end in (found.high / found.value, found.value / found.low):
        assert max(over_spread, under_spread) * (1 - 1e-9) <= end <= over_spread * under_spread * (1 + 1e-9)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.floats(0.2, 5))
def test_a_constant_factor_is_found_despite_noise_between_rounds(speeds: list[float], factor: float) -> None:
    plain = np.array(speeds)
    found = ratio([(plain * factor, plain), (plain * factor * 3, plain * 3)])
    assert found.value == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


def shared_machine(rng: np.random.Generator, latency: float, rounds: int) -> Array:
    """Medians of rounds on a shared machine: half of the rounds take up to 1.5 times as long."""
    disturbed = rng.random(rounds) < 0.5
    return np.asarray(latency * rng.lognormal(0, 0.01, rounds) * (1 + disturbed * rng.uniform(0, 0.5, rounds)))


@pytest.mark.parametrize("rounds", [12, 25, 60])
def test_an_interval_contains_the_undisturbed_latency_on_a_busy_machine(rounds: int) -> None:
    rng = np.random.default_rng(0)
    intervals = [
        ratio([(shared_machine(rng, 0.9 * size, rounds), shared_machine(rng, size, rounds)) for size in (0.1, 2.0)])
        for _ in range(200)
    ]
    assert np.mean([interval.low <= 0.9 <= interval.high for interval in intervals]) > 0.9
    assert np.std([np.log(interval.value) for interval in intervals]) < 0.12 / np.sqrt(rounds)


def test_noise_is_not_reported_as_a_gain() -> None:
    rng = np.random.default_rng(0)
    wins = 0
    for _ in range(100):
        plain, variant = (np.median(rng.lognormal(0, 0.05, (12, 30)), axis=1) for _ in range(2))
        wins += ratio([(variant, plain)]).high < WORTHWHILE
    assert wins <= 2


@pytest.mark.parametrize(("growth", "wanted"), [(0.0, False), (0.002, False), (0.03, True), (-0.03, True)])
def test_drift_is_detected_and_noise_is_not(growth: float, wanted: bool) -> None:
    rng = np.random.default_rng(0)
    medians = [1.0 + growth * number + 0.01 * rng.standard_normal() for number in range(12)]
    found = drift(medians)
    assert found is not None
    assert (found != 0.0) == wanted
    assert found * growth >= 0


def test_few_rounds_give_no_drift() -> None:
    assert drift([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert drift([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(5.5 / 1.5 - 1)


@pytest.mark.parametrize(
    ("medians", "found"),
    [
        ([10, 11, 12, 13, 14, 15, 16], 15.5 / 10.5 - 1),
        ([16, 15, 14, 13, 12, 11, 10], 10.5 / 15.5 - 1),
        ([10, 11, 12, 14, 13, 15, 16], 15.5 / 10.5 - 1),  # one pair out of order: probability 0.3 %
        ([10, 12, 11, 13, 14, 16, 15], 0),  # two pairs: 1.1 %
        ([16, 16.1, 16.2, 16.3, 16.4, 16.5, 17], 0),  # significant, but only 4 %
        ([16, 16.1, 16.2, 16.3, 16.4, 16.9, 17], 16.95 / 16.05 - 1),  # 6 %
        ([16, 11, 12, 13, 14, 10, 30], 0),  # large, but without a trend
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 8 / 2 - 1),
    ],
)
def test_drift_is_the_significant_change_from_the_first_to_the_last_third(medians: list[float], found: float) -> None:
    assert drift(medians) == pytest.approx(found)


def test_an_interval_is_a_deterministic_percentile_bootstrap_over_rounds() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.lognormal(0, 0.3, 15), rng.lognormal(0.1, 0.3, 15)) for _ in range(2)]
    found = ratio(pairs)
    # A fixed seed makes a recomputed report identical to the byte.
    assert [found.low, found.high] == pytest.approx([0.8584350666622304, 1.1057202694706465], rel=1e-9)
    drawn = [
        np.mean([undisturbed(np.log(a[again])) - undisturbed(np.log(b[again])) for a, b in pairs])
        for again in rng.integers(0, 15, (4000, 15))
    ]
    assert [found.low, found.high] == pytest.approx(np.exp(np.percentile(drawn, [2.5, 97.5])), rel=0.015)


def test_unequal_rounds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        ratio([(np.ones(1), np.ones(2))])
    with pytest.raises(ValueError, match="cannot be paired"):
        ratio([(np.ones(0), np.ones(0))])


def measured(
    name: str, value: float = 1.0, spread: float = 0.01, quality: float | None = 0.9, **changes: object
) -> Measurement:
    found = Ratio(value=value, low=value - spread, high=value + spread)
    latency = Latency(
        size="b1", sizes={"batch": 1}, samples=1, warmup=0, mean_ms=value, std_ms=0, min_ms=value, max_ms=value,
        p50_ms=value, p90_ms=None, p95_ms=value, p99_ms=None, throughput=1,
    )  # fmt: skip
    return Measurement(
        variant=name, runtime="cpu", provider="CPUExecutionProvider", precision="float32", status="passed",
        quality=quality, ratios={"b1": found, "all": found}, latencies=[latency],
        files=[FileDigest(path="m.onnx", sha256="0" * 64, size_bytes=1_000_000)],
    ).model_copy(update=changes)  # fmt: skip


REFERENCE = measured("reference")
PLAIN = measured("plain", spread=0)


def chosen(*variants: Measurement, budget: Budget | None = None) -> str | None:
    choices = choose([PLAIN, *variants], Judgement(REFERENCE.quality, budget or Budget()))
    assert all(choice.reason for choice in choices)
    names = [choice.variant for choice in choices if choice.chosen]
    assert len(names) <= 1
    return names[0] if names else None


def test_the_fastest_within_the_budget_wins() -> None:
    assert chosen(measured("a", 0.8), measured("b", 0.5), measured("c", 0.7)) == "b"


def test_a_faster_variant_that_costs_too_much_quality_loses() -> None:
    assert chosen(measured("a", 0.8), measured("b", 0.5, quality=0.88)) == "a"


def test_a_gain_within_the_noise_leaves_the_plain_export() -> None:
    assert chosen(measured("a", 0.97, spread=0.05)) == "plain"
    assert chosen(measured("a", 0.99, spread=0.001)) == "plain"


def test_a_variant_that_is_slower_at_one_size_loses() -> None:
    mixed = measured("a", 0.8)
    mixed.ratios["b32"] = Ratio(value=1.2, low=1.1, high=1.3)
    assert chosen(mixed) == "plain"


def test_among_equally_fast_variants_the_smallest_loss_wins_then_the_simplest() -> None:
    assert chosen(measured("a", 0.5, quality=0.895), measured("b", 0.504, quality=0.9)) == "b"
    tuned = measured("a-tuned", 0.5, options=SessionOptions(threads=1))
    assert chosen(tuned, measured("b", 0.504)) == "b"
    assert chosen(tuned, measured("b", 0.6)) == "a-tuned"


def test_a_variant_that_was_only_screened_never_wins() -> None:
    assert chosen(measured("a", 0.2, status="not attempted", reason="left", latencies=[])) == "plain"
    assert chosen(measured("a", 0.2, quality=0.5, latencies=[])) == "plain"


def test_a_variant_that_failed_never_wins() -> None:
    assert chosen(measured("a", 0.2, status="failed", reason="differs")) == "plain"


def test_quality_that_is_nan_or_unknown_never_wins() -> None:
    assert chosen(measured("a", 0.2, quality=float("nan"))) == "plain"
    assert chosen(measured("a", 0.2, quality=None, precision="int8")) == "plain"


@pytest.mark.parametrize(
    "budget", [Budget(size_mb=0.5), Budget(latency_ms=0.1), Budget(memory_mb=10)], ids=["size", "latency", "memory"]
)
def test_nothing_is_chosen_when_nothing_meets_a_ceiling(budget: Budget) -> None:
    plain = measured("plain", spread=0, peak_memory_mb=50.0)
    choices = choose([plain], Judgement(REFERENCE.quality, budget))
    assert not choices[0].chosen
    assert "budget." in choices[0].reason


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.9, 1), st.integers(1, 5)), max_size=8))
def test_the_pareto_front_contains_exactly_the_undominated_variants(found: list[tuple[float, float, int]]) -> None:
    files = [[FileDigest(path="m.onnx", sha256="0" * 64, size_bytes=size)] for _, _, size in found]
    field = [
        PLAIN,
        *(measured(f"v{i}", v, 0, q, files=files[i]) for i, (v, q, _) in enumerate(found)),
    ]
    drops: dict[str, float | None] = {m.variant: 0.9 - (m.quality or 0) for m in field}
    front = pareto(field, drops)

    def costs(m: Measurement) -> tuple[float, float, int]:
        return m.ratios["all"].value, drops[m.variant] or 0, m.files[0].size_bytes

    def beats(a: Measurement, b: Measurement) -> bool:
        return costs(a) != costs(b) and all(x <= y for x, y in zip(costs(a), costs(b), strict=True))

    assert front
    assert not any(beats(a, b) for a in field for b in front)
    assert all(any(beats(a, b) for a in front) for b in field if b not in front)


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(0, 0.5), st.floats(0.5, 1)), max_size=8))
def test_the_chosen_variant_is_never_slower_and_never_outside_the_budget(
    found: list[tuple[float, float, float]],
) -> None:
    variants = [measured(f"v{i}", value, spread, quality) for i, (value, spread, quality) in enumerate(found)]
    name = chosen(*variants)
    winner = next(m for m in [PLAIN, *variants] if m.variant == name)
    assert winner is PLAIN or winner.ratios["all"].high < 1
    assert not_none(REFERENCE.quality) - not_none(winner.quality) <= Budget().quality_drop + 1e-6
