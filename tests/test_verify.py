"""Verification as a stage: its findings, its report, and the data that later stages read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.errors import UsageError
from onward.registry.evidence.records import CaseResult
from onward.registry.evidence.reports import ExportReport, OptimizeReport, VerifyReport
from onward.stages import verify
from onward.stages.config.load import read as read_params
from onward.stages.config.load import section
from onward.stages.params import write_sections
from onward.stages.parity.reference_answers import cases, recorded_answers, recorded_outputs
from onward.stages.transforms.optimizers import onnxsim
from tests.conftest import ROOT, run
from tests.onnx_models import linear
from tests.toy import SOURCE, through, toy_params, write_project

NET = "    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))"


def with_module(forward: str, head: str = "") -> str:
    """The source of the toy with another module, which has two linear layers, `a` and `b`."""
    body = "\n".join(f"        {line}" for line in forward.splitlines())
    return (
        head
        + SOURCE.replace(NET, "    return Net()")
        + "\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        + "        self.a = torch.nn.Linear(6, 6)\n        self.b = torch.nn.Linear(6, 3)\n\n"
        + f"    def forward(self, x):\n{body}\n"
    )


def spoil(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def nudge(model: onnx.ModelProto) -> None:
    """Change a weight of the first layer."""
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    tensor = next(t for t in model.graph.initializer if t.name == gemm.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_a_failed_report_names_the_case_node_module_and_line(project: Path) -> None:
    write_project(project, source=with_module("return self.b(torch.relu(self.a(x)))"), params=toy_params(quality=None))
    through("train", "data", "export")
    spoil(project / "build/toy/export/model.onnx", nudge)
    report: VerifyReport = through("verify")["verify"]
    assert report.status == "failed"
    assert report.divergence is not None
    assert (report.divergence.operator, report.divergence.module) == ("Gemm (of aten.linear.default)", "a")
    line = next(
        n for n, text in enumerate((project / "models/toy.py").read_text().splitlines(), 1) if "self.a(x)" in text
    )
    assert report.divergence.source == f"models/toy.py:{line}"
    failed = next(case.case for case in report.cases if case.failed)
    assert f"onward stage verify toy --case {failed}" in report.reason
    assert f"in a (models/toy.py:{line})" in report.reason


def test_a_single_case_can_be_rerun(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_project(project)
    through("train", "data", "export")
    assert verify.again("toy", "zeros@b3")
    alone = CaseResult.model_validate_json(capsys.readouterr().out)
    together = next(case for case in through("verify")["verify"].cases if case.case == "zeros@b3")
    assert alone == together
    spoil(project / "build/toy/export/model.onnx", nudge)
    assert not verify.again("toy", "normal1@b4")
    said = capsys.readouterr()
    assert json.loads(said.out)["verdict"] == "out of tolerance"
    assert "differs first at Gemm" in said.err
    with pytest.raises(UsageError, match=r"no case 'zeros@b4'; did you mean 'zeros@b3'"):
        verify.again("toy", "zeros@b4")


def test_the_exit_code_of_a_single_case_is_its_verdict(project: Path) -> None:
    write_project(project)
    through("train", "data", "export")
    here = str(ROOT)
    assert run("onward stage verify toy --case zeros@b3", project, PYTHONPATH=here).returncode == 0
    assert run("onward stage verify toy --case nonsense", project, PYTHONPATH=here).returncode == 2


def test_a_nondeterministic_original_is_reported(project: Path) -> None:
    source = with_module("return self.b(x) + 0.1 * torch.rand_like(self.b(x))")
    write_project(project, source=source, params=toy_params(quality=None, export={"strategy": "dynamo"}))
    reports = through("train", "data", "export", "verify")
    assert any("draws random numbers" in finding for finding in reports["export"].findings)
    assert reports["verify"].status == "failed"
    assert "outputs differ from run to run for the same inputs (y)" in reports["verify"].reason


def test_another_strategy_exports_what_torch_export_rejects_and_both_are_reported(project: Path) -> None:
    source = with_module("if bool(x.sum() > 0):\n    return self.b(x)\nreturn self.b(self.a(x))")
    write_project(project, source=source, params=toy_params(quality=None))
    reports = through("train", "data", "export", "verify")
    report: ExportReport = reports["export"]
    assert [(attempt.strategy, attempt.status) for attempt in report.attempts] == [
        ("dynamo", "failed"), ("dynamo-auto", "failed"), ("script", "passed"),
    ]  # fmt: skip
    assert "torch.where" in report.attempts[0].reason
    assert report.how.startswith("torch.jit.script")
    assert reports["verify"].status == "passed"
    files = {path.name for path in (project / "build/toy/export").iterdir()}
    assert files == {"inputs.json", "model.onnx", "report.json"}


def test_if_every_strategy_fails_the_report_gives_each_reason(project: Path) -> None:
    head = (
        "import torch\n@torch.library.custom_op('test::odd', mutates_args=())\n"
        "def odd(x: torch.Tensor) -> torch.Tensor:\n    return x + 1\n"
        "@odd.register_fake\ndef _(x):\n    return torch.empty_like(x)\n"
    )
    write_project(project, source=with_module("return odd(self.b(x))", head), params=toy_params(quality=None))
    report: ExportReport = through("train", "data", "export")["export"]
    assert report.status == "failed"
    assert "no ONNX translation" in report.reason
    assert "export.custom_translations" in report.reason
    assert len(report.attempts) == 4
    assert all(attempt.reason and str(project) not in attempt.reason for attempt in report.attempts)


def test_a_translation_table_is_checked_first_and_is_a_dependency_of_export(
    project: Path,
) -> None:
    write_project(project, params=toy_params(export={"custom_translations": "models.table:nothing"}))
    (project / "models" / "table.py").write_text("translations = {}\n")
    with pytest.raises(
        UsageError, match=r"models\.toy\.export\.custom_translations: models\.table defines no 'nothing'"
    ):
        write_sections(read_params(), project / "build" / "params")
    write_project(project, params=toy_params(export={"custom_translations": "models.table:translations"}))
    write_sections(read_params(), project / "build" / "params")
    written = json.loads((project / "build/params/toy/export.json").read_text())
    assert "models/table.py" in written["sources"]


def test_a_declared_shape_that_the_module_does_not_produce_fails(project: Path) -> None:
    source = with_module("return self.b(x).sum(0, keepdim=True)")
    write_project(project, source=source, params=toy_params(quality=None, export={"strategy": "trace"}))
    report: VerifyReport = through("train", "data", "export", "verify")["verify"]
    assert report.status == "failed"
    assert "returns y with the shape [1, 3] in case normal1@b4; params.yaml declares ['batch', 3]" in report.reason


def test_later_stages_read_the_recorded_reference_outputs(project: Path) -> None:
    write_project(project)
    through("train", "data", "export", "verify")
    settings = section("toy", "verify")
    expected = recorded_answers("toy", settings)
    assert [item.case.name for item in expected] == [case.name for case in cases("toy", settings, settings.verify)]
    assert all(item.truth["y"].dtype == np.float64 for item in expected)
    assert recorded_outputs("toy")["y"].shape == (96, 3)


def given(project: Path, **changes: Any) -> None:
    source = SOURCE.replace("(96, 6)", "(96, 4)")
    params = toy_params(build=None, onnx="given.onnx", quality=None, inputs={"x": {"shape": ["batch", 4]}}, **changes)
    write_project(project, source=source, params=params)


def test_an_imported_file_is_compared_with_a_second_implementation_in_float64(project: Path) -> None:
    linear(project / "given.onnx")
    given(project)
    report: VerifyReport = through("train", "data", "export", "verify")["verify"]
    assert report.status == "passed", report.reason
    assert report.evaluator == "the graph evaluated node by node, in float64: 8 cases"
    assert len(report.evaluated) == verify.EVALUATED
    assert all(case.verdict == "ok" for case in report.evaluated)
    assert report.findings == []
    expected = recorded_answers("toy", section("toy", "verify"))
    judged = [item for item in expected if not item.probe]
    assert all(item.truth["y"].dtype == np.float64 for item in judged)
    assert any(item.spread["y"].any() for item in judged)


def test_an_operator_missing_from_the_evaluator_is_reported_but_does_not_fail(project: Path) -> None:
    linear(project / "given.onnx")

    def biased(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        model.graph.node[1].CopyFrom(helper.make_node("QuickGelu", ["h"], ["y"], domain="com.microsoft"))

    spoil(project / "given.onnx", biased)
    given(project)
    report: VerifyReport = through("train", "data", "export", "verify")["verify"]
    assert report.status == "passed", report.reason
    assert report.evaluator.startswith("not checked: the evaluator cannot run this model: ")
    assert report.evaluated == []


def test_the_evaluator_can_be_disabled_and_an_exhausted_limit_is_not_a_disagreement(project: Path) -> None:
    linear(project / "given.onnx")
    for settings, words in (
        ({"evaluator": False}, "not checked: verify.evaluator is false in params.yaml"),
        ({"evaluator_seconds": 0.001}, "not checked: verify.evaluator_seconds (0.001) was used up"),
    ):
        given(project, verify={"draws": 1, "samples": 8, **settings})
        report: VerifyReport = through("train", "data", "export", "verify")["verify"]
        assert report.status == "passed", report.reason
        assert report.evaluator == words
    assert any(finding.endswith("(0.001) was used up") for finding in report.findings)


def test_a_wrong_resize_of_onnx_runtime_fails_the_original(project: Path) -> None:
    import onnxruntime

    sizes = numpy_helper.from_array(np.array([1, 64]), "sizes")
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], name="up", mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "up",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 26])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 64])],
        [sizes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, project / "given.onnx")
    x = np.arange(26, dtype=np.float32)[None]
    got = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    if np.array_equal(got[0], np.floor(np.arange(64) * 26 / 64)):
        pytest.skip("this ONNX Runtime picks the right pixels")
    params = toy_params(
        build=None, onnx="given.onnx", quality=None, inputs={"x": {"shape": [1, 26]}},
        outputs={"y": {"shape": [1, 64]}}, dims=None,
    )  # fmt: skip
    write_project(project, source=SOURCE.replace("(96, 6)", "(96, 26)"), params=params)
    report: VerifyReport = through("train", "data", "export", "verify")["verify"]
    assert report.status == "failed"
    assert "ONNX Runtime computes Resize 'up' (opset 17) differently from PyTorch and ONNX's" in report.reason
    assert "it is wrong there" in report.reason


def test_an_imported_file_with_a_fixed_size_fails_at_other_sizes(project: Path) -> None:
    linear(project / "given.onnx")

    def frozen(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
        model.graph.node[1].input[0] = "reshaped"
        model.graph.node.insert(1, helper.make_node("Reshape", ["h", "shape"], ["reshaped"]))

    spoil(project / "given.onnx", frozen)
    given(project)
    reports = through("train", "data", "export", "verify")
    assert "failed" in {report.status for report in reports.values()}


def test_an_opset_unsupported_by_the_runtime_is_explained(project: Path) -> None:
    linear(project / "given.onnx")
    spoil(project / "given.onnx", lambda model: setattr(model.opset_import[0], "version", 99))
    given(project)
    report = through("train", "data", "export")["export"]
    assert report.status == "failed"
    assert "the file requires an opset or format that the runtime does not support" in report.reason


def test_a_differing_variant_names_the_first_differing_value(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(source: Path, target: Path, options: dict[str, object]) -> None:
        model = onnx.load(source)
        nudge(model)
        onnx.save(model, target)

    write_project(project, params=toy_params(optimize={"candidates": ["onnxsim"]}))
    monkeypatch.setattr(onnxsim, "optimize", careless)
    monkeypatch.setattr(onnxsim, "skip_reason", lambda *_: "")
    report: OptimizeReport = through("train", "data", "export", "verify", "optimize")["optimize"]
    assert report.status == "passed"
    (variant,) = report.variants
    assert variant.status == "failed"
    assert variant.divergence is not None
    assert (variant.divergence.value, variant.divergence.module) == ("linear", "0")
    assert "differs first at Gemm giving 'linear' in 0" in variant.reason


def test_a_mask_model_receives_masks_and_a_lost_mask_is_found(project: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Where", ["on", "x", "nothing"], ["y"])],
        "masked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
         helper.make_tensor_value_info("on", TensorProto.BOOL, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(0, np.float32), "nothing")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), project / "given.onnx"
    )
    source = SOURCE.replace("(96, 6)", "(96, 4)").replace('{"x": x,', '{"x": x, "on": x > 0,')
    params = toy_params(
        build=None, onnx="given.onnx", quality=None,
        inputs={"x": {"shape": ["batch", 4]}, "on": {"dtype": "bool", "shape": ["batch", 4]}},
        outputs={"y": {"shape": ["batch", 4]}},
    )  # fmt: skip
    write_project(project, source=source, params=params)
    reports = through("train", "data", "export", "verify")
    assert reports["verify"].status == "passed", reports["verify"].reason
    fed = {case.case.split("@")[0] for case in reports["verify"].cases}
    assert {"masks-on", "masks-off", "masks-ragged"} <= fed
