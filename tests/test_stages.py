"""Stages run by hand on a quickly trained model: what they write, what they reject, and what fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file

from onward.registry.artifact import onnx_file
from onward.registry.errors import NotReady, StoreUnreachable, UsageError
from onward.registry.evidence.reports import (
    DataReport,
    ExportReport,
    QuantizeReport,
    Report,
    TrainReport,
    VerifyReport,
    save,
)
from onward.stages.benchmark import benchmark
from onward.stages.config.load import section
from onward.stages.config.schema import ModelParams
from onward.stages.data import standard_suite
from onward.stages.parity.evaluate import batches
from onward.stages.workers.torch_module import fit, read_weights
from onward.stages.workers.worker import WorkerFailure
from tests.conftest import forget_models, not_none
from tests.onnx_models import linear
from tests.toy import SOURCE, WIDE, many_rows, one, through, toy_params, write_project, write_settings


def toy(project: Path) -> torch.nn.Sequential:
    namespace: dict[str, Any] = {}
    exec(SOURCE, namespace)
    net: torch.nn.Sequential = namespace["net"]()
    return net


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
    assert json.loads(graph.metadata["onward.dims"]) == {"batch": {"min": 1, "max": 16}}
    assert graph.metadata["onward.weights_sha256"] == reports["train"].weights.sha256
    verified: VerifyReport = reports["verify"]
    fed = {case.case for case in verified.cases}
    assert {"normal0@b1", "normal1@b4", "maximum@b16", "prime@b3", "zeros@b3", "negated@16", "samples0@16"} <= fed


def test_export_uses_its_params(project: Path) -> None:
    options = {"opset": 18, "keep_initializers_as_inputs": True, "constant_folding": False}
    write_project(project, params=toy_params(export=options))
    through("train", "data", "export")
    model = onnx.load(project / "build/toy/export/model.onnx")
    assert model.opset_import[0].version == 18
    assert {i.name for i in model.graph.initializer} <= {i.name for i in model.graph.input}
    assert through("verify")["verify"].status == "passed"


def test_a_model_gives_the_same_bytes_in_every_project_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def variants(root: Path) -> dict[str, bytes]:
        monkeypatch.setenv("ONWARD_PROJECT", str(root))
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


def test_a_model_over_the_limit_stores_its_weights_in_an_external_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_DATA_BYTES", 100)
    write_project(project)
    reports = through("train", "data", "export", "verify", "optimize")
    assert [report.status for report in reports.values()] == ["passed"] * 5, [r.reason for r in reports.values()]
    assert [file.path for file in reports["export"].files] == ["model.onnx", "model.onnx.data"]
    optimised = reports["optimize"].variants
    assert any(variant.status == "passed" for variant in optimised), [v.reason for v in optimised]


def test_a_stage_without_its_inputs_names_the_command_to_run(project: Path) -> None:
    write_project(project)
    with pytest.raises(UsageError, match="dvc repro"):
        through("export")
    with pytest.raises(UsageError, match=r"run `onward stage host`"):
        one("benchmark", "toy", benchmark)
    assert not (project / "build" / "toy" / "export").exists()


def test_external_weights_are_loaded_in_both_formats(project: Path) -> None:
    module = toy(project)
    torch.nn.init.constant_(module[0].get_parameter("bias"), 0.25)
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
    if how in ("NaN", "infinity"):
        state["0.weight"][0, 0] = float(how)
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
        ("NaN", "0.weight contains NaN"),
        ("infinity", "0.weight contains infinity"),
        ("missing", "2.bias is missing"),
        ("shape", r"2.bias has shape \[7\], the module expects \[3\]"),
        ("extra", "9.bias is not in the module"),
    ],
)
def test_weights_that_do_not_fit_fail(project: Path, how: str, words: str) -> None:
    save_file(broken_weights(toy(project), how), project / "w.safetensors")
    write_project(project, params=toy_params(weights="w.safetensors"))
    report: TrainReport = through("train")["train"]
    assert report.status == "failed"
    assert re.match(rf"params.yaml: models.toy.weights: w.safetensors: the weights do not fit .*{words}", report.reason)
    files = {path.name for path in (project / "build" / "toy" / "train").iterdir()}
    assert files == {"inputs.json", "report.json"}


def test_a_pickle_with_code_in_it_never_runs(project: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (project / "ran",))

    torch.save({"0.weight": Evil()}, project / "w.pt")
    write_project(project, params=toy_params(weights="w.pt"))
    report: TrainReport = through("train")["train"]
    assert report.status == "failed"
    assert "contains Python objects" in report.reason
    assert "torch.save(module.state_dict(), 'w.pt')" in report.reason
    assert "\x1b" not in report.reason
    assert not (project / "ran").exists()


def test_a_model_below_its_floor_fails_and_later_stages_are_not_attempted(project: Path) -> None:
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
        ("y = torch.zeros(2, 3)\nreturn y + self.a(x[:2])", "dimension"),
    ],
    ids=["a branch on data", "a frozen dimension"],
)
def test_a_failed_export_gives_a_readable_report(project: Path, body: str, words: str) -> None:
    params = toy_params(quality=None, export={"strategy": "dynamo"})
    write_project(project, source=with_forward(body), params=params)
    reports = through("train", "data", "export", "verify")
    assert reports["export"].status == "failed"
    assert words in reports["export"].reason
    assert "\n" not in reports["export"].reason
    assert str(project) not in reports["export"].reason
    assert reports["verify"].status == "not attempted"


def test_dropout_is_off_in_every_module_mode(project: Path) -> None:
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


def test_an_imported_onnx_file_passes_the_same_stages(project: Path) -> None:
    linear(project / "given.onnx", external=True)
    source = SOURCE.replace("(96, 6)", "(96, 4)")
    params = toy_params(build=None, onnx="given.onnx", quality=None, inputs={"x": {"shape": ["batch", 4]}})
    write_project(project, source=source, params=params)
    reports = through("train", "data", "export", "verify", "optimize", "quantize")
    assert [report.status for report in reports.values()] == ["passed"] * 6, [r.reason for r in reports.values()]
    given, taken = onnx.load(project / "given.onnx"), onnx.load(project / "build/toy/export/model.onnx")
    assert [n.op_type for n in given.graph.node] == [n.op_type for n in taken.graph.node]


def test_a_corrupt_onnx_file_fails(project: Path) -> None:
    (project / "given.onnx").write_bytes(b"rubbish")
    write_project(project, params=toy_params(build=None, onnx="given.onnx", quality=None))
    report: TrainReport = through("train")["train"]
    assert (report.status, "given.onnx: is not an ONNX file" in report.reason) == ("failed", True)


def with_maps(path: Path) -> None:
    """A classifier with a sequence of maps whose order differs from the tensor's."""
    value = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    maps = helper.make_value_info("chances", helper.make_sequence_type_proto(value))
    node = helper.make_node("ZipMap", ["x"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[5, 1, 2, 3, 4, 0])
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 6])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", [given], [maps]), opset_imports=opsets), path)


