"""Checkpoints: which state dict in a file is used, and which names may be missing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onward.registry.errors import UsageError
from onward.registry.evidence.reports import TrainReport
from onward.stages.config.load import read
from onward.stages.config.values import Weights
from onward.stages.workers.torch_module import fit, read_weights
from tests.toy import through, toy_params, write_project


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def loaded(path: Path, content: Any, **settings: Any) -> tuple[torch.nn.Module, list[str]]:
    """A module with the weights of a file, and the findings."""
    torch.save(content, path)
    module, given = net(), Weights(file=path.name, **settings)
    state, findings = read_weights(path, "", given)
    return module, findings + fit(module, state, "", given)


def marked() -> dict[str, torch.Tensor]:
    state = net().state_dict()
    return {**state, "0.bias": torch.full((16,), 0.25)}


def has_mark(module: torch.nn.Module) -> bool:
    return bool((module.get_parameter("0.bias") == 0.25).all())


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("ema", lambda state: {"ema": state, "model": {}}),
        ("net.weights", lambda state: {"net": {"weights": state}}),
        (["net.a", "weights"], lambda state: {"net.a": {"weights": state}}),
        ("net.a.weights", lambda state: {"net.a": {"weights": state}}),
    ],
)
def test_a_key_names_the_state_dict(tmp_path: Path, key: Any, content: Any) -> None:
    module, _ = loaded(tmp_path / "w.pt", content(marked()), key=key)
    assert has_mark(module)


def test_two_state_dicts_are_refused_and_the_message_has_the_line_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path / "w.pt", {"ema": marked(), "model": net().state_dict()})
    assert "'ema' (4 tensors), 'model' (4 tensors)" in str(caught.value)
    assert "weights: {file: w.pt, key: model}" in str(caught.value)


def test_one_state_dict_under_an_unusual_key_is_named_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights: \{file: w.pt, key: ema.inner\}"):
        loaded(tmp_path / "w.pt", {"ema": {"inner": marked()}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}})


def test_a_missing_key_lists_those_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no key 'modle'; did you mean 'model'.*its keys are model, epoch"):
        loaded(tmp_path / "w.pt", {"model": marked(), "epoch": 3}, key="modle")
    with pytest.raises(UsageError, match=r"'epoch' is int, not a state dict of tensors; the file contains the state"):
        loaded(tmp_path / "w.pt", {"model": marked(), "epoch": 3}, key="epoch")


def test_a_safetensors_file_has_no_keys(tmp_path: Path) -> None:
    save_file(marked(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"remove key: model"):
        read_weights(tmp_path / "w.safetensors", "", Weights(file="w.safetensors", key="model"))


def test_a_prefix_of_some_names_is_stripped(tmp_path: Path) -> None:
    content = {**{f"net.{name}": value for name, value in marked().items()}, "loss.weight": torch.ones(3)}
    with pytest.raises(UsageError, match=r'weights: {file: ..., strip: "net."} makes 4 of the 4 names fit'):
        loaded(tmp_path / "w.pt", content)
    with pytest.raises(UsageError, match=r"loss.weight is not in the module; 0 of the module's 4 names are missing"):
        loaded(tmp_path / "w.pt", content, strip="net.")
    module, findings = loaded(tmp_path / "w.pt", content, strip="net.", strict=False)
    assert has_mark(module)
    assert findings == [
        "w.pt: 'net.' was dropped from 4 of 5 names",
        "strict: false: left out loss.weight, which the module does not have",
    ]
    with pytest.raises(UsageError, match=r"no name begins with strip: 'nett.'"):
        loaded(tmp_path / "w.pt", content, strip="nett.")


def test_every_parameter_that_stays_untrained_is_a_finding(tmp_path: Path) -> None:
    content = {name: value for name, value in marked().items() if not name.startswith("2.")}
    with pytest.raises(UsageError, match=r"2.weight is missing.*2 of the module's 4 names are missing, 0 of"):
        loaded(tmp_path / "w.pt", content)
    module, findings = loaded(tmp_path / "w.pt", content, strict=False)
    assert has_mark(module)
    assert [finding.partition(" is not in the file")[0] for finding in findings] == [
        "strict: false: the parameter 2.weight",
        "strict: false: the parameter 2.bias",
    ]


def test_without_any_common_name_the_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of the module's 4 names is in the file: the module has '0.weight'"):
        loaded(tmp_path / "w.pt", {"a.weight": torch.ones(1), "b.weight": torch.ones(1)}, strict=False)


def test_strict_false_still_requires_equal_shapes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2.bias has shape \[7\]"):
        loaded(tmp_path / "w.pt", {**marked(), "2.bias": torch.zeros(7)}, strict=False)


def test_arguments_and_numbers_beside_the_weights_are_no_obstacle(tmp_path: Path) -> None:
    content = {"state_dict": marked(), "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "at": np.int64(3)}
    module, _ = loaded(tmp_path / "w.pt", content)
    assert has_mark(module)


def test_untrained_parameters_are_in_the_report_of_train(project: Path) -> None:
    torch.save({"ema": {"0.weight": torch.zeros(16, 6)}}, project / "w.pt")
    weights = {"file": "w.pt", "key": "ema", "strict": False}
    write_project(project, params=toy_params(weights=weights))
    report: TrainReport = through("train")["train"]
    assert report.status == "passed", report.reason
    assert sum("which nothing trained" in finding for finding in report.findings) == 3
    assert report.how == "weights of w.pt"


def test_mistakes_in_weights_have_their_place_in_the_file(project: Path) -> None:
    write_project(project, params=toy_params(weights={"fil": "w.pt"}))
    with pytest.raises(UsageError) as caught:
        read()
    assert "models.toy.weights.file: this key is missing" in str(caught.value)
    assert "models.toy.weights.fil: unknown key" in str(caught.value)
