"""What a graph of lower precision has lost, and when that is too much."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.fidelity import fidelity
from stages.parity.quality import quality_drop, quality_faults
from stages.settings import Agreement, Budget


class Judged(NamedTuple):
    precision: str = "int8"
    quality: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    cosine: float | None = None


def test_the_same_answers_are_perfectly_faithful() -> None:
    answers = {"logits": np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), "digit": np.arange(8)}
    found = fidelity(answers, answers)
    assert found.snr_db == float("inf")
    assert found.cosine == pytest.approx(1.0)


def test_fidelity_is_that_of_the_worst_sample_and_the_worst_output() -> None:
    wanted = {"a": np.ones((4, 3)), "b": np.ones((4, 2))}
    got = {"a": wanted["a"].copy(), "b": wanted["b"].copy()}
    got["b"][2] = [1.0, -1.0]
    found = fidelity(wanted, got)
    assert found.cosine == pytest.approx(0.0)
    assert found.snr_db == pytest.approx(10 * np.log10(8 / 4))


@given(st.floats(5, 60))
def test_noise_of_a_known_power_is_measured_as_such(decibels: float) -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(64, 100))
    noise = rng.normal(size=signal.shape) * 10 ** (-decibels / 20)
    assert fidelity({"y": signal}, {"y": signal + noise}).snr_db == pytest.approx(decibels, abs=0.5)


def test_a_nan_is_the_worst_there_is() -> None:
    wanted = np.ones((2, 3))
    assert fidelity({"y": wanted}, {"y": np.where(np.eye(2, 3) > 0, np.nan, wanted)}) == (-np.inf, -1.0)


def test_samples_that_a_fixed_batch_left_out_are_not_compared() -> None:
    assert fidelity({"y": np.ones((5, 3))}, {"y": np.ones((4, 3))}).cosine == pytest.approx(1.0)


def test_integers_alone_say_nothing_of_fidelity() -> None:
    assert fidelity({"y": np.arange(3)}, {"y": np.arange(3)}) == (None, None)


@pytest.mark.parametrize(
    ("judged", "reference", "budget", "words"),
    [
        (Judged(quality=0.90), 0.95, Budget(), "quality drops by 0.05"),
        (Judged(agreement=0.95), None, Budget(), "quality drops by 0.05"),
        (Judged(agreement=0.95, cosine=0.97), None, Budget(min_cosine=0.98), "cosine, 0.97000"),
        (Judged(quality=0.95, snr_db=20.0), 0.95, Budget(min_snr_db=25), "20.0 dB"),
        (Judged(quality=0.95, agreement=0.5), 0.95, Budget(), "to 50.0% of the samples, 90% wanted"),
        (Judged(), None, Budget(), "could not be measured"),
        (Judged(quality=float("nan")), 0.95, Budget(), "quality drops by nan"),
        (Judged(quality=0.95, cosine=float("nan")), 0.95, Budget(min_cosine=0.9), "cosine, nan"),
    ],
)
def test_what_breaks_the_budget_is_said_in_words(
    judged: Judged, reference: float | None, budget: Budget, words: str
) -> None:
    faults = list(quality_faults(judged, reference, budget, Agreement()))
    assert len(faults) == 1
    assert words in faults[0]


def test_an_encoder_without_labels_is_held_to_the_fidelity_its_budget_names_and_to_nothing_else() -> None:
    encoder = Judged(agreement=0.3, cosine=0.99, snr_db=25.0)
    assert not list(quality_faults(encoder, None, Budget(min_cosine=0.98), Agreement()))
    assert quality_drop(encoder, None, Budget(min_cosine=0.98)) == pytest.approx(0.01)


def test_a_float_graph_whose_quality_cannot_be_measured_lost_nothing() -> None:
    assert quality_drop(Judged(precision="float32"), None, Budget()) == 0.0
    assert not list(quality_faults(Judged(precision="float32"), None, Budget()))
