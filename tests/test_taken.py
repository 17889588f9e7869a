"""ONNX files from elsewhere: any opset, old formats, a batch of one, sequences of maps, undeclared outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from onward import InferenceSession
from onward.registry.artifact.manifest import check_folder
from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.artifact.serving_plan import Served, Serving
from onward.registry.errors import Refused, UsageError
from onward.registry.evidence.records import TensorSpec
from onward.registry.evidence.reports import ExportReport, VerifyReport
from onward.registry.evidence.session_options import SessionOptions
from onward.stages.exporting import taken_graph
from onward.stages.workers import circumstances
from onward.stages.workers.worker import Worker
from tests.onnx_models import linear
from tests.toy import STAGES as STAGES_BY_NAME
from tests.toy import one, through, toy_params, write_project

SAMPLES = """
import numpy as np

def samples(split):
    rng = np.random.default_rng({"evaluation": 1, "calibration": 2}[split])
    return {"x": rng.standard_normal((96, 6)).astype(np.float32)}
"""
STAGES = ("train", "data", "export", "verify")


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    outputs: dict[str, list[int | str | None]] | None = None,
    opset: int = 11,
    batch: int | str | None = "batch",
    old: bool = False,
) -> onnx.ModelProto:
    """A model from x [batch, 6]; `old` makes its weights graph inputs, as before IR version 4."""
    initializers = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])]
    if old:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers]
    made = {name: [batch, *shape[1:]] for name, shape in (outputs or {"y": ["batch", 3]}).items()}
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in made.items()],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3 if old else 6)


WEIGHTS = {"w": np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3), "b": np.array([0.1, -0.2, 0.3], np.float32)}
# Since opset 13, Squeeze and Unsqueeze have no attribute, and Softmax does not flatten its input.
OLD = [
    helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
    helper.make_node("Unsqueeze", ["h"], ["u"], axes=[1]),
    helper.make_node("Dropout", ["u"], ["d"]),
    helper.make_node("Squeeze", ["d"], ["s"], axes=[1]),
    helper.make_node("Softmax", ["s"], ["y"], axis=1),
]


def run(project: Path, model: onnx.ModelProto, *stages: str, **changes: Any) -> dict[str, Any]:
    (project / "given.onnx").write_bytes(model.SerializeToString())
    few = {"dims": {"batch": {"max": 4, "typical": [1]}}, "verify": {"draws": 1, "samples": 8}}
    write_project(
        project, SAMPLES, toy_params(**{"build": None, "onnx": "given.onnx", "quality": None, **few, **changes})
    )
    return through(*stages or STAGES)


def reasons(reports: dict[str, Any]) -> str:
    return "; ".join(f"{stage}: {report.reason}" for stage, report in reports.items() if report.reason)


@pytest.mark.parametrize("opset", [7, 12])
def test_an_older_file_is_converted_and_verified_against_the_original(project: Path, opset: int) -> None:
    reports = run(project, model_of(OLD, WEIGHTS, opset=opset))
    assert reasons(reports) == ""
    export: ExportReport = reports["export"]
    assert export.graph is not None
    assert export.graph.opsets["ai.onnx"] == 20
    assert export.how == "the file given.onnx, converted to opset 20 by onnx.version_converter"
    original = onnx.load(project / "build" / "toy" / "train" / "model.onnx")
    assert taken_graph.opset(original) == opset


def test_a_newer_file_is_converted_to_the_declared_opset(project: Path) -> None:
    nodes = [OLD[0], helper.make_node("Softmax", ["h"], ["y"], axis=1)]
    reports = run(project, model_of(nodes, WEIGHTS, opset=21), "train", "data", "export", export={"opset": 18})
    assert reasons(reports) == ""
    assert reports["export"].graph.opsets["ai.onnx"] == 18


def test_a_file_that_no_converter_changes_keeps_its_opset(project: Path) -> None:
    nodes = [OLD[0], helper.make_node("RMSNormalization", ["h", "b"], ["y"])]  # new in opset 23
    export: ExportReport = run(project, model_of(nodes, WEIGHTS, opset=23), "train", "data", "export")["export"]
    assert export.status == "passed", export.reason
    assert [attempt.strategy for attempt in export.attempts] == [*taken_graph.CONVERTERS, "taken"]
    assert export.graph is not None
    assert export.graph.opsets["ai.onnx"] == 23
    assert any("the opset stays 23, not 20 (export.opset)" in finding for finding in export.findings)


def test_old_initializers_become_constants(project: Path) -> None:
    reports = run(project, model_of(OLD, WEIGHTS, opset=9, old=True), "train", "data", "export")
    assert reasons(reports) == ""
    assert "2 initializers of the file were graph inputs, too (an old format)" in reports["export"].findings[0]
    exported = onnx.load(project / "build" / "toy" / "export" / "model.onnx")
    assert [value.name for value in exported.graph.input] == ["x"]
    assert exported.ir_version >= 4


@pytest.mark.parametrize("batch", [-1, 0, None])
def test_an_open_batch_gets_the_declared_name(project: Path, batch: int | None) -> None:
    reports = run(project, model_of(OLD, WEIGHTS, batch=batch), "train", "data", "export")
    assert reasons(reports) == ""
    assert reports["export"].graph.inputs[0].shape == ["batch", 6]
    assert reports["export"].graph.outputs[0].shape == ["batch", 3]


def test_a_batch_of_one_becomes_a_dimension_that_is_verified_at_other_sizes(project: Path) -> None:
    reports = run(project, model_of(OLD, WEIGHTS, batch=1))
    assert reasons(reports) == ""
    verify: VerifyReport = reports["verify"]
    assert any(case.sizes["batch"] > 1 for case in verify.cases if not case.probe)
    assert reports["export"].graph.inputs[0].shape == ["batch", 6]
    assert "the file fixes the batch at 1" in " ".join(reports["export"].findings)


def rated() -> onnx.ModelProto:
    """x times a rate, which is a scalar input."""
    model = model_of([helper.make_node("Mul", ["x", "rate"], ["y"])], outputs={"y": ["batch", 6]})
    model.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.FLOAT, []))
    return model


def test_an_input_that_never_changes_is_folded_into_the_file(project: Path) -> None:
    outputs = {"y": {"shape": ["batch", 6]}}
    reports = run(project, rated(), constants={"rate": 2.5}, outputs=outputs)
    assert reasons(reports) == ""
    session = onnxruntime.InferenceSession(str(project / "build/toy/export/model.onnx"))
    assert [value.name for value in session.get_inputs()] == ["x"]
    (answer,) = session.run(None, {"x": np.ones((1, 6), np.float32)})
    np.testing.assert_array_equal(answer, np.full((1, 6), 2.5, np.float32))


def test_a_constant_that_does_not_fit_is_named(project: Path) -> None:
    outputs = {"y": {"shape": ["batch", 6]}}
    for value, words in (({"rat": 1}, "constants.rat: there is no such input"), ({"rate": [1, 2]}, "does not fit")):
        assert words in reasons(run(project, rated(), "train", constants=value, outputs=outputs))
    with pytest.raises(UsageError, match=r"constants\.x: it is also under inputs"):
        run(project, rated(), "train", constants={"x": 1}, outputs=outputs)


def mixing() -> onnx.ModelProto:
    """A file that accepts other batches once the dimension has a name, but computes over the whole batch."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["s"]),
        helper.make_node("Add", ["s", "x"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "b"], ["y"]),
    ]
    return model_of(nodes, WEIGHTS, batch=1, opset=13)


