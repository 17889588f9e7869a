"""Cases and comparison: which inputs are generated, and which outputs count as equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onward.registry.errors import UsageError
from onward.registry.evidence.similarity import agreement
from onward.stages.config.schema import Dim, Input
from onward.stages.parity.cases import Case, all_cases, draw, find, resized
from onward.stages.parity.check import Expected, answers, findings, recall, save_answers
from onward.stages.parity.compare import compare
from onward.stages.parity.sizes import corner_sizes, example_sizes, is_prime, prime_sizes, size_key, typical_sizes
from onward.stages.workers.worker import WorkerFailure

sizes = st.integers(0, 40).flatmap(
    lambda low: st.integers(max(1, low), 64).flatmap(
        lambda high: st.lists(st.integers(max(1, low), high), min_size=1, max_size=3).map(
            lambda typical: Dim(min=low, max=high, typical=typical)
        )
    )
)
dims = st.fixed_dictionaries({"batch": sizes, "time": sizes})
INPUTS = {
    "ids": Input(dtype="int64", shape=["batch", "time"], range=(-3, 9)),
    "x": Input(shape=["batch", 4]),
    "unit": Input(shape=["batch"], range=(0, 1)),
    "mask": Input(dtype="int64", shape=["batch", "time"], range=(0, 1)),
    "on": Input(dtype="bool", shape=["batch"]),
}
BATCH = {"batch": Dim(max=8, typical=[1, 2])}


def samples(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return draw(INPUTS, {"batch": batch, "time": 5}, rng)


def cases(dims: dict[str, Dim], seed: int = 0, draws: int = 3) -> list[Case]:
    return list(all_cases(INPUTS, dims, draws, seed))


@given(dims, st.integers(0, 2**31))
def test_cases_have_the_declared_shapes_dtypes_and_ranges(dims: dict[str, Dim], seed: int) -> None:
    made = cases(dims, seed)
    assert len({case.name for case in made}) == len(made)
    for case in made:
        batch, time = case.sizes["batch"], case.sizes["time"]
        assert {name: value.dtype for name, value in case.inputs.items()} == {
            name: np.dtype(spec.dtype) for name, spec in INPUTS.items()
        }
        assert case.inputs["ids"].shape == case.inputs["mask"].shape == (batch, time)
        assert case.inputs["x"].shape == (batch, 4)
        if case.probe:
            continue
        for name, dim in dims.items():
            assert dim.min <= case.sizes[name] <= dim.max
        for name in ("ids", "unit", "mask"):
            low, high = INPUTS[name].range or (0, 0)
            if case.inputs[name].size:
                assert low <= case.inputs[name].min() <= case.inputs[name].max() <= high
        assert np.isfinite(case.inputs["x"]).all()


@given(dims, st.integers(0, 2**31))
def test_a_seed_gives_reproducible_cases_with_every_typical_size(dims: dict[str, Dim], seed: int) -> None:
    first, second = cases(dims, seed), cases(dims, seed)
    for one, other in zip(first, second, strict=True):
        assert (one.name, one.seed, one.probe) == (other.name, other.seed, other.probe)
        assert all(np.array_equal(one.inputs[name], other.inputs[name], equal_nan=name == "x") for name in ("ids", "x"))
    fed = [case.sizes for case in first if not case.probe]
    assert all(size in fed for size in typical_sizes(dims))


@given(dims)
def test_every_dimension_is_tested_at_its_minimum_maximum_and_an_unseen_prime(
    dims: dict[str, Dim],
) -> None:
    fed = [case.sizes for case in cases(dims) if not case.probe]
    assert {name: dim.min for name, dim in dims.items()} in fed
    assert {name: dim.max for name, dim in dims.items()} in fed
    prime = prime_sizes(dims)
    assert prime in fed
    for name, dim in dims.items():
        assert {dim.min, dim.max, *dim.typical} <= {sizes[name] for sizes in fed}
        known = {example_sizes(dims)[name], *dim.typical}
        if any(is_prime(size) and size >= 3 and size not in known for size in range(dim.min, dim.max + 1)):
            assert is_prime(prime[name])
            assert prime[name] not in known


@given(dims)
def test_an_exporter_gets_no_size_that_it_specializes_on(dims: dict[str, Dim]) -> None:
    given_ = example_sizes(dims)
    for name, dim in dims.items():
        assert dim.min <= given_[name] <= dim.max
        assert given_[name] >= 2 or dim.max < 2
    if all(dim.max - max(2, dim.min) >= 1 for dim in dims.values()):
        assert len(set(given_.values())) == len(dims)


@given(dims)
def test_sizes_and_their_names_are_unique(dims: dict[str, Dim]) -> None:
    corners = [size_key(sizes) for _, sizes in corner_sizes(dims)]
    assert len(set(corners)) == len(corners)
    assert not set(corners) & {size_key(sizes) for sizes in typical_sizes(dims)}


@given(st.integers(0, 10_000))
def test_a_prime_has_no_factors(number: int) -> None:
    assert is_prime(number) == (number > 1 and not any(number % factor == 0 for factor in range(2, number)))


def test_fills_cover_zero_both_signs_large_magnitudes_and_range_ends() -> None:
    made = {case.name.split("@")[0]: case.inputs for case in cases({**BATCH, "time": Dim(max=9, typical=[4])})}
    assert (made["zeros"]["x"] == 0).all()
    assert (made["ones"]["x"] == 1).all()
    assert (made["minus-ones"]["x"] == -1).all()
    assert (made["minus-ones"]["unit"] == 0).all()  # clipped to its declared range
    assert np.unique(made["constant"]["x"]).size == 1
    assert np.abs(made["large"]["x"]).max() > 1e5
    assert 0 < np.abs(made["small"]["x"]).max() < 1e-4
    assert (made["lowest"]["ids"] == -3).all()
    assert (made["highest"]["ids"] == 9).all()
    assert {-3, 9} <= set(made["span"]["ids"].flat)
    assert made["masks-on"]["mask"].all()
    assert made["masks-on"]["on"].all()
    assert not made["masks-off"]["mask"].any()
    ragged = made["masks-ragged"]["mask"]
    assert not ragged.all()
    assert ragged.any(axis=1).all()
    assert (np.diff(ragged, axis=1) <= 0).all()


def test_undeclared_values_are_probes() -> None:
    made = {case.name: case for case in cases({**BATCH, "time": Dim(max=9, typical=[4])})}
    probes = {name.split("@")[0] for name, case in made.items() if case.probe}
    assert probes == {"nan", "infinity", "empty"}
    assert np.isnan(made["nan@b3_t5"].inputs["x"]).sum() == 1
    assert made["empty@b0_t4"].inputs["x"].shape == (0, 4)


def test_a_declared_empty_batch_is_not_a_probe() -> None:
    made = cases({"batch": Dim(min=0, max=8, typical=[1]), "time": Dim(max=9, typical=[4])})
    assert [case.probe for case in made if case.sizes["batch"] == 0] == [False, False]


def test_with_custom_cases_generated_integers_are_probes() -> None:
    def own(sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return draw(INPUTS, sizes, rng)

    made = {c.name.split("@")[0]: c for c in all_cases(INPUTS, {**BATCH, "time": Dim(max=9, typical=[4])}, 1, 0, own)}
    assert all(made[label].probe for label in ("masks-off", "masks-ragged", "lowest", "span"))
    assert not any(made[label].probe for label in ("zeros", "large", "normal0"))


def test_a_case_does_not_depend_on_earlier_cases() -> None:
    def by_name(draws: int) -> dict[str, Case]:
        return {case.name: case for case in all_cases({"x": INPUTS["x"]}, BATCH, draws, 0)}

    few, many = by_name(2), by_name(6)
    for name in few:
        assert np.array_equal(few[name].inputs["x"], many[name].inputs["x"], equal_nan=True)


class Function:
    """A reference that is a pure float32 function of its inputs, without weights."""

    chooses = False

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"]}

    def answer(self, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return self.run(inputs), {}

    def shake(self, seed: int | None) -> bool:
        return True


def test_the_spread_of_an_output_is_the_effect_of_one_input_ulp() -> None:
    class Cancelling(Function):
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            x = inputs["x"]
            return {"y": np.stack([x * np.float32(1.1e4) - x * np.float32(1e4) * np.float32(1.1), x])}

    made = [case for case in all_cases({"x": INPUTS["x"]}, BATCH, 1, 0) if case.name.startswith("normal")]
    item = answers(Cancelling(), made)[0]
    cancelled, plain = item.spread["y"]
    assert cancelled.max() > 1e-4
    assert plain.max() < 1e-6


def test_a_float64_reference_that_rounding_cannot_explain_is_discarded_and_reported() -> None:
    class Other(Function):
        def answer(self, inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
            return self.run(inputs), {"y": inputs["x"].astype(np.float64) + 3}

    made = [case for case in all_cases({"x": INPUTS["x"]}, BATCH, 1, 0) if case.name.startswith("normal")]
    expected = answers(Other(), made)
    assert all(item.truth == {} for item in expected)
    assert (
        "the float64 reference of y was not used in 2 of 2 cases: it differs from float32 by up to 3"
        in (findings(expected)[0])
    )


def test_generated_values_the_original_rejects_are_probes_but_rejected_sizes_are_not() -> None:
    class Category(Function):
        """A table of the integers 0 to 3 that accepts at most four rows."""

        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if not np.isin(inputs["x"], range(4)).all() or len(inputs["x"]) > 4:
                raise WorkerFailure("error", "no such category, or too many rows")
            return {"y": inputs["x"]}

    samples = {"x": np.random.default_rng(0).integers(0, 4, (6, 4)).astype(np.float32)}
    made = all_cases({"x": INPUTS["x"]}, {"batch": Dim(max=9, typical=[2])}, 1, 0, None, samples, 2)
    expected = answers(Category(), made, lambda case: resized({"x": INPUTS["x"]}, samples, case.sizes))
    by_name = {item.case.name.split("@")[0]: item for item in expected}
    assert by_name["normal0"].refused
    assert by_name["normal0"].probe
    assert by_name["maximum"].failure is not None
    assert not by_name["maximum"].probe
    assert by_name["samples0"].failure is None
    assert "with `range` of the input, or with `cases`" in findings(expected)[0]


def test_values_of_the_models_own_cases_that_the_original_rejects_are_probes_too() -> None:
    class Category(Function):
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if not np.isin(inputs["x"], range(4)).all():
                raise WorkerFailure("error", "no such category")
            return {"y": inputs["x"]}

    def generate(sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": rng.integers(3, 5, (sizes["batch"], 4)).astype(np.float32)}

    samples = {"x": np.random.default_rng(0).integers(0, 4, (6, 4)).astype(np.float32)}
    made = all_cases({"x": INPUTS["x"]}, {"batch": Dim(max=9, typical=[2])}, 1, 0, generate, samples, 2)
    expected = answers(Category(), made, lambda case: resized({"x": INPUTS["x"]}, samples, case.sizes))
    own = [item for item in expected if item.case.from_cases and item.failure is not None and not item.case.probe]
    assert own
    assert all(item.refused for item in own)
    assert not any(item.failure for item in expected if not item.case.made_up)


def test_an_output_that_depends_on_a_millionth_is_not_judged() -> None:
    class Order(Function):
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"y": np.argsort(inputs["x"], axis=1), "z": inputs["x"] * 2}

    def steady(label: str) -> bool:
        made = all_cases({"x": INPUTS["x"]}, BATCH, 1, 0)
        return next(item for item in answers(Order(), made) if item.case.name.startswith(label)).steady

    assert not steady("zeros")
    assert not steady("constant")
    assert steady("normal0")


def test_a_case_is_found_by_name_and_a_typo_suggests_the_nearest() -> None:
    assert find(cases({**BATCH, "time": Dim(max=9, typical=[4])}), "zeros@b3_t5").seed
    with pytest.raises(UsageError, match=r"no case 'zeroes@b3_t5'; did you mean 'zeros@b3_t5'"):
        find(cases({**BATCH, "time": Dim(max=9, typical=[4])}), "zeroes@b3_t5")


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"z": np.zeros(1)}, "returns the inputs"),
        ({"x": np.zeros((1, 5), np.float32)}, r"returns x as float32 \[1, 5\]"),
        ({"x": np.zeros((1, 4))}, "returns x as float64"),
    ],
)
def test_custom_cases_must_provide_the_declared_inputs(given_: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        list(all_cases({"x": INPUTS["x"]}, BATCH, 1, 0, lambda sizes, rng: given_))


def test_samples_are_used_in_allowed_batches_also_negated_and_scaled() -> None:
    dims = {"batch": Dim(max=4, typical=[1])}
    data = {"x": np.arange(40, dtype=np.float32).reshape(10, 4)}
    made = {c.name: c for c in all_cases({"x": INPUTS["x"]}, dims, 1, 0, None, data, 9)}
    fed = [case for name, case in made.items() if name.startswith("samples")]
    assert [case.sizes["batch"] for case in fed] == [4, 4, 1]
    assert np.array_equal(np.concatenate([case.inputs["x"] for case in fed]), data["x"][:9])
    assert np.array_equal(made["negated@4"].inputs["x"], -data["x"][:4])
    assert np.array_equal(made["enlarged@4"].inputs["x"], 10 * data["x"][:4])


@given(st.lists(st.sampled_from(["batch", "b", "sequence", "seq", "time"]), unique=True, max_size=4))
def test_size_keys_distinguish_dimensions(names: list[str]) -> None:
    keys = {size_key({name: 7 if name == other else 1 for name in names}) for other in names}
    assert len(keys) == len(names)


def test_random_integers_cover_both_ends_of_their_range() -> None:
    drawn = draw(INPUTS, {"batch": 64, "time": 64}, np.random.default_rng(0))["ids"]
    assert (drawn.min(), drawn.max()) == (-3, 9)


def test_reference_outputs_are_saved_and_loaded_per_case(tmp_path: Path) -> None:
    made = cases({**BATCH, "time": Dim(max=9, typical=[4])})[:3]
    wrong = WorkerFailure("aborted", "it died", "SIGABRT")
    y = {"y": np.array([1.0, np.nan], np.float32)}
    expected = [
        Expected(made[0], y, {"y": y["y"].astype(np.float64)}),
        Expected(made[1], failure=wrong),
        Expected(made[2], y),
    ]
    save_answers(expected, tmp_path / "r.npz")
    again = recall(tmp_path / "r.npz", made)
    assert np.array_equal(again[0].outputs["y"], y["y"], equal_nan=True)
    assert again[0].truth["y"].dtype == np.float64
    assert again[1].failure is not None
    assert (again[1].failure.kind, again[1].failure.signal) == ("aborted", "SIGABRT")
    assert again[2].truth == {}
    with pytest.raises(UsageError, match=r"r\.npz: does not belong to these cases"):
        recall(tmp_path / "r.npz", made[1:])


floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-1e6, 1e6, width=32))


@given(floats)
def test_every_array_equals_itself(values: np.ndarray) -> None:
    result = compare("y", values, values.copy(), 0, 0)
    assert (result.verdict, result.share_out) == ("ok", 0)


@given(floats, st.floats(0, 0.1), st.floats(0, 1))
def test_the_verdict_matches_numpy_allclose(values: np.ndarray, rtol: float, atol: float) -> None:
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
def test_nan_infinity_and_shape_are_verdicts_of_their_own(reference: list[float], got: list[Any], verdict: str) -> None:
    assert compare("y", np.array(reference, np.float32), np.array(got, np.float32), 1, 1).verdict == verdict


def test_a_different_dtype_fails_and_integers_must_be_equal() -> None:
    ones = np.ones(3, np.float32)
    assert compare("y", ones, ones.astype(np.float64), 1, 1).verdict == "dtype mismatch"
    assert compare("y", np.array([1, 2]), np.array([1, 3]), 1, 1).verdict == "out of tolerance"
    assert compare("y", np.array([True]), np.array([True]), 0, 0).verdict == "ok"


def test_figures_match_their_definitions() -> None:
    reference = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    got = reference.copy()
    got[1, 1] = np.nextafter(np.nextafter(np.float32(4), np.float32(9)), np.float32(9))
    found = compare("y", reference, got, 1e-3, 1e-5)
    assert found.max_ulp == 2
    assert found.cosine == pytest.approx(1.0)
    assert found.agreement == 1.0
    noise = float(got[1, 1]) - 4.0
    assert found.snr_db == pytest.approx(10 * np.log10(30 / noise**2))
    assert compare("y", reference, reference, 0, 0).snr_db == np.inf
    assert compare("y", -np.zeros(3, np.float32), np.zeros(3, np.float32), 0, 0).max_ulp == 0
    assert compare("y", np.array([-1e-45], np.float32), np.array([1e-45], np.float32), 0, 1).max_ulp == 2


@given(floats)
def test_ulps_count_steps_of_nextafter(values: np.ndarray) -> None:
    stepped = np.nextafter(values, np.float32(np.inf))
    assert compare("y", values, stepped, 1, 1).max_ulp == 1


SMALL = hnp.arrays(np.float32, 4, elements=st.floats(-1024, 1024, width=32))
OTHERS = hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**40), 2.0**40, width=32))
ERRORS = st.floats(1e-7, 1e3)


@given(SMALL, SMALL, OTHERS, ERRORS, st.floats(1e-3, 1e6), st.booleans())
def test_other_elements_of_an_output_do_not_change_the_verdict_of_an_element(
    values: np.ndarray, noise: np.ndarray, others: np.ndarray, own: float, factor: float, shaken: bool
) -> None:
    """Errors of appended or scaled elements never excuse the error of another element."""
    got = values + noise
    truth = values.astype(np.float64) + own * 1e-6
    spread = np.full(values.shape, own * 1e-6) if shaken else None
    alone = compare("y", values, got, 1e-3, 1e-5, truth, spread)
    noisy = others.astype(np.float64) * (1 + 1e-3)  # each of these elements alone is "ok"
    together = compare(
        "y",
        np.concatenate([values, others * np.float32(factor)]),
        np.concatenate([got, others * np.float32(factor)]),
        1e-3,
        1e-5,
        np.concatenate([truth, noisy * np.float32(factor)]),
        None if spread is None else np.concatenate([spread, np.abs(noisy)]),
    )
    assert (alone.verdict == "ok") == (together.verdict == "ok")


def test_a_probability_next_to_a_unix_time_is_judged_separately() -> None:
    truth = np.array([1.7e9 + 13, 0.5, 0.25])
    reference = truth.astype(np.float32)
    assert compare("y", reference, reference, 1e-3, 1e-5, truth).verdict == "ok"
    got = reference + np.array([0, 0.01, 0], np.float32)
    assert compare("y", reference, got, 1e-3, 1e-5, truth).share_out == pytest.approx(1 / 3)


def test_the_spread_explains_cancellation_errors_and_no_more() -> None:
    reference, spread = np.array([1e-3, 1e-3], np.float32), np.array([1e-5, 1e-9])
    near = reference + np.float32(5e-4)
    assert compare("y", reference, near, 1e-3, 1e-5, None, spread).share_out == 0.5
    far = reference + np.float32(5e-2)
    assert compare("y", reference, far, 1e-3, 1e-5, None, spread).share_out == 1


def test_a_difference_within_the_rounding_of_the_reference_passes() -> None:
    truth = np.array([1e6, 0.01])
    reference = np.array([1e6, 0.02], np.float32)  # a small difference of large float32 numbers
    got = np.array([1e6, 0.05], np.float32)
    assert compare("y", reference, got, 1e-3, 1e-5).verdict == "out of tolerance"
    judged = compare("y", reference, got, 1e-3, 1e-5, truth)
    assert judged.verdict == "ok"
    assert judged.error == pytest.approx(0.04)
    assert judged.reference_error == pytest.approx(0.01)
    far = np.array([1e6, 0.5], np.float32)
    assert compare("y", reference, far, 1e-3, 1e-5, truth).verdict == "out of tolerance"


def test_a_class_is_not_judged_only_if_float64_gives_another_class() -> None:
    reference, truth = np.array([3, 4]), np.array([3, 5])
    assert compare("y", reference, np.array([3, 6]), 0, 0, truth).verdict == "ok"
    assert compare("y", reference, np.array([2, 4]), 0, 0, truth).verdict == "out of tolerance"


def test_an_overflow_in_the_reference_alone_is_not_judged() -> None:
    reference, truth = np.array([np.inf, 1.0], np.float32), np.array([1e39, 1.0])
    assert compare("y", reference, np.array([3e38, 1.0], np.float32), 0, 1e-5, truth).verdict == "ok"
    assert compare("y", reference, np.array([3e38, 1.0], np.float32), 0, 1e-5).verdict == "NaN mismatch"


def test_large_integers_are_compared_exactly() -> None:
    assert compare("y", np.array([2**60]), np.array([2**60 + 1]), 1, 1).verdict == "out of tolerance"


def test_empty_outputs_are_equal() -> None:
    empty = np.empty((0, 3), np.float32)
    assert compare("y", empty, empty, 0, 0).verdict == "ok"


def test_agreement_counts_rows_with_the_same_answer() -> None:
    reference = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert agreement(reference, np.array([[0.0, 9.0], [0.0, 1.0]])) == 0.5
    assert agreement(np.ones(3), np.ones(3)) is None