@pytest.mark.parametrize(("quality", "stage"), [("models.toy:accuracy", "train"), (None, "export")])
def test_an_output_that_is_a_sequence_of_maps_is_named_with_the_remedy(
    project: Path, quality: str | None, stage: str
) -> None:
    with_maps(project / "given.onnx")
    write_project(
        project,
        params=toy_params(build=None, onnx="given.onnx", quality=quality, outputs={"chances": {"shape": ["batch"]}}),
    )
    report = through("train", "data", "export")[stage]
    assert report.status == "failed"
    assert "chances is a sequence of maps, not a tensor: convert with options={'zipmap': False}" in report.reason


def test_a_file_with_a_fixed_declared_dimension_names_the_setting_to_change(project: Path) -> None:
    linear(project / "given.onnx")
    model = onnx.load(project / "given.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, project / "given.onnx")
    source = SOURCE.replace("(96, 6)", "(96, 4)")
    params = toy_params(build=None, onnx="given.onnx", quality=None, inputs={"x": {"shape": ["batch", 4]}})
    write_project(project, source=source, params=params)
    report = through("train", "data", "export")["export"]
    assert "declare it fixed in params.yaml, inputs: {x: {shape: [2, 4]}}" in report.reason
    assert "forward()" not in report.reason


def test_inputs_missing_from_the_file_fail_the_export(project: Path) -> None:
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
def test_unexpected_data_fails(project: Path, source: str, words: str) -> None:
    write_project(project, source=source)
    report: DataReport = through("data")["data"]
    assert report.status == "failed"
    failed = [f"{e.expectation} {e.column}" for e in report.expectations if not e.success]
    assert any(words in text for text in failed), failed
    assert words.split(".")[0] in report.reason


def test_too_few_samples_name_the_setting(project: Path) -> None:
    write_project(project, source=replaced("(96, 6)", "(20, 6)"))
    assert through("data")["data"].reason.endswith(": 20: return more samples, or lower data.min_samples")


@pytest.mark.parametrize(("asked", "steps", "rows"), [(50, 48, 8), (50, 1, 50), (500, 10, 50), (4, 10, 4)])
def test_every_step_of_a_sequence_counts_as_a_sample(asked: int, steps: int, rows: int) -> None:
    model: dict[str, Any] = toy_params(
        inputs={"x": {"shape": ["batch", 6]}, "state": {"shape": ["batch", 2]}}, states={"state": "y"},
        outputs={"y": {"shape": ["batch", 2]}}, data={"min_samples": asked},
    )["models"]["toy"]  # fmt: skip
    suite = standard_suite(ModelParams.model_validate(model), {"x": np.zeros((24, steps, 6), np.float32)})
    assert suite[0]["kwargs"] == {"min_value": rows}


def test_a_model_may_add_its_own_suite(project: Path) -> None:
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
def test_an_invalid_suite_fails(project: Path, text: str) -> None:
    (project / "suite.json").write_text(text)
    write_project(project, params=toy_params(data={"suite": "suite.json"}))
    report: DataReport = through("data")["data"]
    assert (report.status, "suite" in report.reason) == ("failed", True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('{"x": x,', '{"z": x,', "params.yaml: models.toy.samples: gives z, label; wanted x"),
        ('{"x": x,', '{"x": x.T,', "Samples are counted on axis 0 of every array"),
        ("def samples(split):", "def samples(split):\n    raise KeyError(split)", "raised KeyError: 'evaluation'"),
    ],
)
def test_unusable_samples_fail(project: Path, old: str, new: str, words: str) -> None:
    write_project(project, source=replaced(old, new))
    report: DataReport = through("data")["data"]
    assert (report.status, words in report.reason) == ("failed", True), report.reason


