"""Errors and latency of a live version: sequential tests, baselines, windows, and what the policy allows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.registry.errors import Refused, UsageError
from onward.registry.gates import policy
from onward.registry.log.entries import Entry, fold
from onward.registry.monitoring import decay
from onward.registry.monitoring.decay import Call, ErrorTest, LatencyBaseline, acceptable_rate
from onward.registry.monitoring.drift import Window
from onward.registry.monitoring.watch import Counts, Deployment, Watch, drift_window
from onward.registry.monitoring.windows import Reservoir, persistent, split
from onward.registry.watch import response

CNN = Deployment("cnn@production", "2", "a" * 64, 7)


@given(
    acceptable=st.floats(0.001, 0.5),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_evidence_against_an_acceptable_rate_is_a_supermartingale(
    acceptable: float, share: float, seed: int
) -> None:
    """At every true rate up to the acceptable one, the expected evidence after a step is at most that before it."""
    rate, chance = acceptable * share, np.random.default_rng(seed)
    test = ErrorTest(acceptable)
    for failed in chance.random(50) < chance.random():
        before, next_failed, next_not = test.log_evidence, ErrorTest(acceptable), ErrorTest(acceptable)
        next_failed._logs, next_not._logs = test._logs.copy(), test._logs.copy()
        next_failed.add(True)
        next_not.add(False)
        expected = rate * np.exp(next_failed.log_evidence - before) + (1 - rate) * np.exp(
            next_not.log_evidence - before
        )
        assert expected <= 1 + 1e-9
        test.add(bool(failed))


def test_false_alarms_are_as_rare_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at after each of 3,000 requests, at most 5 % of 400 sound versions raise an alarm at a level of 5 %."""
    monkeypatch.setattr(decay, "FALSE_ALARM", 0.05)
    chance, alarms = np.random.default_rng(17), 0
    for _ in range(400):
        test = ErrorTest(0.05)
        for failed in chance.random(3000) < 0.05:
            if test.add(bool(failed)):
                alarms += 1
                break
    assert alarms <= 0.05 * 400 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_a_version_that_always_fails_is_noticed_after_a_few_requests() -> None:
    test = ErrorTest(acceptable_rate(0, 0))
    assert next(number for number in range(1, 100) if test.add(True)) <= 10
    half = ErrorTest(acceptable_rate(3, 5000))
    assert next(number for number in range(1, 200) if half.add(number % 2 == 0)) <= 30


@given(requests=st.integers(1, 10**6), share=st.floats(0, 1))
def test_an_acceptable_rate_is_never_below_the_observed_one(requests: int, share: float) -> None:
    failures = int(requests * share)
    rate = acceptable_rate(failures, requests)
    assert decay.RATE_FLOOR <= rate <= 0.99
    assert rate >= min(failures / requests, 0.99)
    assert rate <= max(decay.UNKNOWN_RATE, failures / requests)


@given(size=st.integers(1, 20), total=st.integers(0, 60), seed=st.integers(0, 1000))
def test_a_reservoir_keeps_as_much_as_it_may_and_only_what_it_saw(size: int, total: int, seed: int) -> None:
    reservoir: Reservoir[int] = Reservoir(size, seed)
    for item in range(total):
        place = reservoir.place()
        if place is not None:
            reservoir.put(place, item)
    assert len(reservoir.items) == min(size, total) == len(set(reservoir.items))
    assert set(reservoir.items) <= set(range(total))
    assert reservoir.seen == total


