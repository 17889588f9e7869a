"""Each requirement at its limit, beyond it, and without evidence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.evidence.records import TensorSpec
from onward.registry.gates import builtin
from onward.registry.gates.builtin import NO_EVIDENCE, judge
from tests.store_factory import GOOD, scale_model

CPU = "CPUExecutionProvider"


def result(requirement: str, **evidence: str | None) -> tuple[bool, str]:
    """Judge a requirement on good evidence with changes; None removes a tag."""
    said = {name: value for name, value in {**GOOD, **evidence}.items() if value is not None}
    [found] = judge([requirement], said, None)
    assert found.requirement == requirement
    return found.met, found.detail


@pytest.mark.parametrize("requirement", ["parity", "data"])
def test_only_the_status_passed_meets_a_requirement(requirement: str) -> None:
    assert result(requirement, **{requirement: "passed"}) == (True, "passed")
    for word in ("failed", "not attempted", "PASSED", "pass"):
        assert result(requirement, **{requirement: word}) == (False, word)
    for nothing in (None, ""):
        assert result(requirement, **{requirement: nothing}) == (False, NO_EVIDENCE)


def test_each_requirement_uses_its_own_evidence_in_the_given_order() -> None:
    found = judge(["data", "latency", "parity", "quality"], {**GOOD, "data": "failed", "latency_ratio": "3"}, None)
    assert [(one.requirement, one.met) for one in found] == [
        ("data", False), ("latency", False), ("parity", True), ("quality", True),
    ]  # fmt: skip
    assert set(builtin.REQUIREMENTS) == {"parity", "quality", "data", "latency", "replay", "shadow"}


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_quality_drop_up_to_and_including_the_budget_passes(drop: int, budget: int) -> None:
    met, detail = result("quality", quality_drop=str(drop / 1000), quality_budget=str(budget / 1000))
    assert met == (drop <= budget)
    assert detail == f"drops by {drop / 1000:g}, {budget / 1000:g} allowed"


def test_a_quality_drop_above_the_budget_only_by_rounding_passes() -> None:
    assert 0.98 - 0.975 > 0.005
    assert result("quality", quality_drop=str(0.98 - 0.975), quality_budget="0.005")[0]
    assert not result("quality", quality_drop="0.00500001", quality_budget="0.005")[0]


@pytest.mark.parametrize("drop", ["nan", "inf", "1e999"])
def test_a_quality_drop_that_is_not_a_number_fails(drop: str) -> None:
    assert not result("quality", quality_drop=drop)[0]


def test_without_a_recorded_budget_the_recorded_verdict_decides() -> None:
    assert result("quality", quality_budget=None) == (True, "drops by 0.002")
    for verdict in ("failed", None):
        met, detail = result("quality", quality_budget=None, verdict=verdict)
        assert not met
        assert "no record that this is within the budget" in detail


def test_without_quality_only_float32_with_parity_passes() -> None:
    exact = {"quality_drop": None, "precision": "float32", "parity": "passed", "verdict": "passed"}
    assert result("quality", **exact) == (True, "no quality measure; float32 within the tolerances of parity")
    for change in ({"precision": "int8"}, {"parity": "failed"}, {"verdict": "failed"}, {"precision": None}):
        assert result("quality", **{**exact, **change}) == (False, NO_EVIDENCE), change
    assert result("quality", **{**exact, "quality_drop": "much"})[0]


def test_another_measure_may_exceed_its_limit_only_if_the_pipeline_accepted_it() -> None:
    lost = {"quality_measure": "lost labels", "quality_drop": "0.02", "quality_budget": "0.01"}
    met, detail = result("quality", **lost)
    assert met
    assert detail == "lost labels 0.02, 0.01 allowed; too few samples to show that it is exceeded"
    assert result("quality", **lost, verdict="failed") == (False, "lost labels 0.02, 0.01 allowed")
    assert result("quality", **{**lost, "quality_drop": "0.01"}) == (True, "lost labels 0.01, 0.01 allowed")
    assert not result("quality", **{**lost, "quality_measure": "quality"})[0]


@pytest.mark.parametrize(
    ("ratio", "met"), [("0.71", True), ("1", True), ("1.05", True), ("1.0501", False), ("2", False)]
)
def test_a_version_may_be_as_slow_as_the_plain_export_plus_noise(ratio: str, met: bool) -> None:
    assert result("latency", latency_ratio=ratio) == (met, f"{float(ratio):.3g} times the plain export's, 1.05 allowed")


def test_latency_requires_a_ratio_unless_the_version_is_the_plain_export() -> None:
    for ratio in (None, "fast"):
        assert result("latency", latency_ratio=ratio) == (False, NO_EVIDENCE)
    assert not result("latency", latency_ratio="nan")[0]
    assert result("latency", latency_ratio=None, variant="plain") == (True, "is the plain export")
    assert result("latency", latency_ratio="3", variant="plain")[0]


def test_replay_runs_on_the_files_and_is_skipped_without_files(tmp_path: Path) -> None:
    assert judge(["replay"], GOOD, None) == ()
    assert [one.requirement for one in judge(["data", "replay", "parity"], GOOD, None)] == ["data", "parity"]
    for factor, met in ((2, True), (3, False)):
        found = judge(["replay", "data"], {**GOOD, "precision": "float32"}, version(tmp_path / str(factor), factor))
        assert [(one.requirement, one.met) for one in found] == [("replay", met), ("data", True)]


def version(folder: Path, factor: float) -> Path:
    """The folder of a version that computes 2 * x and records factor * x."""
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.savez(bundle / "inputs.npz", x=x)
    np.savez(bundle / "outputs.npz", y=x * factor)
    (bundle / "tolerance.json").write_text(json.dumps({"rtol": 1e-3, "atol": 1e-5}))
    specs = [TensorSpec(name=name, dtype="float32", shape=["batch", 4]) for name in ("x", "y")]
    build_folder(folder / "model", [scale_model(folder / "model.onnx", 2)], specs[:1], specs[1:], CPU, bundle)
    return folder / "model"