def test_a_batch_of_one_stays_if_the_samples_of_a_batch_influence_each_other(project: Path) -> None:
    words = reasons(run(project, mixing(), "train", "data", "export"))
    assert "cases failed" in words
    assert "inputs: {x: {shape: [1, 6]}}; outputs: {y: {shape: [1, 3]}}" in words
    assert "forward()" not in words


def test_a_fixed_size_in_the_graph_keeps_the_batch_and_the_message_has_the_line_to_write(project: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        helper.make_node("Unsqueeze", ["r"], ["u"], axes=[0]),
        helper.make_node("Gemm", ["u", "w", "b"], ["y"]),
    ]
    model = model_of(nodes, {**WEIGHTS, "flat": np.array([6])}, batch=1)
    words = reasons(run(project, model, "train", "data", "export"))
    assert "inputs: {x: {shape: [1, 6]}}; outputs: {y: {shape: [1, 3]}}" in words
    assert "forward()" not in words


def test_a_sequence_of_maps_is_replaced_by_its_tensor(project: Path) -> None:
    model = model_of([*OLD, ZIPMAP], WEIGHTS)
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    maps = helper.make_value_info("p", helper.make_sequence_type_proto(map_type))
    model.graph.output.append(maps)
    reports = run(project, model, outputs={"p": {"shape": ["batch", 3]}})
    assert reasons(reports) == ""
    findings = " ".join(reports["export"].findings)
    assert "p was a sequence of maps (ZipMap)" in findings
    assert "outputs y are not declared in params.yaml, and were removed" in findings
    assert reports["export"].graph.outputs[0].shape == ["batch", 3]


