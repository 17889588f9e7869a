"""What passes and what does not: sound models of many kinds, and models with one thing wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from stages import paths
from stages.answers import cases
from stages.export import _attempt, _export, _ladder, _sound, _Unsound
from stages.module import load_module
from stages.parity.cases import draw
from stages.parity.check import check, recall, sentence
from stages.runtime import isolate
from stages.runtime.pool import Worker, WorkerFailure
from stages.settings import ModelParams, Tolerance, Verify
from tests.architectures import MODELS
from tests.mutations import MUTATIONS


def settle(name: str, **changes: object) -> ModelParams:
    """Settings of a model of the corpus, with its weights and samples where stages look for them."""
    settings = ModelParams.model_validate(MODELS[name] | changes)
    assert settings.build is not None
    weights = paths.build(name, "train") / "model.safetensors"
    if not weights.exists():
        weights.parent.mkdir(parents=True)
        state = {key: value.contiguous() for key, value in load_module(settings.build, None).state_dict().items()}
        save_file(state, weights)
        paths.build(name, "data").mkdir()
        sizes = {dim: spec.typical[-1] for dim, spec in settings.dims.items()} | {"batch": 24}
        np.savez(paths.build(name, "data") / "evaluation.npz", **draw(settings.inputs, sizes, np.random.default_rng(5)))
    return settings


# How the models that the first way of exporting gets wrong are exported.
OTHERWISE = {"branching": "script", "gru": "script", "bidirectional": "script"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which every model of the corpus is exported, with its module's answers beside it: in one process,
    for torch takes its time to start."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("corpus")
        patch.setenv("DVC_ROOT", str(folder))
        for name in MODELS:
            settle(name)
        isolate.call(600, export_all, folder)
        yield folder


def export_all(root: Path) -> None:
    for name in MODELS:
        (root / name).mkdir()
        weights = paths.build(name, "train") / "model.safetensors"
        strategy = OTHERWISE.get(name, "dynamo")
        _export(name, settle(name), strategy, weights, root / name / "model.onnx", root / f"{name}.npz")


@pytest.mark.parametrize("name", MODELS)
def test_a_good_model_of_any_kind_passes(name: str, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / name, tmp_path / "made")
    assert verdict(name, root, tmp_path / "made") == ""


@pytest.mark.parametrize(("name", "strategy"), OTHERWISE.items())
def test_the_ladder_finds_the_way_that_works_and_says_why_the_others_fell(
    name: str, strategy: str, root: Path, tmp_path: Path
) -> None:
    made, rungs = _ladder(name, settle(name), tmp_path)
    assert (made.rung.strategy, made.rung.status) == (strategy, "passed")
    assert [rung.status for rung in rungs] == ["failed"] * (len(rungs) - 1) + ["passed"]
    assert all(rung.reason for rung in rungs[:-1])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def verdict(name: str, root: Path, folder: Path) -> str:
    """Why a model does not pass; empty where it does."""
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
def test_a_model_with_one_thing_wrong_does_not_pass(label: str, root: Path, tmp_path: Path) -> None:
    name, mutate = MUTATIONS[label]
    shutil.copytree(root / name, tmp_path / "made")
    mutate(tmp_path / "made" / "model.onnx")
    said = verdict(name, root, tmp_path / "made")
    assert said
    assert str(tmp_path) not in said


def test_a_tracer_that_baked_one_branch_falls(root: Path) -> None:
    settings = settle("branching", export={"strategy": "trace"})
    folder = root / "baked"
    folder.mkdir()
    made = _attempt("branching", settings, "trace", folder, root / "baked.npz")
    assert made.rung.status == "failed"
    assert "answers otherwise than the module" in made.rung.reason
    assert "followed one side alone" in made.rung.reason
