"""Each rule of stages/parity/compare.py, per element, at its limit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.stages.parity.compare import ROUNDING, SPREAD, compare, squared_change, unexplained

Array = np.ndarray[Any, np.dtype[Any]]
F = np.float32
EPS = float(np.spacing(F(1)))  # the ulp of 1


def f32(*values: float) -> Array:
    return np.array(values, F)


def outs(
    reference: Array, got: Array, rtol: float = 0, atol: float = 0, truth: Any = None, spread: Any = None
) -> list[bool]:
    """Compare each element separately; returns which ones are out of tolerance."""
    found = []
    for n in range(reference.size):
        one = compare(
            "y", reference[n : n + 1], got[n : n + 1], rtol, atol,
            None if truth is None else np.array(truth[n : n + 1]),
            None if spread is None else np.array(spread[n : n + 1]),
        )  # fmt: skip
        assert one.verdict in ("ok", "out of tolerance")
        assert one.share_out == (one.verdict != "ok")
        found.append(one.verdict != "ok")
    return found


def by_the_rule(wanted: float, got: float, rtol: float, atol: float, truth: float | None, spread: float | None) -> bool:
    """The rule in the docstring of `compare` for one finite float32 element: whether it is out of tolerance."""
    out = abs(got - wanted) > atol + rtol * abs(wanted)
    if truth is None and spread is None:
        return out
    ulp = abs(float(np.spacing(F(wanted))))
    allowed = max(ROUNDING * ulp, SPREAD * spread if spread is not None else 0)
    centre = wanted
    if truth is not None and math.isfinite(truth):
        own = abs(wanted - truth)
        if spread is None or own <= SPREAD * spread + ROUNDING * ulp:
            centre, allowed = truth, max(allowed, ROUNDING * own)
    return out and abs(got - centre) > allowed


values = st.floats(-1e6, 1e6, width=32)
small = st.floats(1e-9, 10)


@given(
    values, values, small, small, st.none() | st.floats(-1e6, 1e6) | st.just(math.inf), st.none() | small, st.booleans()
)
def test_an_element_fails_if_neither_tolerance_nor_rounding_explains_it(
    wanted: float, got: float, rtol: float, atol: float, truth: float | None, spread: float | None, near: bool
) -> None:
    rtol, atol = rtol * 1e-3, atol * 1e-3
    if near and truth is not None and math.isfinite(truth):
        truth = wanted + truth * 1e-9
        got = float(F(wanted + (got - wanted) * 1e-7))
    found = compare(
        "y", f32(wanted), f32(got), rtol, atol, None if truth is None else np.array([truth]),
        None if spread is None else np.array([spread]),
    )  # fmt: skip
    assert (found.verdict != "ok") == by_the_rule(wanted, got, rtol, atol, truth, spread)


def test_a_difference_up_to_the_tolerance_passes() -> None:
    reference = f32(2, -2, 0, 0, 2)
    got = f32(2.75, -2.75, 0.25, 0.5, 1.25)
    assert outs(reference, got, rtol=0.25, atol=0.25) == [False, False, False, True, False]
    assert outs(reference, f32(2.751, -2.751, 0.251, 0, 1.249), rtol=0.25, atol=0.25) == [True, True, True, False, True]


def test_ten_ulps_count_as_rounding_if_the_rounding_is_known() -> None:
    reference, spread = f32(1, 1, 1), [0.0, 0.0, 0.0]
    got = f32(1 + 10 * EPS, 1 + 11 * EPS, 1 - 11 * EPS)
    assert outs(reference, got) == [True, True, True]
    assert outs(reference, got, spread=spread) == [False, True, True]
    assert outs(reference, got, truth=[1.0, 1.0, 1.0]) == [False, True, True]


def test_ten_times_the_reference_error_against_float64_counts_as_rounding() -> None:
    reference, truth = f32(1, 1, 1, 1), [1.01, 1.01, 1.01, 1.01]
    got = f32(1.109, 1.111, 0.911, 0.909)
    assert outs(reference, got, truth=truth) == [False, True, False, True]


def test_a_hundred_times_the_spread_of_an_element_counts_as_rounding() -> None:
    reference, spread = f32(1, 1, 1), [0.01, 0.01, 0.01]
    assert outs(reference, f32(1.99, 2.01, 0.01), spread=spread) == [False, True, False]
    # The larger allowance applies: by spread, or by the distance to float64.
    assert outs(reference, f32(2.4, 2.6, -0.4), truth=[1.5] * 3, spread=spread) == [False, False, False]
    assert outs(reference, f32(6.4, 6.6, -3.6), truth=[1.5] * 3, spread=spread) == [False, True, True]


def test_a_float64_output_that_the_spread_cannot_explain_is_ignored() -> None:
    reference, spread, truth = f32(1), [1e-3], [1.2]
    assert unexplained(reference, np.array(truth), np.array(spread)).tolist() == [True]
    assert outs(reference, f32(1.15), truth=truth, spread=spread) == [True]
    assert outs(reference, f32(1.09), truth=truth, spread=spread) == [False]
    assert outs(reference, f32(1.15), truth=[1.09], spread=spread) == [False]


@pytest.mark.parametrize("truth", [np.ones(2), np.ones((1, 1))])
def test_a_truth_or_spread_of_another_shape_is_ignored(truth: Array) -> None:
    reference, got = f32(1), f32(1.5)
    plain = compare("y", reference, got, 0, 0)
    assert compare("y", reference, got, 0, 0, truth, truth * 9) == plain
    assert plain.error is None


def test_an_integer_output_that_the_spread_changes_is_not_judged() -> None:
    reference, got = np.array([3, 4]), np.array([5, 4])
    assert compare("y", reference, got, 0, 0, spread=np.array([0.5, 0])).verdict == "ok"
    assert compare("y", reference, got, 0, 0, spread=np.array([0, 0.5])).share_out == 0.5
    assert compare("y", reference, got, 9, 9).share_out == 0.5
    assert compare("y", reference, got, 0, 0, np.array([3.0, 9.0])).share_out == 0.5
    assert compare("y", reference, got, 0, 0, np.array([3.5, 4.0])).verdict == "ok"
    assert compare("y", np.array([True, False]), np.array([True, True]), 1, 1).share_out == 0.5


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", "c8", "O"])
def test_non_numeric_outputs_must_be_equal(dtype: str) -> None:
    made: dict[str, list[Any]] = {"M8[s]": ["2026-01-01", "2026-01-02"], "c8": [1 + 1j, 1 - 1j], "O": ["1", "2"]}
    reference = np.array(made.get(dtype, ["a", "b"]), dtype)
    same = compare("y", reference, reference.copy(), 0, 0)
    assert (same.verdict, same.share_out) == ("ok", 0)
    other = compare("y", reference, reference[::-1].copy(), 9, 9)
    assert (other.verdict, other.share_out) == ("out of tolerance", 1)


def test_only_elements_that_overflow_in_the_reference_but_not_in_float64_are_not_judged() -> None:
    reference, truth = f32(np.inf, np.nan, 1, np.inf), np.array([1e39, 2.0, np.nan, np.inf])
    assert compare("y", reference, f32(7, 7, 1, np.inf), 0, 0, truth).verdict == "ok"
    assert compare("y", reference, f32(7, 7, 2, np.inf), 0, 0, truth).share_out == 0.25
    odd = compare("y", reference, f32(7, 7, 2, 7), 0, 0, truth)
    assert (odd.verdict, odd.share_out) == ("NaN mismatch", 1.0)  # of the two judged elements
    assert "NaN or infinity" in odd.reason
    assert compare("y", f32(1, np.inf), f32(1, 3), 0, 0, np.array([1.0, np.inf])).verdict == "NaN mismatch"


def test_nan_and_infinity_pass_where_the_reference_has_them() -> None:
    odd = f32(np.nan, np.inf, -np.inf, 1)
    found = compare("y", odd, odd.copy(), 0, 0)
    assert (found.verdict, found.share_out, found.max_abs) == ("ok", 0, 0)
    assert compare("y", odd, f32(np.nan, np.inf, np.inf, 1), 9, 9).verdict == "NaN mismatch"


def test_with_misplaced_nan_the_share_also_counts_elements_out_of_tolerance() -> None:
    reference = f32(1, 2, np.nan, np.inf, 4, 4, 4, 4)
    got = f32(1.05, 9, np.nan, np.inf, np.nan, 4, 4, 4)
    found = compare("y", reference, got, 0.1, 0)
    assert (found.verdict, found.share_out) == ("NaN mismatch", 0.25)
    assert compare("y", reference, got, 0, 0.1).share_out == 0.25
    assert compare("y", reference, got, 0, 0).share_out == 0.375


def test_every_figure_matches_its_definition() -> None:
    reference, got = f32(4, -8, 0, 1e-9), f32(4.5, -7, 0.25, 0)
    found = compare("y", reference, got, 0, 0.125)
    assert (found.output, found.verdict, found.share_out) == ("y", "out of tolerance", 0.75)
    assert (found.max_abs, found.out_abs) == (1.0, 1.0)
    assert found.mean_abs == pytest.approx((0.5 + 1 + 0.25) / 4)
    assert found.max_rel == pytest.approx(2)  # 0.25 relative to atol, because the reference is smaller
    assert (found.error, found.reference_error) == (None, None)
    assert found.cosine == pytest.approx(74 / math.sqrt(80 * (4.5**2 + 49 + 0.0625)))
    assert found.snr_db == pytest.approx(10 * math.log10(80 / (0.25 + 1 + 0.0625)), rel=1e-6)
    assert found.agreement is None
    rows = compare("y", reference.reshape(2, 2), got.reshape(2, 2)[:, ::-1].copy(), 0, 0)
    assert rows.agreement == 0.5
    within = compare("y", reference, got, 0, 0.5)
    assert (within.share_out, within.out_abs, within.max_abs) == (0.25, 1.0, 1.0)
    assert compare("y", reference, got, 0, 1).out_abs is None


def test_errors_against_float64_are_maxima() -> None:
    reference, got, truth = f32(1, 2, 3, np.inf), f32(1.5, 2, 3.25, np.inf), np.array([1.25, 1.0, np.inf, 5.0])
    found = compare("y", reference, got, 9, 9, truth)
    assert (found.error, found.reference_error) == (1.0, 1.0)
    found = compare("y", reference[:1], got[:1], 9, 9, np.array([0.5]))
    assert (found.error, found.reference_error) == (1.0, 0.5)
    assert compare("y", reference[:1], got[:1], 9, 9, np.array([np.nan])).error is None
    assert compare("y", reference[:1], got[:1], 9, 9, spread=np.array([1.0])).error is None


def test_the_denominator_of_a_relative_error_is_at_least_atol_and_positive() -> None:
    assert compare("y", f32(1e-3), f32(2e-3), 0, 1e-2).max_rel == pytest.approx(0.1)
    assert compare("y", f32(1e-3), f32(2e-3), 0, 1e-4).max_rel == pytest.approx(1)
    assert compare("y", f32(0), f32(0), 0, 0).max_rel == 0
    assert math.isfinite(compare("y", f32(0), f32(1), 0, 0).max_rel or math.inf)


def test_integer_outputs_have_no_float_figures() -> None:
    found = compare("y", np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 6]]), 0, 0)
    assert (found.max_abs, found.mean_abs, found.max_rel) == (2.0, 0.5, 0.5)
    assert (found.cosine, found.snr_db, found.agreement, found.max_ulp) == (None, None, None, None)
    assert (found.error, found.reference_error, found.out_abs) == (None, None, 2.0)
    judged = compare("y", np.array([3, 4]), np.array([3, 5]), 0, 0, np.array([3.0, 4.0]), np.zeros(2))
    assert (judged.share_out, judged.error, judged.reference_error) == (0.5, None, None)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_an_empty_output_has_zero_figures(shape: tuple[int, ...]) -> None:
    empty = np.empty(shape, F)
    for truth in (None, np.empty(shape)):
        found = compare("y", empty, empty, 0, 0, truth)
        assert (found.verdict, found.share_out, found.max_abs, found.mean_abs, found.max_rel) == ("ok", 0, 0, 0, 0)
        assert (found.max_ulp, found.error, found.out_abs) == (None, None, None)


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 50))
def test_ulps_between_float32_values_are_counted(start: float, steps: int) -> None:
    end = F(start)
    for _ in range(steps):
        end = np.nextafter(end, F(np.inf))
    assert compare("y", f32(start), np.array([end]), 9, 9).max_ulp == steps
    assert compare("y", np.array([end]), f32(start), 9, 9).max_ulp == steps


def test_ulps_are_counted_across_zero_and_for_every_width_and_the_maximum_is_reported() -> None:
    for dtype, width in ((np.float16, 16), (np.float32, 32), (np.float64, 64)):
        tiny = np.nextafter(dtype(0), dtype(1))
        assert compare("y", np.array([-tiny, 1], dtype), np.array([tiny, 1], dtype), 9, 9).max_ulp == 2
        assert compare("y", np.array([-0.0], dtype), np.array([0.0], dtype), 9, 9).max_ulp == 0
        one = np.array([1, 1, 1], dtype)
        up = np.nextafter(one, dtype(2))
        assert compare("y", one, np.array([1, np.nextafter(up[0], dtype(2)), up[0]], dtype), 9, 9).max_ulp == 2
        most = np.finfo(dtype).max
        far = compare("y", np.array([-most], dtype), np.array([most], dtype), math.inf, math.inf).max_ulp
        assert far == 2 * (2 ** (width - 1) - 2 ** (np.finfo(dtype).nmant) - 1)
    assert compare("y", np.ones((3, 2), F).T, np.ones((3, 2), F).T, 0, 0).max_ulp == 0


def test_a_difference_is_squared_in_float64_and_is_zero_if_not_finite() -> None:
    one, other = f32(3, 3e38, np.inf, np.nan, np.inf, 1), f32(1, -3e38, np.inf, 1, 1, 1)
    found = squared_change(one, other)
    assert found.dtype == np.float64
    assert found[1] == pytest.approx(3.6e77)
    assert [*found[:1], *found[2:]] == [4, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("wanted", "truth", "spread", "is_unexplained"),
    [
        (1.0, 1.1, None, False), (1.0, 0.91, None, False), (1.0, 1.12, None, True), (1.0, 0.89, None, True),
        (0.0, 1e-9, None, True), (0.0, 0.0, None, False), (-1.0, -1.12, None, True), (-1.0, -1.09, None, False),
        (1.0, np.nan, None, False), (np.inf, 1.0, None, False), (np.nan, 1.0, 0.0, False), (1.0, np.inf, 0.0, False),
        (1.0, 1 + 10 * EPS, 0.0, False), (1.0, 1 + 11 * EPS, 0.0, True), (1.0, 1 - 11 * EPS, 0.0, True),
        (1.0, 1.99, 0.01, False), (1.0, 2.01, 0.01, True), (0.0, 1e-44, 0.0, False), (0.0, 2e-44, 0.0, True),
    ],
)  # fmt: skip
def test_a_float64_output_is_unexplained_beyond_a_tenth_or_beyond_spread_and_rounding(
    wanted: float, truth: float, spread: float | None, is_unexplained: bool
) -> None:
    found = unexplained(f32(wanted), np.array([truth]), None if spread is None else np.array([spread]))
    assert found.tolist() == [is_unexplained]


def test_a_different_dtype_or_shape_is_reported_with_both_values() -> None:
    found = compare("y", f32(1), np.ones(1), 9, 9)
    assert (found.output, found.verdict, found.reason) == ("y", "dtype mismatch", "float64 instead of float32")
    found = compare("y", f32(1), f32(1, 1), 9, 9)
    assert (found.output, found.verdict, found.reason) == ("y", "shape mismatch", "[2] instead of [1]")