@pytest.mark.parametrize(("share", "status"), [(0.0, "failed"), (0.1, "failed"), (0.5, "passed")])
def test_a_model_may_allow_a_share_of_equal_samples_in_both_splits(project: Path, share: float, status: str) -> None:
    source = replaced('return {"x": x,', 'x[:24] = np.arange(24)[:, None]\n    return {"x": x,')
    write_project(project, source=source, params=toy_params(data={"max_shared": share}))
    report: DataReport = through("data")["data"]
    assert report.status == status
    assert status == "passed" or "24 of 96 evaluation samples" in report.reason
    assert status == "passed" or "data.max_shared" in report.reason


def test_int8_graphs_are_smaller_and_report_their_loss(project: Path) -> None:
    write_project(project, WIDE, many_rows(budget={"quality_drop": 0.1}))
    report: QuantizeReport = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    made = {v.name: v for v in report.variants if v.status == "passed"}
    assert {"int8-dynamic-per_tensor", "int8-static"} <= set(made), [v.reason for v in report.variants]
    for variant in made.values():
        assert variant.quality is not None
        assert [one.output for one in variant.fidelity] == ["y"]
        assert variant.compression == pytest.approx(1 / (1 - not_none(variant.reduction)))
        onnx_file.check(project / variant.files[0].path)
    assert not_none(made["int8-static"].compression) > 1


