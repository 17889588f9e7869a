"""The loss of a graph of lower precision, and its limits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.evidence.kinds import ANSWERS
from onward.registry.evidence.records import OutputFidelity, OutputKind
from onward.registry.evidence.similarity import fidelity
from onward.stages.config.schema import Agreement, Budget
from onward.stages.parity.budget import Judgement


class Judged(NamedTuple):
    precision: str = "int8"
    quality: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    fidelity: list[OutputFidelity] = []


SCORES = OutputKind(output="logits", kind="scores", axis=1)
BOXES = OutputKind(output="boxes", kind="values", axis=1)


def lost(output: str, value: float, holds: bool) -> OutputFidelity:
    return OutputFidelity(
        output=output, kind="values", measure="relative error", value=value, low=value, high=value, limit=0.05,
        holds=holds,
    )  # fmt: skip


def test_equal_outputs_have_perfect_fidelity() -> None:
    answers: dict[str, np.ndarray] = {
        "logits": np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32),
        "digit": np.arange(8),
    }
    found = fidelity(answers, answers)
    assert found.snr_db == float("inf")
    assert found.cosine == pytest.approx(1.0)


def test_fidelity_is_the_worst_over_samples_and_outputs() -> None:
    wanted = {"a": np.ones((4, 3)), "b": np.ones((4, 2))}
    got = {"a": wanted["a"].copy(), "b": wanted["b"].copy()}
    got["b"][2] = [1.0, -1.0]
    found = fidelity(wanted, got)
    assert found.cosine == pytest.approx(0.0)
    assert found.snr_db == pytest.approx(10 * np.log10(8 / 4))


@given(st.floats(5, 60))
def test_noise_of_known_power_gives_the_expected_snr(decibels: float) -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(64, 100))
    noise = rng.normal(size=signal.shape) * 10 ** (-decibels / 20)
    assert fidelity({"y": signal}, {"y": signal + noise}).snr_db == pytest.approx(decibels, abs=0.5)


def test_a_nan_gives_the_worst_fidelity() -> None:
    wanted = np.ones((2, 3))
    assert fidelity({"y": wanted}, {"y": np.where(np.eye(2, 3) > 0, np.nan, wanted)}) == (-np.inf, -1.0)


def test_samples_left_out_by_a_fixed_batch_are_not_compared() -> None:
    assert fidelity({"y": np.ones((5, 3))}, {"y": np.ones((4, 3))}).cosine == pytest.approx(1.0)


def test_integer_outputs_alone_give_no_fidelity() -> None:
    assert fidelity({"y": np.arange(3)}, {"y": np.arange(3)}) == (None, None)


@pytest.mark.parametrize(
    ("judged", "reference", "budget", "words"),
    [
        (Judged(quality=0.90), 0.95, Budget(), "quality drops by 0.05"),
        (
            Judged(fidelity=[lost("logits", 0, True), lost("boxes", 0.8, False)]),
            None,
            Budget(),
            "boxes (values): ",
        ),
        (Judged(fidelity=[lost("logits", 0, True)]), None, Budget(), "were not measured (boxes)"),
        (Judged(agreement=0.95, cosine=0.97), None, Budget(min_cosine=0.98), "cosine, 0.97000"),
        (Judged(), None, Budget(), "were not measured (boxes, logits)"),
    ],
)
def test_a_broken_budget_is_explained_and_names_the_output(
    judged: Judged, reference: float | None, budget: Budget, words: str
) -> None:
    kinds = [SCORES, BOXES] if reference is None else []
    faults = list(Judgement(reference, budget, kinds, Agreement()).faults(judged))
    assert len(faults) == 1
    assert words in faults[0]


@pytest.mark.parametrize(
    ("judged", "budget", "words"),
    [
        (Judged(quality=0.95, snr_db=20.0), Budget(min_snr_db=25), "20.0 dB"),
        (Judged(quality=0.95, agreement=0.5), Budget(), "for 50.0% of the samples, under the 90% of"),
        (Judged(quality=float("nan")), Budget(), "quality drops by nan"),
        (Judged(quality=0.95, cosine=float("nan")), Budget(min_cosine=0.9), "cosine, nan"),
        (Judged(), Budget(), "quality could not be measured"),
    ],
)
def test_a_model_with_its_own_measure_is_judged_by_it_and_by_floors(judged: Judged, budget: Budget, words: str) -> None:
    kinds = [SCORES.model_copy(update={"by_quality": True})]
    faults = list(Judgement(0.95, budget, kinds, Agreement()).faults(judged))
    assert len(faults) == 1
    assert words in faults[0]


def test_one_flip_in_few_samples_passes_the_floor_and_many_fail() -> None:
    def faults(low: float) -> list[str]:
        answers = OutputFidelity(
            output="logits", kind="scores", measure=ANSWERS, value=0.02, low=low, high=0.2, limit=0.01, holds=True
        )
        judged = Judged(precision="float16", quality=0.95, agreement=0.98, fidelity=[answers])
        return list(Judgement(0.95, Budget(), [], Agreement()).faults(judged))

    assert faults(0.001) == []
    assert "98.0% of the samples, under the 99% of" in faults(0.015)[0]


def test_an_output_that_the_model_measure_ignores_is_judged_by_its_kind() -> None:
    judgement = Judgement(0.95, Budget(), [SCORES.model_copy(update={"by_quality": True}), BOXES])
    broken = Judged(quality=0.95, fidelity=[lost("logits", 0.5, False), lost("boxes", 0.8, False)])
    assert [words.split()[0] for words in judgement.faults(broken)] == ["boxes"]
    loss = judgement.loss(broken)
    assert loss is not None
    assert loss.measure == "boxes: relative error"
    assert (loss.value, loss.limit) == (0.8, 0.05)


def test_an_encoder_without_labels_is_judged_only_by_the_fidelity_in_its_budget() -> None:
    encoder = Judged(agreement=0.3, cosine=0.99, snr_db=25.0, fidelity=[lost("logits", 0.5, False)])
    judgement = Judgement(None, Budget(min_cosine=0.98), [SCORES], Agreement())
    assert not list(judgement.faults(encoder))
    loss = judgement.loss(encoder)
    assert loss is not None
    assert loss.value == pytest.approx(0.01)


def test_a_float_graph_without_measurable_quality_counts_as_lossless() -> None:
    judgement = Judgement(None, Budget(), [SCORES])
    loss = judgement.loss(Judged(precision="float32"))
    assert loss is not None
    assert loss.value == 0.0
    assert not list(judgement.faults(Judged(precision="float32")))