ZIPMAP = helper.make_node("ZipMap", ["y"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[1, 2, 5])


def labelled() -> onnx.ModelProto:
    """A classifier whose second output is the class as a string."""
    nodes = [*OLD, helper.make_node("ArgMax", ["y"], ["i"], axis=1, keepdims=0)]
    nodes += [
        helper.make_node(
            "LabelEncoder", ["i"], ["name"], domain="ai.onnx.ml", keys_int64s=[0, 1], values_strings=["a", "b"]
        )
    ]
    model = model_of(nodes, WEIGHTS)
    model.opset_import[1].version = 2
    model.graph.output.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["batch"]))
    return model


def test_an_output_of_strings_is_refused_with_the_line_to_change_which_works(project: Path) -> None:
    declared = {"y": {"shape": ["batch", 3]}, "name": {"shape": ["batch"]}}
    words = reasons(run(project, labelled(), "train", "data", "export", outputs=declared))
    assert "the output name is a tensor of strings, which Onward does not run: remove name from outputs:" in words
    del declared["name"]
    assert reasons(run(project, labelled(), outputs=declared)) == ""


def test_an_input_of_strings_is_refused_with_the_reason(project: Path) -> None:
    nodes = [
        helper.make_node("LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0])
    ]
    model = model_of(nodes, outputs={"y": ["batch", 6]})
    model.opset_import[1].version = 2
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    words = reasons(run(project, model, "train", "data", "export", outputs={"y": {"shape": ["batch", 6]}}))
    assert "the input x is a tensor of strings" in words


def test_a_converted_file_that_answers_differently_is_not_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real converter runs; afterwards, a weight of its result is changed.
    real: Callable[..., onnx.ModelProto] = taken_graph.converted

    def wrong(model: onnx.ModelProto, version: int, converter: str) -> onnx.ModelProto:
        found = real(model, version, converter)
        for tensor in found.graph.initializer:
            if tensor.name == "b":
                tensor.CopyFrom(numpy_helper.from_array(WEIGHTS["b"] + 1, "b"))
        return found

    monkeypatch.setattr(taken_graph, "converted", wrong)
    nodes = [OLD[0], helper.make_node("Sigmoid", ["h"], ["y"])]
    export: ExportReport = run(project, model_of(nodes, WEIGHTS), "train", "data", "export")["export"]
    assert export.status == "passed"
    assert "outputs differ from the original file's" in export.attempts[0].reason
    assert export.attempts[-1].strategy == "taken"


def misannotated() -> onnx.ModelProto:
    """A valid file that states a batch of 1 for an inner value: ONNX Runtime folds its shape, and fails with others."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Shape", ["h"], ["s"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["y"]),
    ]
    model = model_of(nodes, {"w": WEIGHTS["w"]}, opset=20)
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 3]))
    return model


def test_a_file_that_the_optimiser_breaks_is_released_at_the_level_that_works(project: Path) -> None:
    reports = run(project, misannotated())
    assert reasons(reports) == ""
    verify: VerifyReport = reports["verify"]
    assert verify.graph_level == "disabled"
    assert any("graph optimisations break this graph" in finding for finding in verify.findings)
    assert not any(case.failed for case in verify.cases)
    optimized = one("optimize", "toy", STAGES_BY_NAME["optimize"])  # its workers have that limit, too
    assert optimized.status == "passed"
    assert circumstances.required().graph_level == "disabled"
    assert (
        Worker.onnx(Path("m.onnx"), "m", options=SessionOptions(graph_level="extended")).load["graph_level"]
        == "disabled"
    )
    one("train", "toy", STAGES_BY_NAME["train"])
    assert circumstances.required() == SessionOptions()


def test_a_limit_lowers_a_level_and_never_raises_it() -> None:
    assert SessionOptions().limited_to(None) == SessionOptions()
    assert SessionOptions().limited_to("all") == SessionOptions()
    assert SessionOptions().limited_to("basic").graph_level == "basic"
    assert SessionOptions(graph_level="disabled").limited_to("basic").graph_level == "disabled"


def test_a_file_that_fails_at_every_level_fails(project: Path) -> None:
    model = misannotated()
    model.graph.node[3].input[1] = "fixed"
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "fixed"))
    words = reasons(run(project, model))
    assert "verify" in words


def custom() -> onnx.ModelProto:
    nodes = [OLD[0], helper.make_node("NegPos", ["h"], ["n", "y"], "negpos", domain="ai.onnx.contrib")]
    model = model_of(nodes, WEIGHTS, opset=20)
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return model


def test_a_custom_operator_without_a_library_is_named_with_the_line_to_write(project: Path) -> None:
    words = reasons(run(project, custom(), "train", "data", "export"))
    assert "the operator NegPos of the domain 'ai.onnx.contrib' (node 'negpos') is not one of ONNX Runtime's" in words
    assert "custom_ops: path/to/lib.so" in words
    assert words.count("NegPos") == 1


def test_a_library_that_cannot_be_loaded_is_named(project: Path) -> None:
    (project / "lib.so").write_text("no library")
    words = reasons(run(project, custom(), "train", "data", "export", custom_ops="lib.so"))
    assert "the library of custom operators (custom_ops in params.yaml) cannot be loaded" in words
    with pytest.raises(UsageError, match=r"custom_ops: other.so: there is no such file"):
        run(project, custom(), "train", custom_ops="other.so")


def test_a_custom_operator_runs_with_the_library_of_an_installed_package(project: Path) -> None:
    reports = run(project, custom(), custom_ops="onnxruntime_extensions:get_library_path")
    assert reasons(reports) == ""
    export: ExportReport = reports["export"]
    assert [(project / "build/toy/export" / file.path).is_file() for file in export.custom_ops] == [True]


def test_a_version_with_native_code_is_loaded_only_if_the_host_or_the_caller_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "custom_ops").mkdir()
    (tmp_path / "custom_ops" / "lib.so").write_text("no library")
    linear(tmp_path / "model.onnx")
    library = "custom_ops/lib.so"
    Serving({"cpu": Served(file="model.onnx", provider="CPUExecutionProvider", custom_ops=[library])}).save(tmp_path)
    with pytest.raises(Refused, match=r"needs the native library custom_ops/lib.so.*allow_custom_ops=True"):
        InferenceSession(tmp_path)
    with pytest.raises(UsageError, match=r"custom_ops/lib.so: this library of custom operators cannot be loaded here"):
        InferenceSession(tmp_path, allow_custom_ops=True)
    monkeypatch.setenv("ONWARD_ALLOW_CUSTOM_OPS", "1")
    with pytest.raises(UsageError, match="cannot be loaded here"):
        InferenceSession(tmp_path)
    monkeypatch.setenv("ONWARD_ALLOW_CUSTOM_OPS", "maybe")
    with pytest.raises(UsageError, match="set it to 1 or 0"):
        InferenceSession(tmp_path)
    with pytest.raises(ValidationError):
        Served(file="model.onnx", provider="CPUExecutionProvider", custom_ops=["../lib.so"])


def test_libraries_become_part_of_a_versions_folder_and_its_manifest(tmp_path: Path) -> None:
    linear(tmp_path / "given.onnx")
    (tmp_path / "lib.so").write_text("native code")
    folder = tmp_path / "version"
    spec = [TensorSpec(name="x", dtype="float32", shape=["batch", 4])]
    libraries = [tmp_path / "lib.so"]
    served = Served(file="model.onnx", provider="CPUExecutionProvider", custom_ops=["custom_ops/lib.so"])
    build_folder(
        folder, [tmp_path / "given.onnx"], spec, spec, served.provider, None, Serving({"cpu": served}), {}, libraries
    )
    check_folder(folder)
    (folder / "custom_ops" / "lib.so").write_text("other code")
    with pytest.raises(Refused, match=r"custom_ops/lib.so has changed"):
        check_folder(folder)