def test_a_candidate_that_is_far_outside_the_budget_is_not_tried_on_the_next_graph(project: Path) -> None:
    source = WIDE.replace("torch.nn.Linear(6, 256)", "torch.nn.Linear(6, 256), torch.nn.BatchNorm1d(256)")
    strict = {"y": {"shape": ["batch", 3], "kind": "values", "limit": 1e-6}}
    candidates = ["dynamic", "static", {"static": {"layers": "all"}}]
    few: dict[str, Any] = {"export": {"strategy": "trace"}, "quantize": {"candidates": candidates}}
    write_project(project, source, many_rows(quality=None, outputs=strict, **few))
    report: QuantizeReport = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    [_, optimised] = report.bases
    found = {variant.name: variant for variant in report.variants}
    assert found["int8-dynamic"].status == "failed"
    left_out = found[f"{optimised}-int8-dynamic"]
    assert left_out.status == "not attempted"
    assert re.fullmatch(
        r"int8-dynamic loses \d+ times what the budget allows, by y: relative error", left_out.reason
    ), left_out.reason
    # The first graph shows that all layers would lose more than the weighted ones; so they are not tried on the next.
    assert "would lose more" in found["int8-static-all"].reason
    assert found[f"{optimised}-int8-static-all"].reason.startswith("int8-static loses")


def test_an_operator_fault_keeps_the_previous_outputs(project: Path) -> None:
    write_project(project)
    before = through("train")["train"]
    source = SOURCE + "\ndef train(seed):\n    raise OSError(28, 'No space left on device')\n"
    write_project(project, source=source, params=toy_params(train="models.toy:train"))
    forget_models()
    with pytest.raises(OSError, match="No space left"):
        through("train")
    assert before.weights.sha256 in (project / "build/toy/train/report.json").read_text()
    assert [path.name for path in (project / "build" / "toy").iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerFailure("aborted", "m: the process died of SIGABRT"), "m: the process died of SIGABRT"),
        (UsageError("params.yaml: models.toy.x: no"), "params.yaml: models.toy.x: no"),
        (FileNotFoundError(2, "No such file or directory", "ranked.onnx"), "internal error: FileNotFoundError"),
    ],
)
def test_an_exception_in_a_stage_is_a_failed_report(project: Path, error: Exception, reason: str) -> None:
    def compute(model: str, folder: Path) -> Report:
        (folder / "half.onnx").write_text("half")
        raise error

    write_project(project)
    report = one("quantize", "toy", compute)
    assert (report.stage, report.status) == ("quantize", "failed")
    assert report.reason.startswith(reason)
    left = {path.name for path in (project / "build/toy/quantize").iterdir()}
    internal = reason.startswith("internal error")
    assert left == {"inputs.json", "report.json", *(["traceback.txt"] if internal else [])}
    if internal:
        assert "dvc repro --force --single-item quantize@toy" in report.reason
        assert "raise error" in (project / "build/toy/quantize/traceback.txt").read_text()


@pytest.mark.parametrize("error", [NotReady("no such report"), StoreUnreachable("down"), OSError(28, "full")])
def test_an_operator_fault_is_not_a_report(project: Path, error: Exception) -> None:
    def compute(model: str, folder: Path) -> Report:
        raise error

    write_project(project)
    with pytest.raises(type(error)):
        one("quantize", "toy", compute)
    assert not (project / "build/toy/quantize").exists()


TRAINED = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.note = 0.0, "as built"
        self.register_buffer("shift", torch.zeros(6), persistent=False)
        self.head = torch.nn.Linear(6, 3)
    def forward(self, x):
        return self.head(x - self.mean + self.shift)
def build():
    torch.manual_seed(0)
    return Net()
def unseeded():
    net = build()
    torch.seed()
    net.shift = torch.randn(6)
    return net
