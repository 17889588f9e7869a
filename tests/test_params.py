"""params.yaml: every invalid setting gives a line with its path, and nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from onward.registry.errors import UsageError
from onward.stages import params
from onward.stages.config import load
from onward.stages.config.schema import Dim, ModelParams
from onward.stages.parity.sizes import size_weight
from onward.stages.train import train
from onward.stages.workers.worker import Worker
from tests.conftest import ROOT, run
from tests.toy import SOURCE, one, toy_params, write_project, write_settings


def with_model(**changes: Any) -> dict[str, Any]:
    return toy_params(**changes)


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("unknown key", with_model(tolerence={"rtol": 1}), "models.toy.tolerence: unknown key; did you mean 'tolerance'?"),
    ("unknown nested key", with_model(export={"opzet": 20}), "models.toy.export.opzet: unknown key"),
    ("unknown top key", {**with_model(), "modles": {}}, "modles: unknown key; did you mean 'models'?"),
    ("wrong type", with_model(tolerance={"rtol": "small"}), "models.toy.tolerance.rtol: "),
    ("negative tolerance", with_model(tolerance={"atol": -1}), "models.toy.tolerance.atol: "),
    ("opset too new", with_model(export={"opset": 99}), "models.toy.export.opset: "),
    ("bad axis", with_model(inputs={"x": {"shape": ["batch", 0]}}), "models.toy.inputs.x.shape[1]: 0: "),
    ("axis of an invalid type", with_model(inputs={"x": {"shape": ["batch", 1.5]}}), "models.toy.inputs.x.shape[1]: "),
    (
        "undeclared dimension",
        with_model(inputs={"x": {"shape": ["bach", 6]}}),
        "models.toy.inputs.x.shape[0]: the dimension 'bach' is not declared under dims; did you mean 'batch'?",
    ),
    (
        "unused dimension",
        with_model(dims={"batch": {"max": 4, "typical": [1]}, "time": {"max": 4, "typical": [1]}}),
        "models.toy.dims.time: no input uses this dimension",
    ),
    ("typical out of range", with_model(dims={"batch": {"max": 4, "typical": [8]}}), "models.toy.dims.batch: typical"),
    (
        "integers without range",
        with_model(inputs={"x": {"dtype": "int64", "shape": ["batch"]}}),
        "models.toy.inputs.x: ",
    ),
    ("no model at all", {"models": {}}, "models: "),
    ("neither build nor onnx", with_model(build=None), "models.toy: give either build"),
    ("both", with_model(onnx="a.onnx"), "models.toy.build: give either build"),
    ("missing key", with_model(samples=None), "models.toy.samples: this key is missing"),
    ("invalid callable", with_model(build="models.toy.net"), "models.toy.build: 'models.toy.net' is not of the form"),
    (
        "missing function",
        with_model(build="models.toy:nett"),
        "models.toy.build: models.toy defines no 'nett'",
    ),
    ("missing module", with_model(build="nowhere.toy:net"), "models.toy.build: there is no module"),
    (
        "missing weights",
        with_model(weights="w.safetensors"),
        "models.toy.weights: w.safetensors: there is no",
    ),
    (
        "path outside the repository",
        with_model(weights="../w.pt"),
        "models.toy.weights: ../w.pt: is outside the repository",
    ),
    ("unknown optimizer", with_model(optimize={"candidates": ["onnxsimm"]}), "models.toy.optimize.candidates[0]: "),
    (
        "unknown option",
        with_model(quantize={"candidates": ["dynamic", {"static": {"calibrat": "minmax"}}]}),
        "models.toy.quantize.candidates[1].calibrat: no such option; did you mean 'calibrate'?",
    ),
    (
        "unknown value",
        with_model(quantize={"candidates": [{"static": {"calibrate": "maxmin"}}]}),
        "models.toy.quantize.candidates[0].calibrate: 'maxmin' is none of minmax, entropy, percentile",
    ),
    (
        "number for a boolean",
        with_model(quantize={"candidates": [{"dynamic": {"reduce_range": 1}}]}),
        "models.toy.quantize.candidates[0].reduce_range: 1 is none of false, true",
    ),
    (
        "duplicate candidate",
        with_model(optimize={"candidates": ["onnxsim", {"onnxsim": {}}]}),
        "models.toy.optimize.candidates[1]: the same as optimize.candidates[0]",
    ),
    (
        "invalid candidate",
        with_model(optimize={"candidates": [3]}),
        "models.toy.optimize.candidates[0]: must be the name of a technique",
    ),
    ("unknown runtime", {**with_model(), "runtimes": ["gpu"]}, "runtimes[0]: "),
    ("auto and more", {**with_model(), "runtimes": ["auto", "cpu"]}, "runtimes: auto is every runtime"),
    (
        "weights of some sizes",
        with_model(dims={"batch": {"max": 8, "typical": [{1: 0.9}, 8]}}),
        "models.toy.dims.batch: typical: give every size a weight, as in [{1: 0.9}, {32: 0.1}]",
    ),
    (
        "weight of nothing",
        with_model(dims={"batch": {"max": 8, "typical": [{1: 1}, {8: 0}]}}),
        "models.toy.dims.batch: typical: the weight of 8 must be a number above 0, not 0",
    ),
    (
        "unknown environment",
        {**with_model(), "environments": {"production": {"from": "stagging", "require": []}}},
        "environments.production.from: no environment 'stagging'",
    ),
    (
        "unknown requirement",
        {**with_model(), "environments": {"staging": {"from": "candidate", "require": ["speed"]}}},
        "environments.staging.require[0]: ",
    ),
    (
        "name that is not a valid path",
        {"models": {"../toy": toy_params()["models"]["toy"]}},
        "models.../toy: a model's name",
    ),
    ("reserved name", {"models": {"host": toy_params()["models"]["toy"]}}, "models.host: this name is reserved"),
    ("unknown default", {**with_model(), "defaults": {"exprot": {}}}, "defaults.exprot: unknown key; did you mean"),
]


@pytest.mark.parametrize(("raw", "wanted"), [pytest.param(raw, wanted, id=name) for name, raw, wanted in MISTAKES])
def test_an_invalid_setting_is_named_with_its_path_and_nothing_is_written(
    project: Path, raw: dict[str, Any], wanted: str
) -> None:
    write_project(project, params=raw)
    with pytest.raises(UsageError) as caught:
        params.write_sections(load.read(), project / "build" / "params")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"params.yaml: {wanted}") for line in lines), lines
    assert caught.value.exit_code == 2
    assert not (project / "build" / "params").exists()


def test_the_command_prints_one_line_and_exits_2(project: Path) -> None:
    write_project(project, params=toy_params(tolerance={"rtol": "small"}))
    done = run("onward stage params", ROOT, ONWARD_PROJECT=str(project))
    assert done.returncode == 2
    assert done.stdout.startswith("params.yaml: models.toy.tolerance.rtol: ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("text", ["models: [", "models:\n  a: {x: 1}\n  a: {x: 2}\n", "- just a list\n"])
def test_invalid_yaml_is_reported_in_one_line(project: Path, text: str) -> None:
    (project / "params.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load.read()
    assert str(caught.value).startswith("params.yaml:")
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_to_import_is_named(project: Path) -> None:
    write_project(project, source="import nonexistent_package\n" + SOURCE)
    with pytest.raises(UsageError, match=r"models\.toy\.build: models\.toy does not import: ModuleNotFoundError"):
        params.write_sections(load.read(), project / "build" / "params")


def test_a_worker_imports_the_projects_modules_also_if_pythonpath_names_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is started by its file, so this checkout and its own `models` come first in its `sys.path`."""
    write_project(project, SOURCE)
    one("train", "toy", train)
    monkeypatch.setenv("PYTHONPATH", str(project))
    weights = project / "build/toy/train/model.safetensors"
    with Worker.torch("models.toy:net", weights, ["x"], ["y"], "toy") as worker:
        assert worker.run({"x": np.zeros((2, 6), np.float32)})["y"].shape == (2, 3)


