"""Cases and comparison: what is fed, and when it counts as the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from registry.errors import UsageError
from stages.parity.cases import draw, random_cases, sample_cases, size_key, typical_sizes
from stages.parity.compare import agreement, compare
from stages.settings import Dim, Input

sizes = st.integers(1, 40).flatmap(
    lambda low: st.integers(low, 64).flatmap(
        lambda high: st.lists(st.integers(low, high), min_size=1, max_size=3).map(
            lambda typical: Dim(min=low, max=high, typical=typical)
        )
    )
)
dims = st.fixed_dictionaries({"batch": sizes, "time": sizes})
INPUTS = {
    "ids": Input(dtype="int64", shape=["batch", "time"], range=(-3, 9)),
    "x": Input(shape=["batch", 4]),
    "on": Input(dtype="bool", shape=["batch"]),
}


@given(dims, st.integers(0, 2**31))
def test_cases_have_the_declared_shapes_dtypes_and_ranges(dims: dict[str, Dim], seed: int) -> None:
    cases = list(random_cases(INPUTS, dims, 3, seed))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        batch, time = case.sizes["batch"], case.sizes["time"]
        assert dims["batch"].min <= batch <= dims["batch"].max
        assert case.inputs["ids"].shape == (batch, time)
        assert case.inputs["ids"].dtype == np.int64
        assert case.inputs["ids"].min() >= -3
        assert case.inputs["ids"].max() <= 9
        assert case.inputs["x"].shape == (batch, 4)
        assert case.inputs["on"].dtype == np.bool_


@given(dims, st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_cases_and_every_typical_size_is_fed(dims: dict[str, Dim], seed: int) -> None:
    first, second = (list(random_cases(INPUTS, dims, 2, seed)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        assert all(np.array_equal(one.inputs[name], other.inputs[name]) for name in INPUTS)
    fed = [case.sizes for case in first]
    assert all(size in fed for size in typical_sizes(dims))
    assert {name: dim.max for name, dim in dims.items()} in fed


def test_a_case_does_not_depend_on_those_before_it() -> None:
    dims = {"batch": Dim(max=8, typical=[1, 2])}
    few = {case.name: case for case in random_cases({"x": INPUTS["x"]}, dims, 2, 0)}
    many = {case.name: case for case in random_cases({"x": INPUTS["x"]}, dims, 6, 0)}
    for name in few:
        assert np.array_equal(few[name].inputs["x"], many[name].inputs["x"])


def test_own_cases_must_give_the_declared_inputs() -> None:
    dims = {"batch": Dim(max=8, typical=[1])}
    with pytest.raises(UsageError, match="gives inputs"):
        list(random_cases({"x": INPUTS["x"]}, dims, 1, 0, lambda sizes, rng: {"z": np.zeros(1)}))


def test_samples_are_fed_in_batches_no_larger_than_allowed() -> None:
    dims = {"batch": Dim(max=4, typical=[1])}
    data = {"x": np.arange(40, dtype=np.float32).reshape(10, 4)}
    cases = list(sample_cases({"x": INPUTS["x"]}, dims, data, 9))
    assert [case.sizes["batch"] for case in cases] == [4, 4, 1]
    assert np.array_equal(np.concatenate([case.inputs["x"] for case in cases]), data["x"][:9])


@given(st.lists(st.sampled_from(["batch", "b", "sequence", "seq", "time"]), unique=True, max_size=4))
def test_size_keys_tell_dimensions_apart(names: list[str]) -> None:
    keys = {size_key({name: 7 if name == other else 1 for name in names}) for other in names}
    assert len(keys) == len(names)


def test_draws_reach_both_ends_of_an_integer_range() -> None:
    drawn = draw(INPUTS, {"batch": 64, "time": 64}, np.random.default_rng(0))["ids"]
    assert (drawn.min(), drawn.max()) == (-3, 9)


floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-1e6, 1e6, width=32))


@given(floats)
def test_anything_equals_itself(values: np.ndarray) -> None:
    result = compare("y", values, values.copy(), 0, 0)
    assert (result.verdict, result.share_out) == ("ok", 0)


@given(floats, st.floats(0, 0.1), st.floats(0, 1))
def test_the_verdict_is_that_of_numpy_allclose(values: np.ndarray, rtol: float, atol: float) -> None:
    got = values + np.float32(0.05)
    wanted = np.allclose(got.astype(np.float64), values.astype(np.float64), rtol=rtol, atol=atol)
    assert (compare("y", values, got, rtol, atol).verdict == "ok") == wanted


@given(floats, st.data())
def test_one_element_changed_by_more_than_the_tolerance_never_passes(values: np.ndarray, data: st.DataObject) -> None:
    got = values.copy()
    place = data.draw(st.integers(0, values.size - 1))
    got.flat[place] += 1 + abs(got.flat[place])
    result = compare("y", values, got, 1e-3, 1e-5)
    assert result.verdict == "out of tolerance"
    assert result.share_out == pytest.approx(1 / values.size)


@pytest.mark.parametrize(
    ("reference", "got", "verdict"),
    [
        ([1.0, np.nan], [1.0, np.nan], "ok"),
        ([1.0, np.inf], [1.0, np.inf], "ok"),
        ([1.0, np.inf], [1.0, -np.inf], "NaN mismatch"),
        ([1.0, 2.0], [1.0, np.nan], "NaN mismatch"),
        ([1.0, np.nan], [1.0, 2.0], "NaN mismatch"),
        ([1.0, 2.0], [[1.0, 2.0]], "shape mismatch"),
    ],
)
def test_nan_infinity_and_shape_are_verdicts_of_their_own(reference: list, got: list, verdict: str) -> None:
    assert compare("y", np.array(reference, np.float32), np.array(got, np.float32), 1, 1).verdict == verdict


def test_another_dtype_never_passes_and_integers_must_be_equal() -> None:
    ones = np.ones(3, np.float32)
    assert compare("y", ones, ones.astype(np.float64), 1, 1).verdict == "dtype mismatch"
    assert compare("y", np.array([1, 2]), np.array([1, 3]), 1, 1).verdict == "out of tolerance"
    assert compare("y", np.array([True]), np.array([True]), 0, 0).verdict == "ok"


def test_an_empty_output_is_the_same_as_an_empty_output() -> None:
    empty = np.empty((0, 3), np.float32)
    assert compare("y", empty, empty, 0, 0).verdict == "ok"


def test_agreement_counts_rows_with_the_same_answer() -> None:
    reference = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert agreement(reference, np.array([[0.0, 9.0], [0.0, 1.0]])) == 0.5
    assert agreement(np.ones(3), np.ones(3)) is None
