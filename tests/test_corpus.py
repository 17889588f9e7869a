"""Correct models of many kinds pass, and models with one fault fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from onward.stages.config import paths
from onward.stages.config.schema import ModelParams, Tolerance, Verify
from onward.stages.export import _attempt, _export, _ladder, _sound, _Unsound
from onward.stages.exporting.localize_torch import against_torch
from onward.stages.exporting.torch_exporters import example
from onward.stages.parity import localize
from onward.stages.parity.cases import draw
from onward.stages.parity.check import check, recall, sentence
from onward.stages.parity.reference_answers import cases
from onward.stages.workers import isolated_call
from onward.stages.workers.torch_module import load_module
from onward.stages.workers.worker import Worker, WorkerFailure
from tests.architectures import MODELS
from tests.conftest import ROOT, not_none
from tests.mutations import MUTATIONS


def settle(name: str, **changes: object) -> ModelParams:
    """The settings of a corpus model, with its weights and samples in the paths that stages read."""
    settings = ModelParams.model_validate(MODELS[name] | changes)
    assert settings.build is not None
    weights = paths.build(name, "train") / "model.safetensors"
    if not weights.exists():
        weights.parent.mkdir(parents=True)
        state = {key: value.contiguous() for key, value in load_module(settings.build, None).state_dict().items()}
        save_file(state, weights)
        paths.build(name, "data").mkdir()
        sizes = {dim: spec.typical[-1] for dim, spec in settings.dims.items()} | {"batch": 24}
        samples: dict[str, Any] = draw(settings.inputs, sizes, np.random.default_rng(5))
        np.savez(paths.build(name, "data") / "evaluation.npz", **samples)
    return settings


# The strategies for models that the first strategy exports wrongly.
OTHERWISE = {"branching": "script", "gru": "script", "bidirectional": "script"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the export of every corpus model and the outputs of its module.

    One process exports all of them, because torch is slow to start.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("corpus")
        patch.setenv("ONWARD_PROJECT", str(folder))
        for name in MODELS:
            settle(name)
        isolated_call.call(600, export_all, folder)
        yield folder


def export_all(root: Path) -> None:
    for name in MODELS:
        (root / name).mkdir()
        weights = paths.build(name, "train") / "model.safetensors"
        strategy = OTHERWISE.get(name, "dynamo")
        _export(name, settle(name), strategy, weights, root / name / "model.onnx", root / f"{name}.npz")


@pytest.mark.parametrize("name", MODELS)
def test_every_correct_model_passes(name: str, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / name, tmp_path / "made")
    assert verdict(name, root, tmp_path / "made") == ""


@pytest.mark.parametrize(("name", "strategy"), [("branching", "script"), ("gru", "script")])
def test_the_export_ladder_finds_the_working_strategy_and_reports_why_others_failed(
    name: str, strategy: str, root: Path, tmp_path: Path
) -> None:
    made, attempts = _ladder(name, settle(name), tmp_path)
    assert (made.attempt.strategy, made.attempt.status) == (strategy, "passed")
    assert [attempt.status for attempt in attempts] == ["failed"] * (len(attempts) - 1) + ["passed"]
    assert all(attempt.reason for attempt in attempts[:-1])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def verdict(name: str, root: Path, folder: Path) -> str:
    """The reason why a model fails; empty if it passes."""
    settings, path = settle(name), folder / "model.onnx"
    expected = recall(root / f"{name}.npz", cases(name, settings, Verify()))
    try:
        _sound(name, settings, path, paths.build(name, "train") / "model.safetensors")
        with Worker.onnx(path, name) as worker:
            worker.start()
            return sentence(check(worker, expected, Tolerance()))
    except (_Unsound, WorkerFailure) as refused:
        return str(refused)


@pytest.mark.parametrize("label", MUTATIONS)
def test_a_model_with_one_fault_does_not_pass(label: str, root: Path, tmp_path: Path) -> None:
    name, mutate = MUTATIONS[label]
    shutil.copytree(root / name, tmp_path / "made")
    mutate(tmp_path / "made" / "model.onnx")
    said = verdict(name, root, tmp_path / "made")
    assert said
    assert str(tmp_path) not in said


def test_a_trace_with_one_baked_branch_is_rejected(root: Path) -> None:
    settings = settle("branching", export={"strategy": "trace"})
    folder = root / "baked"
    folder.mkdir()
    made = _attempt("branching", settings, "trace", folder, root / "baked.npz")
    assert made.attempt.status == "failed"
    assert "makes a Python boolean of an input's values" in made.attempt.reason
    assert "architectures.py:" in made.attempt.reason
    assert not made.sound
    settings = settle("branching", export={"strategy": "trace", "allow_traced_constants": True})
    made = _attempt("branching", settings, "trace", folder, root / "baked.npz")
    assert "outputs differ from the module's" in made.attempt.reason


@pytest.mark.parametrize(
    ("label", "operator", "module", "source"),
    [
        ("a weight changed by 0.01", "Gemm", "0", "linear.py"),
        ("the softmax's axis off by one", "Softmax", "", "tests/architectures.py"),
        ("the norm's epsilon of another framework", "LayerNormalization", "norm", "tests/architectures.py"),
        (
            "the gates of the LSTM in PyTorch's order",
            "Transpose",
            "lstm",
            "tests/architectures.py",
        ),
    ],
)
def test_the_report_names_the_node_module_and_line_of_the_first_difference(
    label: str, operator: str, module: str, source: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, mutate = MUTATIONS[label]
    settings, path, weights = settle(name), tmp_path / "made" / "model.onnx", paths.build(name, "train")
    shutil.copytree(root / name, tmp_path / "made")
    monkeypatch.setattr(paths, "root", lambda: ROOT)  # the source file of the module
    _sound(name, settings, path, weights / "model.safetensors")
    mutate(path)
    monkeypatch.undo()
    expected = recall(root / f"{name}.npz", cases(name, settings, Verify()))
    with Worker.onnx(path, name) as worker:
        worst = localize.pick(expected, check(worker, expected, Tolerance()))
    assert worst is not None
    found = isolated_call.call(
        120, against_torch, settings, weights / "model.safetensors", path, "dynamo", worst.case, example(settings)
    )
    assert found.operator.startswith(operator)
    assert found.module == module
    assert source in found.source
    assert not found.source.startswith("/")
    assert not_none(found.difference) > 1e-3 * not_none(found.scale) > 0
    assert worst.case.name == found.case


def test_a_report_names_the_first_value_of_a_variant_that_differs_from_the_plain_export(
    root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "attention", tmp_path / "made")
    MUTATIONS["the softmax's axis off by one"][1](tmp_path / "made" / "model.onnx")
    settings = settle("attention")
    case = next(cases("attention", settings, Verify()))
    plain = root / "attention" / "model.onnx"
    found = localize.against_graph(plain, tmp_path / "made" / "model.onnx", case, quantised=False)
    assert (found.operator, found.value) == ("Softmax", "softmax")
    same = localize.against_graph(plain, plain, case, quantised=False)
    assert same.value == ""