def test_defaults_apply_to_every_model_and_a_model_overrides_them(project: Path) -> None:
    raw = toy_params(tolerance={"atol": 0.5})
    raw["defaults"] = {"tolerance": {"rtol": 0.25, "atol": 0.1}, "export": {"opset": 18}}
    write_project(project, params=raw)
    model = load.read().models["toy"]
    assert (model.tolerance.rtol, model.tolerance.atol, model.export.opset) == (0.25, 0.5, 18)


def test_a_stage_cannot_read_an_undeclared_setting(project: Path) -> None:
    write_project(project)
    write_settings()
    part = load.section("toy", "export")
    assert part.export.opset == 20
    with pytest.raises(AttributeError):
        _ = part.tolerance


def test_a_changed_tolerance_does_not_change_the_settings_of_export_or_train(project: Path) -> None:
    def sections() -> dict[str, bytes]:
        folder = project / "build" / "params"
        params.write_sections(load.read(), folder)
        return {path.name: path.read_bytes() for path in sorted((folder / "toy").iterdir())}

    write_project(project)
    before = sections()
    write_project(project, params=toy_params(tolerance={"rtol": 0.5}))
    after = sections()
    changed = {name for name in before if before[name] != after[name]}
    assert "verify.json" in changed
    assert not changed & {"train.json", "data.json", "export.json"}