def test_a_reservoir_is_uniform() -> None:
    counts = np.zeros(30)
    for seed in range(3000):
        reservoir: Reservoir[int] = Reservoir(5, seed)
        for item in range(30):
            if (place := reservoir.place()) is not None:
                reservoir.put(place, item)
        counts[reservoir.items] += 1
    expected = 3000 * 5 / 30
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@given(st.lists(st.floats(0, 10_000), max_size=200), st.floats(1, 500), st.integers(1, 30))
def test_windows_are_in_order_and_have_enough_rows(times: list[float], seconds: float, least: int) -> None:
    calls = [Window({}, {}, start=time) for time in times]

    class Row:
        def __init__(self, arrived: float) -> None:
            self.arrived = arrived

    windows = split([Row(call.start) for call in calls], seconds, least)
    assert all(len(window) >= least for window in windows)
    joined = [row.arrived for window in windows for row in window]
    assert joined == sorted(times)[: len(joined)]
    assert len(times) - len(joined) < least or not windows or len(times) - len(joined) < least


def test_an_alarm_needs_three_of_five_windows() -> None:
    assert not persistent([True, True])
    assert persistent([True, False, True, False, True])
    assert not persistent([True, True, True, False, False, False, True])


def calls(ms: float, count: int = 200, size: int = 16, seed: int = 1) -> list[Call]:
    return [Call(size, float(value)) for value in np.random.default_rng(seed).lognormal(np.log(ms), 0.1, count)]


def test_latency_is_compared_with_calls_of_the_same_size() -> None:
    baseline = decay.latency_baseline("evidence", calls(5) + calls(50, size=1024))
    assert baseline is not None
    same = decay.judge_latency(baseline, calls(50, 50, 1024, seed=2) + calls(5, 50, seed=3))
    assert same is not None
    assert (same.p50_exceeded, same.p99_exceeded) == (False, False)
    slow = decay.judge_latency(baseline, calls(9, 50, seed=4))
    assert slow is not None
    assert (slow.p50_exceeded, round(slow.p50_ratio, 1)) == (True, 1.8)
    assert decay.judge_latency(baseline, calls(9, 50, size=50_000)) is None
    assert decay.judge_latency(baseline, calls(9, 5)) is None  # too few
    assert decay.latency_baseline("evidence", calls(5, 50)) is None


def test_a_slow_tail_alone_exceeds_p99_and_less_than_a_millisecond_does_not_count() -> None:
    baseline = decay.latency_baseline("evidence", calls(5, 2000))
    assert baseline is not None
    tail = decay.judge_latency(baseline, calls(5, 180, seed=2) + calls(40, 20, seed=3))
    assert tail is not None
    assert (tail.p50_exceeded, tail.p99_exceeded) == (False, True)
    tiny = decay.judge_latency(LatencyBaseline("evidence", {16: 0.02}, 1.2, 100), calls(0.5, 100))
    assert tiny is not None
    assert (tiny.p50_exceeded, tiny.p99_exceeded) == (False, False)


def test_false_alarms_of_latency_are_rare() -> None:
    baseline = decay.latency_baseline("evidence", calls(5, 1000))
    assert baseline is not None
    found = [decay.judge_latency(baseline, calls(5, 100, seed=seed)) for seed in range(300)]
    assert sum(one is not None and (one.p50_exceeded or one.p99_exceeded) for one in found) <= 3


def watched(outcomes: list[tuple[float, bool, float]], **options: Any) -> Watch:
    """A watch of requests: time, whether it failed, and the duration in ms."""
    watch = Watch(CNN, **options)
    for arrived, failed, ms in outcomes:
        watch.add(arrived, "failed" if failed else "success", None if failed else Call(16, ms))
    return watch


def test_the_version_before_is_the_measure_of_errors() -> None:
    steady = [(i * 0.1, i % 50 == 0, 1.0) for i in range(2000)]
    assert watched(steady, before=Counts(2000, 40)).judgement().alarms == ()
    worse = watched([(i * 0.1, i % 5 == 0, 1.0) for i in range(500)], before=Counts(2000, 10)).judgement()
    (alarm,) = worse.alarms
    assert (alarm.kind, "the version before" in alarm.text, "100 of 500" in alarm.text) == ("errors", True, True)


