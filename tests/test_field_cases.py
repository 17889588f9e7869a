"""Small models after public bug reports: each has the expected outcome.

field_cases/ contains the model and params.yaml of each case, unchanged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from onward.registry.evidence.reports import Report
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.workers import isolated_call
from onward.stages.workers.torch_module import load_module
from tests.toy import STAGES, one

HERE = Path(__file__).resolve().parent / "field_cases"
Go = Callable[..., dict[str, Any]]


@pytest.fixture
def case(project: Path) -> Go:
    """Run a model through stages; `case("c01", "c01", "train", ...)` returns the reports by stage."""

    def go(source: str, model: str, *stages: str, **changes: Any) -> dict[str, Any]:
        for path in HERE.glob("*.py"):
            shutil.copy(path, project / "models")
        params = yaml.safe_load((HERE / f"{source}.yaml").read_text())
        params["models"] = {model: params["models"][model] | changes}
        (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        return {stage: one(stage, model, STAGES[stage]) for stage in stages or VERIFIED}

    return go


VERIFIED = ("train", "data", "export", "verify")


def reasons(reports: Mapping[str, Report]) -> str:
    return "; ".join(f"{stage}: {report.reason}" for stage, report in reports.items() if report.reason)


def farthest(model: str, build: str, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> float:
    """The largest difference between the exported file with named inputs and the module with keyword arguments."""
    session = onnxruntime.InferenceSession(str(paths.build(model, "export") / "model.onnx"))
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(inputs)), strict=True))
    wanted = isolated_call.call(60, called, model, build, inputs)
    return max(float(np.abs(got[name] - wanted[name]).max()) for name in outputs)


def called(model: str, build: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    module = load_module(build, paths.build(model, "train") / "model.safetensors")
    with torch.no_grad():
        results = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    named = results if isinstance(results, dict) else {"logits": results, "y": results}
    return {name: value.numpy() for name, value in named.items()}


def few(name: str) -> dict[str, np.ndarray]:
    samples = resolve(f"models.{name}:samples")("evaluation")
    return {key: value[:8] for key, value in samples.items() if key != "label"}


def test_01_a_gru_is_exported_correctly(case: Go) -> None:
    assert reasons(case("c01", "c01")) == ""


def test_08_minus_infinity_in_a_buffer_is_accepted(case: Go) -> None:
    assert reasons(case("c08", "c08")) == ""


def test_09_inputs_are_passed_to_forward_by_name(case: Go) -> None:
    assert reasons(case("c09", "c09")) == ""
    inputs = few("c09") | {"token_type_ids": np.ones((8, 10), np.int64)}
    assert farthest("c09", "models.c09:build", inputs, ["logits"]) < 1e-5


@pytest.mark.parametrize("model", ["c10", "c10q"])
def test_10_outputs_of_a_dict_are_matched_by_key(case: Go, model: str) -> None:
    assert reasons(case("c10", model)) == ""
    assert farthest(model, "models.c10:build", few("c10"), ["mood", "topic"]) < 1e-5


def test_12_a_wrong_sample_axis_fails_and_the_reason_names_the_required_axis(case: Go) -> None:
    report = case("c12", "c12", "data")["data"]
    assert report.status == "failed"
    assert "set sample_axis of the input" in report.reason


@pytest.mark.parametrize("model", ["c15", "c15c"])
def test_15_generated_values_that_the_original_rejects_fail_nothing(case: Go, model: str) -> None:
    reports = case("c15", model)
    assert reasons(reports) == ""
    assert any("with `range` of the input, or with `cases`" in finding for finding in reports["verify"].findings)


@pytest.mark.parametrize("model", ["c18", "c18n"])
def test_18_a_sequence_of_maps_is_replaced_by_its_tensor(case: Go, model: str) -> None:
    reports = case("c18", model)
    assert reasons(reports) == ""
    assert "output_probability was a sequence of maps (ZipMap)" in " ".join(reports["export"].findings)


def test_20_the_report_names_a_second_output_that_int8_breaks(case: Go) -> None:
    report = case("c20", "c20", *VERIFIED, "optimize", "quantize")["quantize"]
    broken = [variant for variant in report.variants if variant.precision == "int8" and variant.files]
    assert broken
    assert all("boxes" in variant.reason for variant in broken if variant.status == "failed")
    assert not [v.name for v in broken if v.status == "passed" and v.snr_db is not None and v.snr_db < 20]


@pytest.mark.parametrize("model", ["c28", "c28n", "c28f"])
def test_28_a_model_with_batch_one_never_receives_a_larger_batch(case: Go, model: str) -> None:
    assert reasons(case("c28", model)) == ""


def test_28_a_file_with_a_fixed_batch_of_one_gets_the_declared_name_and_is_verified(case: Go) -> None:
    reports = case("c28", "c28x")
    assert reasons(reports) == ""
    assert any(item.sizes["batch"] > 1 for item in reports["verify"].cases if not item.probe)


@pytest.mark.parametrize("model", ["c30", "c30d"])
def test_30_optional_and_keyword_only_parameters_are_passed_by_name(case: Go, model: str) -> None:
    assert reasons(case("c30", model)) == ""
    build = {"c30": "models.c30:build", "c30d": "models.c30:default"}[model]
    assert farthest(model, build, few("c30"), ["y"]) < 1e-5


@pytest.mark.parametrize("model", ["c35", "c35s"])
def test_35_state_outside_the_state_dict_fails_in_train(case: Go, model: str) -> None:
    report = case("c35", model, "train")["train"]
    assert report.status == "failed"
    assert "mean" in report.reason or "wiring" in report.reason


def test_36_a_small_value_next_to_a_large_one_is_judged_separately(case: Go) -> None:
    report = case("c36", "c36")["verify"]
    assert report.status == "failed"
    assert "Resize" in report.reason


def test_37_params_may_allow_equal_inputs_in_both_splits(case: Go) -> None:
    report = case("c37", "c37", "data")["data"]
    assert report.status == "failed"
    assert "max_shared" in report.reason
    assert case("c37", "c37", "data", data={"max_shared": 0.5})["data"].status == "passed"


@pytest.mark.parametrize(
    ("model", "words"),
    [("c39p", ""), ("c39t", ""), ("c39o", ""), ("c39c", "total_ops"), ("c39w", "state_dict")],
)
def test_39_checkpoints_are_loaded_in_common_forms_or_rejected_with_a_reason(
    case: Go, project: Path, model: str, words: str
) -> None:
    (project / "c39").mkdir()
    shutil.copy(HERE / "c39.py", project / "models")
    isolated_call.call(60, resolve("models.c39:write"), project / "c39")
    reports = case("c39", model, "train")
    said = reasons(reports) + " ".join(reports["train"].findings)
    assert (reports["train"].status == "passed") == (model != "c39w")
    assert words in said
    assert "\x1b" not in said