def train(seed):
    net = build()
    CHANGE
    return net
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("net.mean = 0.5", "mean is 0.5 in one and 0.0 in the other"),
        ("net.shift += 1", "shift has different values in the two (1, 1, 1, ... and 0, 0, 0, ...)"),
        ("net.head.register_forward_hook(lambda m, i, o: o * 2)", "no differing attribute was found"),
        ("net = net.double(); net.shift = net.shift.double()", ""),
        ("net = torch.nn.ModuleDict({'module': net}); net.forward = net['module'].forward", ""),
        ("net.note = 'trained'; net.head.weight.data = net.head.weight.data.t().contiguous().t()", ""),
    ],
    ids=["attribute", "buffer outside the state", "hook", "another dtype", "a prefix", "what changes no answer"],
)
def test_the_released_model_must_give_the_trained_outputs(project: Path, change: str, words: str) -> None:
    source = SOURCE + TRAINED.replace("CHANGE", change)
    write_project(project, source=source, params=toy_params(build="models.toy:build", train="models.toy:train"))
    report: TrainReport = through("train")["train"]
    if not words:
        assert report.status == "passed", report.reason
        return
    assert report.status == "failed"
    assert "gives other outputs than the module that was trained" in report.reason
    assert words in report.reason
    assert "register_buffer" in report.reason


def test_the_quality_floor_applies_to_the_released_model(project: Path) -> None:
    source = SOURCE + TRAINED.replace("CHANGE", "net.head.register_forward_hook(lambda m, i, o: o * 0)")
    params = toy_params(build="models.toy:build", train="models.toy:train", quality_floor=2.0)
    write_project(project, source=source, params=params)
    report: TrainReport = through("train")["train"]
    assert "is below quality_floor 2" in report.reason
    assert f"became {report.quality:.4g}" in report.reason


def test_a_nondeterministic_build_is_named(project: Path) -> None:
    write_project(project, source=SOURCE + TRAINED, params=toy_params(build="models.toy:unseeded"))
    report: TrainReport = through("train")["train"]
    assert report.status == "failed"
    assert report.reason.startswith("build() does not make the same module twice")
    assert "shift has different values" in report.reason


def test_a_checkpoint_dict_is_matched_by_key(project: Path) -> None:
    source = with_forward("return {'z': self.b(x), 'y': self.a(x)}")
    heads = {"y": {"shape": ["batch", 6]}, "z": {"shape": ["batch", 3]}}
    write_project(project, source=source, params=toy_params(outputs=heads, quality=None))
    assert through("train")["train"].status == "passed"
    write_project(project, source=source.replace("'y'", "'w'"), params=toy_params(outputs=heads, quality=None))
    forget_models()
    assert "params.yaml declares y, z. Declare each output under this name" in through("train")["train"].reason


def checkpoint(module: torch.nn.Module, form: str) -> Any:
    state = module.state_dict()
    forms: dict[str, Any] = {
        "parallel": {f"module.{name}": value for name, value in state.items()},
        "compiled and parallel": {f"_orig_mod.module.{name}": value for name, value in state.items()},
        "trainer": {"model": state, "epoch": 3, "optimizer": {}},
        "lightning": {"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 3},
        "other trainer": {"model_state_dict": state, "loss": 0.5},
        "counted": {**state, "total_ops": torch.zeros(1), "0.total_ops": torch.zeros(1)},
        "half": {name: value.half() for name, value in state.items()},
    }
    return forms[form]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("parallel", "all names in the file begin with 'module.'"),
        ("compiled and parallel", "all names in the file begin with '_orig_mod.module.'"),
        ("trainer", "the weights are those under its key 'model'"),
        ("lightning", "all names in the file begin with 'model.'"),
        ("other trainer", "the weights are those under its key 'model_state_dict'"),
        ("counted", "left out total_ops, 0.total_ops"),
        ("half", "float16 in the file"),
    ],
)
def test_checkpoints_are_loaded_in_all_common_forms(tmp_path: Path, form: str, words: str) -> None:
    given, taken = toy(tmp_path), toy(tmp_path)
    torch.nn.init.constant_(given[0].get_parameter("bias"), 0.25)
    torch.save(checkpoint(given, form), tmp_path / "w.pt")
    state, findings = read_weights(tmp_path / "w.pt")
    findings += fit(taken, state)
    assert any(words in finding for finding in findings), findings
    assert bool((taken[0].get_parameter("bias") == 0.25).all())


def test_the_report_lists_the_changes_to_a_checkpoint(project: Path) -> None:
    torch.save(checkpoint(toy(project), "parallel"), project / "w.pt")
    write_project(project, params=toy_params(weights="w.pt"))
    report: TrainReport = through("train")["train"]
    assert report.findings == ["all names in the file begin with 'module.', which was dropped"]


