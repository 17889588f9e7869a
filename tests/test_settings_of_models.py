"""params.yaml names the usual settings, so that `dvc exp run -S` can change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from onward.registry import checkout
from onward.registry.store.connection import tracking_uri
from onward.stages.config import chain, load
from onward.stages.scaffold.settings import USUAL, with_settings
from onward.stages.summary import rounded
from tests.conftest import ROOT, Command
from tests.onnx_models import linear
from tests.toy import toy_params, write_project

MINIMAL = """# ours
defaults:
  export: {opset: 18}
models:
  # the first
  one:
    build: a:b
    tolerance: {atol: 1.0e-4}  # why
    budget:
      quality_drop: 0.1
      # a reason

  two: {build: a:b}
# at the end
runtimes: [cpu]
"""


def test_missing_settings_are_added_and_everything_else_stays() -> None:
    text = with_settings(MINIMAL)
    before, after = yaml.safe_load(MINIMAL), yaml.safe_load(text)
    one = after["models"]["one"]
    assert {section: set(one[section]) for section in USUAL} == {section: set(keys) for section, keys in USUAL.items()}
    assert (one["tolerance"]["atol"], one["budget"]["quality_drop"], one["export"]["opset"]) == (1e-4, 0.1, "default")
    assert after["models"]["two"] == before["models"]["two"]
    kept = iter(text.splitlines())
    assert all(any(line.partition("}")[0] in other for other in kept) for line in MINIMAL.splitlines())
    assert with_settings(text) == text


def test_settings_that_models_share_by_anchor_stay_shared() -> None:
    text = "models:\n  a:\n    tolerance: &t {rtol: 1.0e-3}\n  b:\n    tolerance: *t\n"
    assert with_settings(text) == text
    assert with_settings("models: {}\n") == "models: {}\n"
    assert with_settings("models: [\n") == "models: [\n"


def test_default_is_the_value_under_defaults_else_onwards_own(project: Path) -> None:
    params = toy_params(
        export={"opset": "default", "strategy": "default"}, budget={"latency_ms": "default"}, optimize="default",
        tolerance={"rtol": "default", "agreement": {"int8": "default"}}, seed="default",
    )  # fmt: skip
    params["defaults"] = {"export": {"opset": 18, "constant_folding": "default"}, "budget": {"latency_ms": 5}}
    toy = load.read(write_project(project, params=params) / "params.yaml").models["toy"]
    assert (toy.export.opset, toy.export.strategy, toy.export.constant_folding) == (18, "auto", True)
    assert (toy.budget.latency_ms, toy.tolerance.rtol, toy.tolerance.agreement.int8, toy.seed) == (5, 1e-3, 0.9, 0)


def test_shipped_generated_and_added_models_have_the_usual_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    onward("init", ".")
    linear(tmp_path / "net.onnx")
    assert onward("add", "net", "--onnx", "net.onnx")[0] == 0
    for path in (ROOT / "params.yaml", tmp_path / "params.yaml"):
        text = path.read_text()
        assert with_settings(text) == text
        assert all(model["export"]["opset"] for model in yaml.safe_load(text)["models"].values())
    (tmp_path / "params.yaml").write_text(MINIMAL)
    onward("upgrade")
    assert (tmp_path / "params.yaml").read_text() == with_settings(MINIMAL)


def test_a_changed_result_changes_the_recorded_inputs_of_later_stages(project: Path) -> None:
    def inputs(stage: str) -> str:
        folder = project / "build" / "toy" / stage
        folder.mkdir(parents=True, exist_ok=True)
        chain.record("toy", stage, folder)
        return (folder / chain.INPUTS).read_text()

    stages = ("train", *chain.PREDECESSORS)
    before = [inputs(stage) for stage in stages]
    assert [inputs(stage) for stage in stages] == before
    (project / "build" / "host").mkdir()
    (project / "build" / "host" / "toolchain.json").write_text("{}")
    assert all(inputs(stage) != old for stage, old in zip(stages, before, strict=True))


@pytest.mark.parametrize("where", ["tmpl4", "standalone/tmpl4"])
def test_a_copy_for_an_experiment_stands_for_the_folder_that_it_was_copied_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    top = tmp_path / "repository"
    copy = top / "team" / ".dvc" / "tmp" / "exps" / where
    for folder in (top, copy):
        (folder / ".git").mkdir(parents=True)
    assert checkout.original(copy / "team" / "onward") == top / "team" / "onward"
    assert checkout.original(top / "team") == top / "team"
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///ours.db")
    assert tracking_uri() == f"sqlite:///{top / 'ours.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////data/ours.db")
    assert tracking_uri() == "sqlite:////data/ours.db"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.023243, 0.0232), (1.23456, 1.23), (123.456, 123), (0.98765, 0.9877), (0.0000123, 0.0000123)]
)
def test_figures_are_rounded(value: float, shown: float) -> None:
    assert rounded(value) == pytest.approx(shown)