def test_an_alarm_ends_when_its_cause_has_passed() -> None:
    watch = watched([(i * 1.0, 100 <= i < 120, 1.0) for i in range(130)], before=Counts(500))
    for i in range(20):
        watch.add(130.0 + i, "invalid")
    assert {alarm.kind for alarm in watch.judgement().alarms} == {"errors", "rejections"}
    for i in range(100):
        watch.add(150.0 + i, "success", Call(16, 1.0))
    assert watch.judgement().alarms == ()
    assert watch.judgement().failures == 20
    assert watch.measure == Counts(500)
    for i in range(20):
        watch.add(260.0 + i, "failed")
    assert {alarm.kind for alarm in watch.judgement().alarms} == {"errors"}


def test_a_version_that_failed_is_no_measure_of_the_next() -> None:
    sound = watched([(i * 0.1, False, 1.0) for i in range(200)], before=Counts(500))
    assert sound.measure == Counts(200)
    assert watched([(0.0, False, 1.0)], before=Counts(500, 1)).measure == Counts(500, 1)
    assert watched([(0.0, False, 1.0)]).measure == Counts(1)
    failing = watched([(i * 0.1, True, 1.0) for i in range(200)], before=Counts(500, 2))
    assert failing.measure == Counts(500, 2)


def test_without_a_version_before_the_first_hour_is_the_measure() -> None:
    steady = [(i * 10.0, i % 25 == 0, 1.0) for i in range(360)]  # 4 % from the beginning
    later = [(3600 + i * 10.0, i % 25 == 0, 1.0) for i in range(360)]
    watch = watched(steady + later)
    assert watch.judgement().alarms == ()
    assert watch.judgement().acceptable_from == "the version's first hour"
    for i in range(60):
        watch.add(7300 + i, "failed")
    assert [alarm.kind for alarm in watch.judgement().alarms] == ["errors"]


def test_a_version_that_rejects_more_requests_than_the_one_before_raises_an_alarm() -> None:
    watch = watched([(0.0, False, 1.0)], before=Counts(1000, 0, 20))
    for i in range(40):
        watch.add(1.0 + i, "invalid")
    (alarm,) = watch.judgement().alarms
    assert (alarm.kind, "40 of 41 requests were rejected" in alarm.text) == ("rejections", True)
    unknown = watched([(0.0, False, 1.0)])
    for i in range(40):
        unknown.add(1.0 + i, "invalid")
    assert unknown.judgement().alarms == ()


def test_a_version_that_gets_slower_than_in_its_first_hour_raises_an_alarm() -> None:
    fast = [(i * 10.0, False, 5.0) for i in range(370)]
    watch = watched(fast, before=Counts(100))
    assert watch.judgement().latency_from == "the version's first hour"
    for i in range(200):
        watch.add(3800 + i, "success", Call(16, 20.0))
    alarms = watch.judgement().alarms
    assert {alarm.kind for alarm in alarms} == {"latency"}
    assert "4 times as long as in the version's first hour" in alarms[0].text


def test_a_benchmark_of_other_sizes_gives_way_to_the_first_hour() -> None:
    for size, source in ((16, "the benchmark"), (64, "the version's first hour")):
        watch = watched([], before=Counts(100))
        watch.baseline = decay.latency_baseline("the benchmark", calls(5, size=size))
        for i in range(400):
            watch.add(i * 10.0, "success", Call(16, 5.0))
        found = watch.judgement()
        assert found.latency_from == source
        assert found.alarms == ()


def test_requests_of_different_shapes_are_given_one_by_one() -> None:
    rows = [
        (float(n), {"ids": np.zeros((1, n + 1)), "mask": np.ones((1, 2))}, {"y": np.ones((1, 3))}) for n in range(3)
    ]
    window = drift_window(rows)
    assert isinstance(window.inputs["ids"], list)
    assert np.shape(window.inputs["mask"]) == (3, 2)
    assert (np.shape(window.outputs["y"]), window.start, window.end) == ((3, 3), 0.0, 2.0)


