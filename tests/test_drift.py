"""Drift: no alarm without one, an alarm with one that matters, and no error on any traffic."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.drift import Case, with_drift, without_drift
from onward.registry.evidence.records import OutputKind
from onward.registry.monitoring import statistics
from onward.registry.monitoring.drift import LAST, FeatureResult, Judge, Window, explain, judge
from onward.registry.monitoring.reference import Reference, build
from tests.conftest import ROOT

SCORES = [OutputKind(output="logits", kind="scores", axis=1)]
W1, PSI = "Wasserstein / standard deviation", "PSI"


def rows(seed: int, count: int = 400, shift: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(shift, 1, (count, 3)).astype(np.float32),
        "image": rng.normal(shift, 1, (count, 1, 8, 8)).astype(np.float32),
        "ids": rng.integers(2, 500, (count, 12)),
        "kind": rng.integers(0, 4, count),
        "words": np.array([" ".join(rng.choice(["a", "b", "c", "d"], rng.integers(3, 9))) for _ in range(count)]),
    }


def answers(seed: int, count: int = 400, shift: float = 0.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed + 10_000)
    return {"logits": rng.normal(0, 1, (count, 4)) + np.array([shift, 0, 0, 0])}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return build(rows(0, 800), answers(0, 800), SCORES)


def windows(count: int = 400, inputs: float = 0.0, outputs: float = 0.0) -> list[Window]:
    return [Window(rows(i, count, inputs), answers(i, count, outputs)) for i in range(1, LAST + 1)]


def alarms(results: list[FeatureResult]) -> set[str]:
    return {one.feature for one in results if one.alarm}


def only(values: Any, count: int = LAST) -> list[Window]:
    return [Window({"x": values}, {})] * count


def test_traffic_like_the_reference_raises_no_alarm(reference: Reference) -> None:
    results = judge(reference, windows())
    assert not alarms(results)
    assert {one.kind for one in results} == {"input", "output"}
    assert {"output logits: class", "output logits: margin", "input image: projections", "input ids: tokens"} <= {
        one.feature for one in results
    }
    assert all(one.threshold > 0 and np.isfinite(one.threshold) for one in results)


def test_shifted_inputs_raise_alarms_for_inputs_only(reference: Reference) -> None:
    found = alarms(judge(reference, windows(inputs=1.0)))
    assert {"input x[0]", "input x[2]", "input image: mean", "input image: projections"} <= found
    assert not any(name.startswith("output") for name in found)
    assert not {"input ids: tokens", "input kind", "input words: words"} & found


def test_shifted_answers_raise_alarms_for_outputs_only(reference: Reference) -> None:
    found = alarms(judge(reference, windows(outputs=1.5)))
    assert "output logits: class" in found
    assert not any(name.startswith("input") for name in found)


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"kind": np.full(400, 9)}, "input kind"),
        ({"ids": np.full((400, 12), 7)}, "input ids: tokens"),
        ({"words": np.array(["something else"] * 400)}, "input words: words"),
        ({"words": np.array(["a b c d a b c d a b c d"] * 400)}, "input words: length"),
        ({"x": np.full((400, 3), np.nan)}, "input x: not finite"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else change,
)
def test_a_change_of_each_kind_of_input_is_found(reference: Reference, change: dict[str, Any], feature: str) -> None:
    changed = [Window({**one.inputs, **change}, one.outputs) for one in windows()]
    assert feature in alarms(judge(reference, changed))


def test_an_alarm_needs_three_of_the_last_five_windows(reference: Reference) -> None:
    calm, loud = windows(), windows(inputs=1.0)
    two = judge(reference, [*calm[:3], *loud[:2]])
    three = judge(reference, [*calm[:2], *loud[:3]])
    assert not alarms(two)
    assert "input x[0]" in alarms(three)
    column = next(one for one in three if (one.feature, one.measure) == ("input x[0]", W1))
    assert column.windows == (False, False, True, True, True)
    assert column.effect > max(column.floor, column.threshold)
    assert "input x[0]" not in alarms(judge(reference, [*loud[:5], *calm]))  # the last five count


def test_a_significant_shift_below_the_floor_raises_no_alarm() -> None:
    rng = np.random.default_rng(0)
    known = build({"x": rng.normal(0, 1, 20_000)}, {})
    results = judge(known, [Window({"x": rng.normal(0.07, 1, 20_000)}, {}) for _ in range(LAST)])
    column = next(one for one in results if one.measure == W1)
    assert column.threshold < column.effect < column.floor
    assert not column.alarm


def test_the_threshold_falls_with_the_size_of_the_window_and_of_the_reference() -> None:
    rng = np.random.default_rng(1)

    def threshold(reference: int, window: int) -> float:
        known = build({"x": rng.normal(0, 1, reference)}, {})
        results = judge(known, [Window({"x": rng.normal(0, 1, window)}, {}) for _ in range(LAST)])
        return next(one.threshold for one in results if one.measure == W1)

    assert threshold(100, 100) > threshold(100, 5000) > threshold(5000, 5000)
    assert threshold(100, 100_000) > 0.25  # the error of a small reference remains, however large the windows are


def test_windows_whose_neighbours_depend_on_each_other_get_a_higher_threshold() -> None:
    rng = np.random.default_rng(2)
    known = build({"x": rng.normal(0, 1, 1000)}, {})

    def traffic(length: int) -> list[Window]:
        return [Window({"x": np.repeat(rng.normal(0, 1, 1000 // length), length)}, {}) for _ in range(LAST)]

    alone, repeated = (judge(known, traffic(length)) for length in (1, 20))
    assert repeated[0].threshold > 1.8 * alone[0].threshold
    assert not alarms(repeated)


def test_the_order_of_windows_samples_changes_no_effect(reference: Reference) -> None:
    order = np.random.default_rng(3).permutation(400)
    first = windows(inputs=0.2)
    mixed = [
        Window(
            {name: values[order] for name, values in one.inputs.items()},  # type: ignore[call-overload]
            {name: values[order] for name, values in one.outputs.items()},  # type: ignore[call-overload]
        )
        for one in first
    ]
    before, after = judge(reference, first), judge(reference, mixed)
    assert [one.feature for one in before] == [one.feature for one in after]
    assert np.allclose([one.effect for one in before], [one.effect for one in after])


def test_pieces_of_a_window_count_as_the_whole(reference: Reference) -> None:
    whole = windows()
    parts = [
        Window(
            {name: np.array_split(values, 7) for name, values in one.inputs.items()},
            {name: np.array_split(values, 7) for name, values in one.outputs.items()},
        )
        for one in whole
    ]
    assert judge(reference, parts) == judge(reference, whole)


def test_thresholds_that_decide_nothing_can_be_left_out(reference: Reference) -> None:
    for found in (windows(), windows(inputs=0.3)):
        whole, quick = (Judge(reference, thresholds).judge(found) for thresholds in (True, False))
        assert [(one.effect, one.alarm, one.windows) for one in whole] == [
            (one.effect, one.alarm, one.windows) for one in quick
        ]
        assert all(np.isfinite(one.threshold) for one in whole)


def test_summaries_are_judged_like_their_windows(reference: Reference) -> None:
    judge_ = Judge(reference)
    found = windows(inputs=0.5)
    assert judge_.judge([judge_.summarise(one) for one in found]) == judge_.judge(found) == judge(reference, found)
    kept = judge_.summarise(found[0])
    assert all(len(sums) <= statistics.BLOCKS for sums, _ in kept.sums.values())


def _drawn(rng: np.random.Generator, family: str, n: int) -> Any:
    return {
        "normal": rng.normal(0, 1, n),
        "exponential": rng.exponential(1, n),
        "uniform": rng.uniform(0, 1, n),
        "ties": rng.integers(0, 4, n).astype(float),
        "zeros": rng.normal(0, 1, n) * (rng.random(n) < 0.2),
        "huge": rng.normal(0, 1, n) * 1e300,
        "tiny": rng.normal(0, 1, n) * 1e-300,
        "offset": 1.7e9 + rng.normal(0, 1, n),
    }[family]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    family=st.sampled_from(["normal", "exponential", "uniform", "ties", "zeros", "huge", "tiny", "offset"]),
    count=st.sampled_from([30, 200, 1000]),
)
def test_a_copy_of_the_references_distribution_raises_no_alarm(seed: int, family: str, count: int) -> None:
    rng = np.random.default_rng(seed)
    draw = partial(_drawn, rng, family)
    known = build({"x": draw(count)}, {})
    assert known.features
    assert not alarms(judge(known, [Window({"x": draw(count)}, {}) for _ in range(LAST)]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), first=st.floats(0, 5), more=st.floats(0, 5), count=st.sampled_from([50, 400]))
def test_the_effect_grows_with_the_shift(seed: int, first: float, more: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    known = build({"x": rng.normal(0, 1, 500)}, {})
    sample = rng.normal(0, 1, count)
    sample += 0.5 - sample.mean()  # right of the reference, so that the shift increases the distance

    def effect(shift: float) -> float:
        return next(one.effect for one in judge(known, only(sample + shift)) if one.measure == W1)

    assert effect(first + more) >= effect(first) - 0.02
    assert effect(first) == pytest.approx(first + 0.5, abs=0.35 + first / 4)


def test_a_huge_shift_has_a_huge_effect_and_infinities_are_counted_apart() -> None:
    rng = np.random.default_rng(5)
    known = build({"x": rng.normal(0, 1, 500)}, {})
    far = next(one for one in judge(known, only(np.full(200, 1e30))) if one.measure == W1)
    assert far.alarm
    assert np.isfinite(far.effect)
    results = judge(known, only(np.where(np.arange(200) % 2, np.inf, rng.normal(0, 1, 200))))
    assert alarms(results) == {"input x: not finite"}


VALUES = st.one_of(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40)),
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)),
    hnp.arrays(np.uint64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)),
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=30)),
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)),
    hnp.arrays(np.float16, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)),
    st.lists(st.text(max_size=20), max_size=40).map(lambda texts: np.array(texts, object)),
    st.lists(st.binary(max_size=20), max_size=40).map(lambda texts: np.array(texts, object)),
    st.sampled_from([None, 3, "text", np.float32(1), np.array([{"a": 1}, None, 3] * 10, object), [[1], [2, 3]]]),
)


@settings(max_examples=60, deadline=None)
@given(at_publication=VALUES, live=VALUES)
@example(at_publication=np.linspace(1e168, 1e169, 1200).reshape(30, 40), live=np.full((30, 40), 1e307))
def test_no_tensor_is_an_error(at_publication: Any, live: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = build({"x": at_publication}, {"y": at_publication})
        assert Reference.model_validate_json(known.to_json()) == known
        for result in judge(known, [Window({"x": live}, {"y": live})] * LAST):
            assert np.isfinite(result.effect)
            assert np.isfinite(result.threshold)
        judge(known, [Window({"x": at_publication}, {"y": [live, at_publication]})] * 2)


@settings(max_examples=40, deadline=None)
@given(
    live=st.dictionaries(st.sampled_from(["x", "image", "ids", "kind", "words", "other"]), VALUES),
    answered=st.dictionaries(st.sampled_from(["logits", "other"]), VALUES),
)
@example({"kind": np.array([2.0**63, -np.inf, np.nan])}, {})
def test_no_traffic_is_an_error(live: Mapping[str, Any], answered: Mapping[str, Any]) -> None:
    known = build(rows(0, 60), answers(0, 60), SCORES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(known, [Window(live, answered), *windows(60)[:2], Window(live, answered)])


def test_nothing_is_judged_without_a_reference_windows_or_enough_samples(reference: Reference) -> None:
    assert judge(None, windows()) == []
    assert judge(reference, []) == []
    assert judge(reference, [Window({}, {})] * LAST) == []
    assert judge(reference, windows(count=1)) == []
    assert "no reference" in explain(None)
    assert "too few" in explain(build({"x": np.zeros(3)}, {}))
    assert explain(reference) == ""


def test_inputs_that_were_not_recorded_have_no_result(reference: Reference) -> None:
    results = judge(reference, [Window({"x": one.inputs["x"]}, {}) for one in windows()])
    assert {one.feature for one in results} == {"input x[0]", "input x[1]", "input x[2]", "input x: not finite"}


def test_samples_of_other_shapes_are_left_out(reference: Reference) -> None:
    wrong = np.full((400, 5), 100.0)
    assert judge(reference, only(wrong)) == []
    mixed = [Window({"x": [np.asarray(one.inputs["x"]), wrong]}, {}) for one in windows()]
    assert judge(reference, mixed) == judge(reference, [Window({"x": one.inputs["x"]}, {}) for one in windows()])


def test_images_of_other_sizes_keep_the_features_that_do_not_depend_on_the_size(reference: Reference) -> None:
    rng = np.random.default_rng(6)
    found = judge(reference, [Window({"image": rng.normal(0, 1, (300, 1, 8, 12))}, {}) for _ in range(LAST)])
    assert "input image: mean" in {one.feature for one in found}
    assert not any("projection" in one.feature for one in found)


def test_padding_does_not_count() -> None:
    rng = np.random.default_rng(7)

    def padded(count: int, length: int, left: bool = False) -> Any:
        ids = rng.integers(1, 50, (count, length))
        kept = np.arange(length) < rng.integers(4, 12, count)[:, None]
        return np.where(kept[:, ::-1] if left else kept, ids, 0)

    for left in (False, True):
        known = build({"ids": padded(500, 64, left)}, {})
        assert {one.label for one in known.features} == {"tokens", "length"}
        assert not alarms(judge(known, [Window({"ids": padded(300, 16, left)}, {}) for _ in range(LAST)]))


def test_a_length_that_never_varies_at_publication_is_not_watched() -> None:
    rng = np.random.default_rng(8)
    known = build({"ids": rng.integers(1, 50, (500, 64))}, {})
    assert [one.label for one in known.features] == ["tokens"]
    assert not alarms(judge(known, [Window({"ids": rng.integers(1, 50, (300, 20))}, {}) for _ in range(LAST)]))


def test_a_column_that_never_varied_raises_an_alarm_when_it_does() -> None:
    known = build({"x": np.full(300, 3.5)}, {})
    assert not alarms(judge(known, only(np.full(300, 3.5))))
    assert alarms(judge(known, only(np.full(300, 3.6)))) == {"input x"}
    assert not alarms(judge(known, only(np.where(np.arange(300) == 0, 9.0, 3.5))))  # one in 300


def test_large_integers_wrap_around_instead_of_failing() -> None:
    values = np.random.default_rng(9).choice(np.array([0, 2**63, 2**64 - 1], np.uint64), 300)
    known = build({"x": values}, {})
    assert not alarms(judge(known, only(values)))
    assert alarms(judge(known, only(np.full(300, 2**62, np.uint64)))) == {"input x"}


def test_segmentation_and_steps_have_class_shares() -> None:
    rng = np.random.default_rng(10)
    kinds = [OutputKind(output="y", kind="scores", axis=1)]
    known = build({}, {"y": rng.normal(0, 1, (200, 3, 4, 4))}, kinds)
    assert {one.label for one in known.features} >= {"class", "margin", "norm"}
    loud = rng.normal(0, 1, (200, 3, 4, 4)) + np.array([3.0, 0, 0])[:, None, None]
    assert "output y: class" in alarms(judge(known, [Window({}, {"y": loud})] * LAST))


def test_benjamini_hochberg_accepts_more_with_more_findings() -> None:
    assert statistics.critical([0.5, 0.9], 0.1) == pytest.approx(0.05)
    assert statistics.critical([0.001, 0.06, 0.9], 0.1) == pytest.approx(0.2 / 3)
    assert statistics.critical([0.04, 0.05], 0.05) == pytest.approx(0.05)
    assert statistics.critical([], 0.05) == pytest.approx(0.05)


def test_the_distances_agree_with_scipys() -> None:
    from scipy import spatial, stats

    rng = np.random.default_rng(11)
    p, q = rng.dirichlet(np.ones(8), 2)
    assert statistics.jensen_shannon(p, q) == pytest.approx(spatial.distance.jensenshannon(p, q, base=2))
    first, second = rng.normal(0, 1, 3000), rng.normal(0.4, 1.2, 3000)
    known = build({"x": first}, {})
    found = next(one.effect for one in judge(known, only(second)) if one.measure == W1)
    assert found == pytest.approx(stats.wasserstein_distance(first, second) / first.std(), rel=0.03)


def test_blocks_are_of_about_the_same_length_and_keep_the_sum() -> None:
    for count in (1, 5, 63, 64, 65, 1000):
        codes = np.random.default_rng(count).integers(0, 3, count)
        sums = statistics.block_counts(codes, 3)
        assert sums.shape == (min(count, statistics.BLOCKS), 3)
        assert np.array_equal(sums.sum(0), np.bincount(codes, minlength=3))
        assert np.array_equal(sums.sum(1), statistics.lengths(count))
        assert np.array_equal(sums, statistics.block_sums(np.eye(3)[codes]))
        assert np.ptp(statistics.lengths(count)) <= 1


def test_the_benchmark_finds_no_false_alarm_and_the_required_power() -> None:
    assert without_drift(Case(200), 40).alarms == 0
    assert without_drift(Case(300, reference=100), 20).alarms == 0
    assert without_drift(Case(300, correlation=0.9), 40).alarms == 0
    assert with_drift(Case(1000, shift=0.3), 8).column >= 7
    assert with_drift(Case(1000, moved=0.2), 5).column == 5


def test_monitoring_needs_numpy_and_pydantic_only() -> None:
    code = (
        "import sys; import onward.registry.monitoring.drift; "
        "print([m for m in ('torch','dvc','pandas','sklearn','scipy','mlflow','pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