def test_training_depends_only_on_the_limits_of_the_batch(project: Path) -> None:
    def section(**batch: Any) -> bytes:
        write_project(project, params=toy_params(dims={"batch": {"max": 16, "typical": [1, 4], **batch}}))
        params.write_sections(load.read(), project / "build" / "params")
        return (project / "build/params/toy/train.json").read_bytes()

    before = section()
    assert section(typical=[2]) == before
    assert section(max=8) != before
    assert section(min=1) == before


def test_a_change_in_an_imported_source_file_is_detected(project: Path) -> None:
    (project / "models" / "helper.py").write_text("WIDTH = 16\n")
    write_project(project, source="from models.helper import WIDTH\n" + SOURCE)
    folder = project / "build" / "params"
    params.write_sections(load.read(), folder)
    before = (folder / "toy" / "export.json").read_bytes()
    (project / "models" / "helper.py").write_text("WIDTH = 17\n")
    params.write_sections(load.read(), folder)
    assert (folder / "toy" / "export.json").read_bytes() != before


def test_the_shipped_params_are_valid() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    found = load.read(ROOT / "params.yaml")
    assert list(found.models) == list(raw["models"])
    assert {"classifier", "cnn", "sequence", "multi-io", "transformer", "imported"} <= set(found.models)


@pytest.mark.parametrize("stage", sorted(load.READS))
def test_a_stage_reads_only_settings_in_its_section(stage: str) -> None:
    source = (ROOT / "stages" / f"{stage}.py").read_text()
    read = set(re.findall(r"\bsettings\.(\w+)", source)) & set(ModelParams.model_fields)
    assert read <= set(load.READS[stage])


def test_weights_of_sizes_repeat_the_benchmark_only(project: Path) -> None:
    def sections_of(typical: list[Any]) -> dict[str, Any]:
        write_project(project, params=toy_params(dims={"batch": {"max": 16, "typical": typical}}))
        return {name: json.loads(text) for name, text in params.sections(load.read()).items() if "publish" not in name}

    equal, weighted = sections_of([1, 4]), sections_of([{1: 0.75}, {4: 0.25}])
    assert {name for name in equal if equal[name] != weighted[name]} == {"toy/benchmark.json"}
    dim = Dim.model_validate(weighted["toy/benchmark.json"]["settings"]["dims"]["batch"])
    assert (dim.typical, dim.weights) == ([1, 4], [0.75, 0.25])
    assert size_weight({"batch": dim, "rows": Dim(max=9, typical=[3])}, {"batch": 4, "rows": 3}) == 0.25


def test_auto_makes_the_same_graphs_on_every_machine(project: Path) -> None:
    """Earlier stages must not depend on the runtimes that a machine has."""
    raw = toy_params()
    write_project(project, params=raw)
    found = {name: json.loads(text).get("runtimes") for name, text in params.sections(load.read()).items()}
    assert found["host.json"] == found["toy/benchmark.json"] == ["auto"]
    assert found["toy/optimize.json"] == found["toy/quantize.json"] == ["cpu", "openvino", "openvino-native"]
    assert found["toy/select.json"] is None
    write_project(project, params=raw | {"runtimes": "cpu"})
    assert json.loads(params.sections(load.read())["host.json"])["runtimes"] == ["cpu"]