@pytest.mark.parametrize("key", ["input_drift", "output_drift", "shadow"])
def test_a_rollback_on_drift_or_disagreement_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises(UsageError, match=f"on_decay.{key}: no rollback is possible: .*; write alert or ignore"):
        policy.parse({"live": {"from": "candidate", "require": [], "on_decay": {key: "rollback"}}})


def test_the_policy_on_decay_is_checked() -> None:
    def read(**on_decay: Any) -> policy.OnDecay:
        return policy.parse({"live": {"from": "candidate", "require": [], "on_decay": on_decay}})["live"].on_decay

    assert read() == policy.OnDecay()
    assert read(errors="rollback", latency="rollback", shadow="alert", input_drift="alert").errors == "rollback"
    for wrong, words in (
        ({"errors": "roll back"}, "on_decay.errors"),
        ({"error": "alert"}, "there are errors, rejections, latency, shadow, input_drift, output_drift"),
        ({"cooldown_hours": 0}, "on_decay.cooldown_hours"),
        ({"cooldown_hours": float("nan")}, "on_decay.cooldown_hours"),
    ):
        with pytest.raises(UsageError, match=words):
            read(**wrong)


NOW = datetime(2026, 11, 28, tzinfo=UTC)


def entry(number: int, base: int, sha: str, actor: str = "ann", restores: int = 0, hours_ago: float = 100) -> Entry:
    return Entry(
        number=number,
        kind="rollback" if restores else "promote",
        key=f"key{number}",
        base=base,
        sha256=sha * 64,
        candidate_version=number,
        source="models:/m-1",
        actor=actor,
        reason="because",
        at=(NOW - timedelta(hours=hours_ago)).isoformat(),
        restores=restores,
    )


def test_an_automatic_rollback_never_goes_to_a_version_that_was_rolled_back() -> None:
    """b failed and the monitor went back to a. Then c was promoted and fails: b is not restored, a is."""
    log = [entry(1, 0, "a"), entry(2, 1, "b"), entry(3, 2, "a", "monitor", 1), entry(4, 3, "b"), entry(5, 4, "c")]
    history = fold(log)
    assert response.earlier(history, partial(history.find)).number == 1
    again = fold([*log[:3], entry(4, 3, "b")])
    assert response.earlier(again, partial(again.find)).number == 1
    only = fold([entry(1, 0, "b"), entry(2, 1, "a"), entry(3, 2, "b", "monitor", 1), entry(4, 3, "a")])
    assert response.earlier(only, partial(only.find)).sha256 == "b" * 64
    alone = fold([entry(1, 0, "a")])
    with pytest.raises(Refused, match="was the first deployment"):
        response.earlier(alone, partial(alone.find))
    worn = fold([entry(1, 0, "b"), entry(2, 1, "a"), entry(3, 2, "b", "monitor", 1)])
    with pytest.raises(Refused, match="was the first deployment"):
        response.earlier(worn, partial(worn.find))


@given(hours=st.floats(0.01, 1000), ago=st.floats(0, 2000))
def test_there_is_at_most_one_automatic_rollback_per_cooldown(hours: float, ago: float) -> None:
    history = fold([entry(1, 0, "a"), entry(2, 1, "b"), entry(3, 2, "a", "monitor", 1, hours_ago=ago)])
    if ago < hours - 1e-6:
        with pytest.raises(Refused, match="entry 3 was an automatic rollback"):
            response.check_cooldown(history, hours, NOW)
    elif ago > hours + 1e-6:
        response.check_cooldown(history, hours, NOW)


def test_a_rollback_by_a_person_starts_no_cooldown() -> None:
    history = fold([entry(1, 0, "a"), entry(2, 1, "b"), entry(3, 2, "a", "ann", 1, hours_ago=0)])
    response.check_cooldown(history, 24, NOW)
