"""Which kind is inferred for an output, and how each kind is judged at lower precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.evidence.kinds import judge, share
from onward.registry.evidence.records import Kind, OutputFidelity, OutputKind
from onward.stages.config.schema import Input, Output
from onward.stages.parity.kinds import kinds_of

RNG = np.random.default_rng(0)
SCORES = OutputKind(output="y", kind="scores", axis=1)
VALUES = OutputKind(output="y", kind="values", axis=1)


def fidelity_of(kind: OutputKind, wanted: np.ndarray, got: np.ndarray) -> OutputFidelity:
    """The measure that decides for the kind."""
    found = judge(kind, {"y": wanted}, {"y": got}, 0.01)
    return max(found, key=lambda one: (not one.holds, one.used))


def softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(values - values.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


NORMAL = RNG.standard_normal((64, 10)).astype(np.float32)
WIDE = RNG.standard_normal((64, 20)).astype(np.float32)
UNIT = WIDE / np.linalg.norm(WIDE, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "shape", "answers", "labels", "kind", "axis"),
    [
        ("ids", ["batch", 3], np.arange(6).reshape(2, 3), None, "indices", None),
        ("y", ["batch", 10], softmax(NORMAL), None, "probabilities", 1),
        ("y", ["batch", 5, 4, 4], softmax(RNG.standard_normal((8, 5, 4, 4)), 1), None, "probabilities", 1),
        ("y", ["batch", "time", 7], softmax(RNG.standard_normal((8, 6, 7))), None, "probabilities", 2),
        ("y", ["batch", 20], UNIT, None, "embedding", 1),
        ("sentence_embedding", ["batch", 20], WIDE, None, "embedding", 1),
        ("logits", ["batch", 10], NORMAL, None, "scores", 1),
        ("logits", ["batch", "time", 7], RNG.standard_normal((8, 6, 7)), None, "scores", 2),
        ("y", ["batch", 10], NORMAL, NORMAL.argmax(1), "scores", 1),
        ("y", ["batch", 10], NORMAL, RNG.standard_normal(64), "values", None),
        ("scores", ["batch", 10], -np.sort(-NORMAL, axis=1), None, "values", None),
        ("y", ["batch", 1], 1 / (1 + np.exp(-NORMAL[:, :1])), None, "probabilities", None),
        ("stateN", ["batch", 10], NORMAL, None, "state", None),
        ("y", ["batch"], NORMAL[:, 0], None, "values", None),
    ],
)
def test_the_kind_is_inferred_from_the_outputs_with_a_reason(
    name: str, shape: list[str | int], answers: np.ndarray, labels: np.ndarray | None, kind: Kind, axis: int | None
) -> None:
    inputs = {"state": Input(shape=["batch", 10])}
    found = kinds_of({name: Output(shape=shape)}, inputs, {name: answers}, labels)[0]
    assert (found.kind, found.axis) == (kind, axis)
    assert found.reason


def test_a_kind_in_params_is_not_inferred() -> None:
    spec = Output(shape=["batch", 10], kind="scores", axis=1, limit=0.05)
    found = kinds_of({"y": spec}, {}, {"y": softmax(NORMAL)}, None)[0]
    assert (found.kind, found.limit, found.reason) == ("scores", 0.05, "set in params.yaml")
    with pytest.raises(ValueError, match="there is no axis 2"):
        Output(shape=["batch", 10], kind="scores", axis=2)
    with pytest.raises(ValueError, match="this key needs kind"):
        Output(shape=["batch", 10], axis=1)


@given(st.sampled_from(["scores", "values", "probabilities", "embedding", "state"]), st.integers(1, 40))
def test_equal_outputs_of_every_kind_lose_nothing(kind: Kind, count: int) -> None:
    values = softmax(NORMAL[:count])
    found = fidelity_of(OutputKind(output="y", kind=kind, axis=1), values, values.copy())
    assert found.holds
    assert found.value == pytest.approx(0, abs=1e-9)


def flipped(samples: int, flips: int) -> tuple[np.ndarray, np.ndarray]:
    """Clear answers (margin 1), some of them changed to other clear answers."""
    wanted = np.zeros((samples, 4), np.float32)
    wanted[np.arange(samples), np.arange(samples) % 4] = 1
    got = wanted.copy()
    got[:flips] = np.roll(got[:flips], 1, axis=1)
    return wanted, got


@pytest.mark.parametrize(
    ("samples", "flips", "holds"),
    [
        (96, 1, True), (96, 2, False), (16, 1, True), (16, 2, False), (251, 2, True), (251, 3, False), (1000, 10, True),
        (1000, 11, False),
    ],
)  # fmt: skip
def test_changed_answers_are_counted_and_one_is_always_accepted(samples: int, flips: int, holds: bool) -> None:
    found = fidelity_of(SCORES, *flipped(samples, flips))
    assert found.holds == holds
    assert found.value == pytest.approx(flips / samples)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


def test_with_few_samples_the_predicted_flip_rate_decides() -> None:
    rng = np.random.default_rng(3)
    wanted = rng.standard_normal((60, 10))
    noisy = wanted + 0.25 * rng.standard_normal(wanted.shape)
    assert not fidelity_of(SCORES, wanted, noisy).holds
    assert fidelity_of(SCORES, wanted, wanted + 0.001 * rng.standard_normal(wanted.shape)).holds


def test_pixels_are_counted_along_the_class_axis() -> None:
    wanted = RNG.standard_normal((32, 3, 20, 20))
    got = wanted.copy()
    got[:, :, 0, 0] = np.roll(got[:, :, 0, 0], 1, axis=1)  # a quarter of a per cent of all pixels
    found = fidelity_of(SCORES, wanted, got)
    assert found.holds
    assert found.value == pytest.approx(1 / 400)


def test_a_peak_that_moves_to_an_equally_likely_bin_passes_and_a_lost_confident_answer_fails() -> None:
    kind = OutputKind(output="y", kind="probabilities", axis=1)
    wanted = np.full((40, 8), 0.02)
    wanted[:, 3], wanted[:, 4] = 0.442, 0.438
    near = wanted.copy()
    near[:, 3], near[:, 4] = 0.44, 0.445
    assert fidelity_of(kind, wanted, near).holds
    far = wanted.copy()
    far[:, 3], far[:, 6] = 0.44, 0.5
    assert not fidelity_of(kind, wanted, far).holds


def test_a_score_channel_is_not_masked_by_pixel_channels() -> None:
    pixels, scores = 300 * RNG.random((64, 4)), RNG.random((64, 1))
    wanted = np.concatenate([pixels, scores], axis=1)
    got = wanted + np.array([0.5, 0.5, 0.5, 0.5, 0.2])
    found = fidelity_of(VALUES, wanted, got)
    assert not found.holds
    assert "4" in found.reason


def test_a_constant_channel_is_judged_by_the_scale_of_the_others() -> None:
    wanted = np.concatenate([RNG.standard_normal((64, 3)), np.zeros((64, 1))], axis=1)
    assert fidelity_of(VALUES, wanted, wanted + 0.01).holds
    assert not fidelity_of(VALUES, wanted, wanted + 0.2).holds


def test_embeddings_are_judged_by_cosine_and_by_neighbours() -> None:
    kind = OutputKind(output="y", kind="embedding")
    rng = np.random.default_rng(1)
    wanted = rng.standard_normal((128, 64))
    near = wanted + 0.01 * rng.standard_normal(wanted.shape)
    assert fidelity_of(kind, wanted, near).holds
    assert not fidelity_of(kind, wanted, rng.permutation(wanted)).holds


def test_members_of_top_k_may_swap_and_other_indices_may_not() -> None:
    scores = RNG.random((64, 9))
    ranking = np.argsort(-scores, axis=1)[:, :3]
    answers = {"y": ranking, "scores": -np.sort(-scores, axis=1)[:, :3]}
    kind = OutputKind(output="y", kind="indices", beside="scores")
    assert kinds_of({"y": Output(shape=["batch", 3])}, {}, answers, None)[0].beside == "scores"
    swapped = ranking[:, [0, 2, 1]]
    assert all(one.holds for one in judge(kind, answers, {**answers, "y": swapped}, 0.01))
    assert not all(one.holds for one in judge(kind, answers, {**answers, "y": (ranking + 1) % 9}, 0.01))
    kind = OutputKind(output="y", kind="indices")
    mask = RNG.random((64, 30)) > 0.5
    assert not fidelity_of(kind, mask, ~mask).holds


def test_nan_and_another_shape_always_fail() -> None:
    assert not fidelity_of(VALUES, NORMAL, np.full_like(NORMAL, np.nan)).holds
    assert "shape" in str(fidelity_of(VALUES, NORMAL, NORMAL[:, :3]))
    assert fidelity_of(VALUES, NORMAL, NORMAL[:60]).holds  # a fixed batch omitted samples


@given(st.integers(2, 400), st.data())
def test_an_interval_contains_the_share_and_narrows_with_samples(count: int, data: st.DataObject) -> None:
    changed = np.zeros(count)
    changed[: data.draw(st.integers(0, count - 1))] = 1
    found = share(changed, np.ones(count))
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    many = share(np.repeat(changed, 4), np.ones(4 * count))
    assert many.high - many.low <= found.high - found.low + 1e-9


def test_a_lost_class_exceeds_the_limit_even_if_most_pixels_agree() -> None:
    wanted = RNG.standard_normal((24, 3, 32, 32))
    wanted[:, 0] += 12
    wanted[:, 2, 5, 5:8] += 30  # three pixels of 1024
    got = wanted.copy()
    got[:, 2] -= 30
    found = judge(SCORES, {"y": wanted}, {"y": got}, 0.01)
    assert found[0].holds
    assert ("share of one class lost", "class 2") in {(one.measure, one.reason) for one in found if not one.holds}


def test_a_class_in_one_or_two_samples_is_not_evidence() -> None:
    wanted, got = np.zeros((256, 120)), np.zeros((256, 120))
    wanted[np.arange(256), np.arange(256) % 120] = got[np.arange(256), np.arange(256) % 120] = 5
    got[[4, 130]] = np.roll(got[[4, 130]], 1, axis=1)
    assert fidelity_of(SCORES, wanted, got).holds


def test_lost_detections_are_found_among_thousands_of_scores_near_zero() -> None:
    """9 of 32 detections in 2100 positions; the scores of two classes do not sum to 1."""
    wanted = np.full((32, 2100, 2), 1e-3, np.float32)
    wanted[np.arange(32), np.arange(32) * 50, 0] = 0.9
    wanted[::2, 7, 1] = 0.8
    got = wanted.copy()
    got[:9, :, 0] = 1e-3
    found = fidelity_of(OutputKind(output="y", kind="probabilities", axis=2), wanted, got)
    assert not found.holds
    assert found.reason == "channel of axis 2: 0"


def test_scores_with_one_constant_answer_are_judged_by_noise() -> None:
    wanted = RNG.standard_normal((512, 10))
    wanted[:, 0] += 20
    noise = RNG.standard_normal((512, 10))
    assert fidelity_of(SCORES, wanted, wanted + 0.05 * noise).holds
    assert fidelity_of(SCORES, wanted, wanted + noise).measure == "noise power over signal power"
