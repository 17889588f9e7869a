"""Stages run by hand on a model that trains in no time: what they write, what they refuse, what they call a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from registry import onnx_file
from registry.errors import UsageError
from registry.evidence import DataReport, ExportReport, QuantizeReport, Report, TrainReport, VerifyReport
from stages import command
from stages.benchmark import benchmark
from tests.onnx_models import linear
from tests.toy import SOURCE, WIDE, many_rows, through, toy_params, write_project


def toy(project: Path) -> torch.nn.Module:
    namespace: dict[str, Any] = {}
    exec(SOURCE, namespace)
    return namespace["net"]()


def test_a_model_passes_and_its_file_documents_itself(project: Path) -> None:
    write_project(project, params=toy_params(inputs={"x": {"shape": ["batch", 6], "about": "six of them"}}))
    reports = through("train", "data", "export", "verify")
    assert {stage: report.status for stage, report in reports.items()} == dict.fromkeys(reports, "passed")
    report: ExportReport = reports["export"]
    graph = report.graph
    assert graph is not None
    assert graph.opsets["ai.onnx"] == 20
    assert [(s.name, s.shape) for s in graph.inputs] == [("x", ["batch", 6])]
    assert graph.parameters == 6 * 16 + 16 + 16 * 3 + 3
    assert json.loads(graph.metadata["onward.inputs"])["x"]["about"] == "six of them"
    assert graph.metadata["onward.weights_sha256"] == reports["train"].weights.sha256
    verified: VerifyReport = reports["verify"]
    fed = {case.case for case in verified.cases}
    assert {"normal0@b1", "normal1@b4", "maximum@b16", "prime@b3", "zeros@b3", "negated@16", "samples0@16"} <= fed


def test_export_follows_its_params(project: Path) -> None:
    options = {"opset": 18, "keep_initializers_as_inputs": True, "constant_folding": False}
    write_project(project, params=toy_params(export=options))
    through("train", "data", "export")
    model = onnx.load(project / "build/toy/export/model.onnx")
    assert model.opset_import[0].version == 18
    assert {i.name for i in model.graph.initializer} <= {i.name for i in model.graph.input}
    assert through("verify")["verify"].status == "passed"


def test_the_same_model_is_the_same_bytes_wherever_the_project_lies(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def variants(root: Path) -> dict[str, bytes]:
        monkeypatch.setenv("DVC_ROOT", str(root))
        monkeypatch.syspath_prepend(str(root))
        through("train", "data", "export", "verify", "optimize", "quantize")
        files = sorted((root / "build").rglob("*.onnx")) + sorted((root / "build").rglob("report.json"))
        return {str(file.relative_to(root)): file.read_bytes() for file in files}

    from tests.conftest import forget_models

    write_project(project, WIDE, many_rows())
    first = variants(project)
    other = tmp_path / "somewhere" / "quite" / "else"
    (other / "models").mkdir(parents=True)
    (other / "models" / "__init__.py").write_text("")
    write_project(other, WIDE, many_rows())
    forget_models()
    second = variants(other)
    assert first.keys() == second.keys()
    assert len([name for name in first if name.endswith(".onnx")]) >= 4
    assert [name for name in first if first[name] != second[name]] == []
    for name, content in first.items():
        assert str(tmp_path).encode() not in content, name
        assert b"site-packages" not in content, name


def test_a_model_over_the_limit_is_a_graph_with_its_weights_beside_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_DATA_BYTES", 100)
    write_project(project)
    reports = through("train", "data", "export", "verify", "optimize")
    assert [report.status for report in reports.values()] == ["passed"] * 5, [r.reason for r in reports.values()]
    assert [file.path for file in reports["export"].files] == ["model.onnx", "model.onnx.data"]
    optimised = reports["optimize"].variants
    assert any(variant.status == "passed" for variant in optimised), [v.reason for v in optimised]


def test_a_stage_without_what_comes_before_it_says_what_to_run(project: Path) -> None:
    write_project(project)
    with pytest.raises(UsageError, match="dvc repro"):
        through("export")
    with pytest.raises(UsageError, match=r"run `python -m stages\.host`"):
        command.one("benchmark", "toy", benchmark)
    assert not (project / "build" / "toy" / "export").exists()


def test_weights_from_elsewhere_are_taken_in_both_formats(project: Path) -> None:
    module = toy(project)
    torch.nn.init.constant_(module[0].bias, 0.25)
    save_file(module.state_dict(), project / "w.safetensors")
    torch.save(module.state_dict(), project / "w.pt")
    digests = set()
    for name in ("w.safetensors", "w.pt"):
        write_project(project, params=toy_params(weights=name))
        report: TrainReport = through("train")["train"]
        assert report.weights is not None
        digests.add(report.weights.sha256)
    assert len(digests) == 1


def broken_weights(module: torch.nn.Module, how: str) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    if how == "NaN":
        state["0.weight"][0, 0] = float("nan")
    elif how == "missing":
        del state["2.bias"]
    elif how == "shape":
        state["2.bias"] = torch.zeros(7)
    elif how == "extra":
        state["9.bias"] = torch.zeros(7)
    return state


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("NaN", "0.weight holds NaN or infinity"),
        ("missing", "2.bias is missing"),
        ("shape", r"2.bias has shape \[7\], the module wants \[3\]"),
        ("extra", "9.bias is not in the module"),
    ],
)
def test_weights_that_do_not_fit_are_a_users_mistake_and_nothing_is_written(
    project: Path, how: str, words: str
) -> None:
    save_file(broken_weights(toy(project), how), project / "w.safetensors")
    write_project(project, params=toy_params(weights="w.safetensors"))
    with pytest.raises(UsageError, match=rf"params.yaml: models.toy.weights: .*{words}") as caught:
        through("train")
    assert caught.value.exit_code == 2
    assert not (project / "build" / "toy" / "train").exists()


def test_a_pickle_with_code_in_it_never_runs(project: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (project / "ran",))

    torch.save({"0.weight": Evil()}, project / "w.pt")
    write_project(project, params=toy_params(weights="w.pt"))
    with pytest.raises(UsageError, match="cannot be read as weights"):
        through("train")
    assert not (project / "ran").exists()


def test_a_model_below_its_floor_fails_and_what_follows_is_not_attempted(project: Path) -> None:
    write_project(project, params=toy_params(quality_floor=0.999))
    reports = through("train", "data", "export", "verify", "optimize", "quantize")
    assert reports["train"].status == "failed"
    assert "below quality_floor 0.999" in reports["train"].reason
    for stage in ("export", "verify", "optimize", "quantize"):
        assert (reports[stage].status, reports[stage].reason) == ("not attempted", "train failed")


def with_forward(body: str) -> str:
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    return SOURCE.replace(
        "    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))",
        "    return Net()",
    ) + (
        "\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = torch.nn.Linear(6, 3)\n        self.b = torch.nn.Linear(6, 3)\n"
        f"\n    def forward(self, x):\n{indented}\n"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return self.a(x) if x.sum() > 0 else self.b(x)", "torch.where"),
        ("return self.a(x), self.b(x)", "the graph has the outputs y, "),
        ("y = torch.zeros(2, 3)\nreturn y + self.a(x[:2])", "dimension"),
    ],
    ids=["a branch on data", "one output too many", "a frozen dimension"],
)
def test_an_export_that_cannot_be_is_a_failed_report_in_plain_words(project: Path, body: str, words: str) -> None:
    params = toy_params(quality=None, export={"strategy": "dynamo"})
    write_project(project, source=with_forward(body), params=params)
    reports = through("train", "data", "export", "verify")
    assert reports["export"].status == "failed"
    assert words in reports["export"].reason
    assert "\n" not in reports["export"].reason
    assert str(project) not in reports["export"].reason
    assert reports["verify"].status == "not attempted"


def test_dropout_is_off_whatever_mode_build_leaves_the_module_in(project: Path) -> None:
    source = SOURCE.replace("torch.nn.ReLU(),", "torch.nn.ReLU(), torch.nn.Dropout(0.9),").replace(
        "torch.nn.Linear(16, 3))", "torch.nn.Linear(16, 3)).train()"
    )
    write_project(project, source=source)
    reports = through("train", "data", "export", "verify")
    assert reports["verify"].status == "passed", reports["verify"].reason


def test_a_weight_changed_after_export_fails_verification(project: Path) -> None:
    write_project(project)
    through("train", "data", "export")
    path = project / "build/toy/export/model.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())
    report: VerifyReport = through("verify")["verify"]
    assert report.status == "failed"
    assert "out of tolerance" in report.reason
    assert "normal1@b4" in report.reason


def test_an_onnx_file_from_elsewhere_goes_through_the_same_stages(project: Path) -> None:
    linear(project / "given.onnx", external=True)
    source = SOURCE.replace("(96, 6)", "(96, 4)")
    params = toy_params(build=None, onnx="given.onnx", quality=None, inputs={"x": {"shape": ["batch", 4]}})
    write_project(project, source=source, params=params)
    reports = through("train", "data", "export", "verify", "optimize", "quantize")
    assert [report.status for report in reports.values()] == ["passed"] * 6, [r.reason for r in reports.values()]
    given, taken = onnx.load(project / "given.onnx"), onnx.load(project / "build/toy/export/model.onnx")
    assert [n.op_type for n in given.graph.node] == [n.op_type for n in taken.graph.node]


def test_an_onnx_file_that_is_broken_is_a_users_mistake(project: Path) -> None:
    (project / "given.onnx").write_bytes(b"rubbish")
    write_project(project, params=toy_params(build=None, onnx="given.onnx", quality=None))
    with pytest.raises(UsageError, match=r"given\.onnx: is no ONNX file"):
        through("train")


def test_inputs_that_the_file_does_not_have_fail_the_export(project: Path) -> None:
    linear(project / "given.onnx")
    params = toy_params(build=None, onnx="given.onnx", quality=None, inputs={"z": {"shape": ["batch", 4]}})
    source = SOURCE.replace('"x": x,', '"z": x[:, :4],')
    write_project(project, source=source, params=params)
    report: Report = through("train", "data", "export")["export"]
    assert report.status == "failed"
    assert "the graph has the inputs x; params.yaml declares z" in report.reason


def replaced(old: str, new: str) -> str:
    assert old in SOURCE
    return SOURCE.replace(old, new)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (replaced('"evaluation": 1, "calibration": 2', '"evaluation": 1, "calibration": 1'), "splits share no sample"),
        (replaced('return {"x": x,', 'x[3, 2] = np.nan\n    return {"x": x,'), "x.not_finite"),
        (replaced("astype(np.float32)", "astype(np.float64)"), "x.dtype"),
        (replaced("(96, 6)", "(20, 6)"), "row_count"),
        (replaced("(x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)", "0 * (x[:, 1] > 0)"), "label"),
        (replaced("(96, 6)", "(96, 5)"), "x.shape"),
    ],
    ids=["overlap", "NaN", "dtype", "too few", "one label", "shape"],
)
def test_data_that_is_not_as_expected_is_a_failed_verdict(project: Path, source: str, words: str) -> None:
    write_project(project, source=source)
    report: DataReport = through("data")["data"]
    assert report.status == "failed"
    failed = [f"{e.expectation} {e.column}" for e in report.expectations if not e.success]
    assert any(words in text for text in failed), failed
    assert words.split(".")[0] in report.reason


def test_a_model_may_add_a_suite_of_its_own(project: Path) -> None:
    suite = {
        "expectations": [
            {"type": "expect_column_max_to_be_between", "kwargs": {"column": "x.max", "max_value": 0.5}},
        ]
    }
    (project / "suite.json").write_text(json.dumps(suite))
    write_project(project, params=toy_params(data={"suite": "suite.json"}))
    report: DataReport = through("data")["data"]
    assert report.status == "failed"
    assert "x.max" in report.reason


@pytest.mark.parametrize("text", ["{", '{"expectations": 3}', '{"expectations": [{"type": "expect_magic"}]}'])
def test_a_suite_that_is_none_is_a_users_mistake(project: Path, text: str) -> None:
    (project / "suite.json").write_text(text)
    write_project(project, params=toy_params(data={"suite": "suite.json"}))
    with pytest.raises(UsageError, match=r"suite"):
        through("data")


def test_samples_with_an_unknown_name_are_a_users_mistake(project: Path) -> None:
    write_project(project, source=SOURCE.replace('{"x": x,', '{"z": x,'))
    with pytest.raises(UsageError, match=r"params\.yaml: models\.toy\.samples: gives z, label; wanted x"):
        through("data")


def test_int8_graphs_are_smaller_and_state_what_they_cost(project: Path) -> None:
    write_project(project, WIDE, many_rows(budget={"quality_drop": 0.1}))
    report: QuantizeReport = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    made = {v.name: v for v in report.variants if v.status == "passed"}
    assert {"int8-dynamic-per_tensor", "int8-static"} <= set(made), [v.reason for v in report.variants]
    for variant in made.values():
        assert variant.quality is not None
        assert variant.agreement is not None
        assert variant.compression == pytest.approx(1 / (1 - variant.reduction))
        onnx_file.check(project / variant.files[0].path)
    assert made["int8-static"].compression > 1


def test_a_failed_stage_leaves_what_was_there_before(project: Path) -> None:
    write_project(project)
    before = through("train")["train"]
    save_file(broken_weights(toy(project), "NaN"), project / "w.safetensors")
    write_project(project, params=toy_params(weights="w.safetensors"))
    with pytest.raises(UsageError):
        through("train")
    assert (project / "build/toy/train/report.json").read_text().startswith("{")
    assert np.all([before.weights.sha256 in (project / "build/toy/train/report.json").read_text()])
    assert [path.name for path in (project / "build" / "toy").iterdir()] == ["train"]