def test_an_unfit_checkpoint_shows_a_name_of_each_side_and_the_likely_cause() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = {f"net.{name}": value for name, value in module.state_dict().items()}
    del state["net.0.bias"]
    with pytest.raises(UsageError) as caught:
        fit(module, state)
    words = str(caught.value)
    assert "0.weight is missing; net.0.weight is not in the module" in words
    assert words.endswith("all names in the file begin with 'net.'")


def test_buffers_may_be_infinite_and_counters_missing_but_nan_is_rejected() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("mask", torch.zeros(2))
    state = {name: value.clone() for name, value in module.state_dict().items() if name != "num_batches_tracked"}
    state["mask"][0] = float("-inf")
    assert "num_batches_tracked" in fit(module, state)[0]
    assert module.get_buffer("mask")[0] == float("-inf")
    for value in ("nan", "inf"):
        with pytest.raises(UsageError, match=r"contains (NaN|infinity)"):
            fit(module, {**state, "weight": torch.full((2,), float(value))})
    with pytest.raises(UsageError, match="mask contains NaN"):
        fit(module, {**state, "mask": torch.full((2,), float("nan"))})


def test_verify_compares_the_quality_of_the_export_with_training(project: Path) -> None:
    write_project(project)
    through("train", "data", "export")
    path = project / "build/toy/train/report.json"
    report = TrainReport.model_validate_json(path.read_bytes())
    assert report.quality is not None
    save(report.model_copy(update={"quality": report.quality + 1 / 96}), path)
    assert through("verify")["verify"].status == "passed"
    save(report.model_copy(update={"quality": report.quality + 0.06}), path)
    verified = through("verify")["verify"]
    assert (verified.status, "became" in verified.reason) == ("failed", True)


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 5)])
def test_no_stage_uses_a_batch_outside_dims(project: Path, least: int, most: int) -> None:
    picky = f"assert {least} <= x.shape[0] <= {most}, x.shape\nreturn self.a(x)"
    dims = {"batch": {"min": least, "max": most, "typical": [least]}}
    write_project(project, source=with_forward(picky), params=toy_params(dims=dims, export={"strategy": "dynamo"}))
    reports = through("train", "data", "export", "verify")
    assert {stage: report.status for stage, report in reports.items()} == dict.fromkeys(reports, "passed"), [
        report.reason for report in reports.values()
    ]
    write_settings()
    settings = section("toy", "publish")
    samples = {"x": np.zeros((96, 6), np.float32)}
    sizes = {len(batch["x"]) for most in (64, 16, 8) for batch in batches(settings, samples, most)}
    assert least <= min(sizes)
    assert max(sizes) <= most


def test_the_reference_of_a_version_is_made_of_both_splits_and_the_chosen_graphs_answers(project: Path) -> None:
    from types import SimpleNamespace

    from onward.registry.evidence.records import FileDigest, Winner
    from onward.stages.publish import _reference

    write_project(project)
    reports = through("train", "data", "export", "verify")
    assert reports["export"].status == "passed"
    files = [FileDigest.of(project / "build" / "toy" / "export" / "model.onnx", project)]
    winner = Winner(variant="plain", runtime="cpu", provider="CPUExecutionProvider", files=files, p50_ms=1.0)
    write_settings()
    evidence: Any = SimpleNamespace(select=SimpleNamespace(winners=[winner]))
    first, second = (_reference("toy", section("toy", "publish"), evidence) for _ in range(2))
    assert first.to_json() == second.to_json()
    samples = {first.title(feature): feature.samples for feature in first.features}
    data = sizes_of_splits(project)
    assert samples["input x[0]"] == data["evaluation"] + data["calibration"]
    assert max(number for title, number in samples.items() if title.startswith("output")) == data["evaluation"]


def sizes_of_splits(project: Path) -> dict[str, int]:
    found = {}
    for name in ("evaluation", "calibration"):
        with np.load(project / "build" / "toy" / "data" / f"{name}.npz") as stored:
            found[name] = len(stored["x"])
    return found
