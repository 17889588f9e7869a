"""Techniques: their names, where they apply, and how few float layers meet the quality budget."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onward.registry.artifact.onnx_file import save
from onward.registry.evidence.records import Status, Variant
from onward.registry.evidence.reports import QuantizeReport
from onward.stages.config import techniques
from onward.stages.config.schema import Optimize, Quantize, candidates
from onward.stages.config.techniques import TechniqueSpec
from onward.stages.quantize import to_spare
from onward.stages.transforms import graph_profile
from onward.stages.transforms.builder import Job
from onward.stages.transforms.graph_hash import structure
from onward.stages.transforms.optimizers import onnxsim, ort_fusions
from onward.stages.transforms.quantizers import bfloat16, dynamic, static, weight_only
from onward.stages.transforms.sensitivity import fewest, layer_costs
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import Worker
from tests.toy import through, toy_params, write_project

Floats = npt.NDArray[np.float32]


def graph(
    nodes: list[onnx.NodeProto], weights: dict[str, Floats], shape: list[Any], domain: str = ""
) -> onnx.ModelProto:
    """A graph from x [shape] to y with these nodes and weights."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(
        helper.make_graph(nodes, "g", [value], [result], tensors), opset_imports=opsets, ir_version=9
    )


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_products() -> onnx.ModelProto:
    """Two products; an outlier in the input of the second leaves the rest of its row only a few int8 steps."""
    spread = normal(64, 64, seed=2)
    spread[:, 0] *= 3000
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    narrow = normal(64, 64, seed=3)
    narrow[0] /= 3000
    return graph(nodes, {"a": spread, "b": narrow}, ["batch", 64])


def answers(path: Path, x: Floats) -> Floats:
    with Worker.onnx(path, path.name) as worker:
        return worker.run({"x": x})["y"]


@pytest.mark.parametrize("stage", ["optimize", "quantize"])
def test_each_technique_declares_its_options_without_imports(stage: str) -> None:
    for name in techniques.names(stage):
        module = techniques.module(stage, candidates(name)[0])
        assert techniques.allowed(stage, name) == getattr(module, "OPTIONS", {})
        assert techniques.accuracy_only(stage, name) == getattr(module, "ACCURACY_ONLY", ())
        assert set(techniques.accuracy_only(stage, name)) <= set(techniques.allowed(stage, name))


def test_the_default_candidates_exist_and_have_unique_names() -> None:
    for stage, section in (("optimize", Optimize()), ("quantize", Quantize())):
        assert list(techniques.problems(stage, section.candidates)) == []
        labels = [techniques.label(stage, candidate) for candidate in section.candidates]
        assert len(set(labels)) == len(labels)


def test_a_variant_is_named_after_its_technique_and_its_non_default_options() -> None:
    named = candidates(
        "dynamic", {"dynamic": {"scales": "per_tensor", "reduce_range": True}}, {"weight_only": {"bits": 8}}
    )
    labels = [techniques.label("quantize", candidate) for candidate in named]
    assert labels == ["dynamic", "dynamic-per_tensor-reduce_range", "weight_only-bits8"]


@given(layers=st.integers(1, 200), needed=st.integers(1, 250))
def test_the_smallest_set_of_layers_is_found_in_few_tries(layers: int, needed: int) -> None:
    tried = []

    def holds(kept: int) -> bool:
        tried.append(kept)
        return kept >= needed

    assert fewest(layers, holds) == (needed if needed <= layers // 2 else None)
    assert all(0 < kept <= layers // 2 for kept in tried)
    assert len(tried) <= 2 * layers.bit_length() + 1
    assert len(set(tried)) == len(tried)


def test_the_layer_most_sensitive_to_quantization_comes_first(tmp_path: Path) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    save(two_products(), source)
    options: dict[str, bool | int | float | str] = {"scales": "per_channel", "reduce_range": True}
    isolated_call.call(60, dynamic.quantize, source, target, [], [], options)
    costs = layer_costs(source, target, dynamic.OPERATORS, [{"x": normal(32, 64, seed=5)}])
    assert [cost.value for cost in costs] == ["y", "h"]
    assert costs[0].snr_db < 15 < 25 < costs[1].snr_db
    isolated_call.call(60, dynamic.quantize, source, target, [], ["y"], options)
    kinds = {node.op_type for node in onnx.load(target).graph.node}
    assert {"MatMul", "MatMulInteger"} <= kinds


@pytest.mark.parametrize(("rows", "type_of_table"), [(8, TensorProto.FLOAT), (1000, TensorProto.UINT8)])
def test_a_small_embedding_table_stays_float(tmp_path: Path, rows: int, type_of_table: int) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look_up"),
        helper.make_node("MatMul", ["rows", "weight"], ["y"], name="product"),
    ]
    save(graph(nodes, {"table": normal(rows, 64), "weight": normal(64, 256)}, ["batch"]), source)
    options: dict[str, bool | int | float | str] = {"scales": "per_channel", "reduce_range": True}
    isolated_call.call(60, dynamic.quantize, source, target, [], [], options)
    tables = [weight for weight in onnx.load(target).graph.initializer if weight.dims[:1] == [rows]]
    assert [weight.data_type for weight in tables] == [type_of_table]


SAMPLED = """
import numpy as np
import torch

def net():
    torch.manual_seed(0)
    return Net()

def samples(split):
    rng = np.random.default_rng({"evaluation": 1, "calibration": 2}[split])
    return {"x": rng.standard_normal((96, 64)).astype(np.float32)}
"""

OUTLIERS = (
    SAMPLED
    + """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(4))
        self.wide, self.narrow = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        with torch.no_grad():
            self.wide.weight[0] *= 3000
            self.narrow.weight[:, 0] /= 3000
    def forward(self, x):
        for layer in self.inner:
            x = x + torch.tanh(layer(x))
        return self.narrow(self.wide(x))
"""
)


def test_one_float_layer_brings_int8_within_the_budget(project: Path) -> None:
    params = toy_params(
        quality=None,
        inputs={"x": {"shape": ["batch", 64]}},
        outputs={"y": {"shape": ["batch", 64]}},
        dims={"batch": {"max": 16, "typical": [1, 16]}},
        tolerance={"atol": 1e-2},
        budget={"min_snr_db": 20},
        quantize={
            "candidates": [
                {"dynamic": {"reduce_range": True}},
                {"dynamic": {"reduce_range": True, "scales": "per_tensor"}},
            ]
        },
    )
    write_project(project, source=OUTLIERS, params=params)
    report = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    assert isinstance(report, QuantizeReport)
    broken, held = (
        next(v for v in report.variants if v.name == f"int8-dynamic-reduce_range{n}") for n in ("", "-keep1")
    )
    assert broken.status == "failed"
    assert "budget.min_snr_db" in broken.reason
    assert held.name in broken.reason
    coarser = next(v for v in report.variants if "per_tensor" in v.name)
    assert coarser.status == "not attempted"
    assert coarser.reason == f"{broken.name} breaks the quality budget, and this variant would lose more"
    assert held.status == "passed"
    assert held.snr_db is not None
    assert held.snr_db >= 20
    (tradeoff,) = report.tradeoffs
    assert tradeoff.chosen == held.name
    assert held.float_layers == [tradeoff.layers[0].value]
    assert tradeoff.layers[0].module == "narrow"
    assert [(point.float_layers, point.holds) for point in tradeoff.points] == [(0, False), (1, True), (3, True)]


def test_layers_missing_from_every_quantized_form_are_not_ranked_and_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = static.quantize

    def one_form_alone(source: Path, target: Path, feeds: Any, keep: Any, options: dict[str, Any]) -> None:
        if options["form"] == "qdq":
            raise ValueError("no such form for this graph")
        made(source, target, feeds, keep, options)

    monkeypatch.setattr(static, "quantize", one_form_alone)
    monkeypatch.setattr(static, "skip_reason", lambda *_: "")
    params = toy_params(
        quality=None,
        budget={"min_snr_db": 90},
        optimize={"candidates": []},
        quantize={"candidates": ["static", {"static": {"form": "qoperator"}}]},
    )
    write_project(project, params=params)
    report = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    assert report.status == "passed", report.reason
    variant = next(v for v in report.variants if "qoperator" in v.name)
    words = "its layers could not be ranked: the format that shows layers could not be made: ValueError: no such form"
    assert (variant.status, words in variant.reason) == ("failed", True), variant.reason


@pytest.mark.parametrize(
    ("holding", "spared"),
    [
        (set(), ["plain-per_channel", "fused-per_tensor"]),
        ({"fused-per_channel"}, []),
        ({"plain-per_tensor"}, []),
    ],
)
def test_layers_stay_float_on_each_base_if_no_form_meets_the_budget(holding: set[str], spared: list[str]) -> None:
    nearness = {"plain-per_channel": 15, "plain-per_tensor": 12, "fused-per_channel": 13, "fused-per_tensor": 14}
    tried = []
    for name, snr_db in nearness.items():
        base, scales = name.split("-")
        candidate = TechniqueSpec.model_validate({"dynamic": {"scales": scales}})
        status: Status = "passed" if name in holding else "failed"
        variant = Variant(name=name, base=base, technique="dynamic", status=status, snr_db=snr_db)
        tried.append((Job(name, base, "", "int8", "quantize", candidate, Path("a"), Path("b")), variant))
    crashed = Variant(name="fused-crashed", base="fused", technique="dynamic", status="failed")
    tried.append((tried[-1][0], crashed))
    assert [variant.name for _, variant in to_spare(tried)] == spared


def test_a_technique_that_cannot_help_is_not_attempted_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    save(graph([helper.make_node("MatMul", ["x", "a"], ["y"])], {"a": normal(8, 8)}, ["batch", 8]), path)
    small = graph_profile.describe(path, {"x": [4, 8]})
    assert (small.kind, small.products, small.multiplications) == ("matrix products", 4 * 64, 4 * 64)
    assert "too small" in dynamic.skip_reason(small, {}, ["cpu"])
    unknown = graph_profile.describe(path, {})  # its multiplications may be any number
    assert (unknown.multiplications, unknown.uncounted) == (64, 1)
    assert "too small" not in dynamic.skip_reason(unknown, {}, ["cpu"])
    assert "fit in a CPU's cache" in weight_only.skip_reason(small, {}, ["cpu"])
    assert "no Softmax" in ort_fusions.skip_reason(small, {"attention": "whole", "norms": "apart"}, ["cpu"])
    assert onnxsim.skip_reason(small, {}, ["cpu"]) == ""  # its origin is unknown
    exported = graph([helper.make_node("MatMul", ["x", "a"], ["y"])], {"a": normal(8, 8)}, ["batch", 8])
    exported.producer_name = "pytorch"
    save(exported, path)
    assert "no node depends on weights alone" in onnxsim.skip_reason(
        graph_profile.describe(path, {"x": [4, 8]}), {}, ["cpu"]
    )
    exported.graph.node.insert(0, helper.make_node("Transpose", ["a"], ["t"]))
    save(exported, path)
    assert onnxsim.skip_reason(graph_profile.describe(path, {"x": [4, 8]}), {}, ["cpu"]) == ""
    images = graph([helper.make_node("Conv", ["x", "k"], ["y"])], {"k": normal(16, 3, 3, 3)}, ["batch", 3, 34, 34])
    save(images, path)
    found = graph_profile.describe(path, {"x": [2, 3, 34, 34]})
    assert (found.kind, found.multiplications) == ("convolutional", 16 * 3 * 9 * 32 * 32 * 2)
    assert "only 0% of the weights are in matrix products" in dynamic.skip_reason(found, {}, ["cpu"])


def test_graph_identity_ignores_value_names_but_not_weights() -> None:
    def made(prefix: str, seed: int) -> str:
        nodes = [
            helper.make_node("MatMul", ["x", f"{prefix}a"], [f"{prefix}h"], name=f"{prefix}1"),
            helper.make_node("Relu", [f"{prefix}h"], ["y"], name=f"{prefix}2"),
        ]
        return structure(graph(nodes, {f"{prefix}a": normal(4, 4, seed=seed)}, ["n", 4]))

    assert made("one", 1) == made("two", 1)
    assert made("one", 1) != made("one", 2)


def test_decomposed_norms_compute_the_same_as_the_fused_norm(tmp_path: Path) -> None:
    node = helper.make_node(
        "SkipLayerNormalization", ["x", "s", "g", "b", "c"], ["y", "", "", "t"], domain="com.microsoft", epsilon=1e-5
    )
    weights = {"s": normal(1, 3, 8, seed=1), **{n: normal(8, seed=i) for i, n in enumerate("gbc")}}
    model = graph([node], weights, [1, 3, 8], domain="com.microsoft")
    save(model, tmp_path / "fused.onnx")
    ort_fusions._take_norms_apart(model.graph)
    assert [part.op_type for part in model.graph.node] == ["Add", "Sum", "LayerNormalization"]
    save(model, tmp_path / "apart.onnx")
    x = normal(1, 3, 8, seed=9)
    np.testing.assert_allclose(answers(tmp_path / "apart.onnx", x), answers(tmp_path / "fused.onnx", x), atol=1e-5)


def test_calls_share_one_process_until_one_crashes_it() -> None:
    def process_id(dies: bool) -> int:
        if dies:
            faulthandler.disable()  # the crash is intended
            os.abort()
        return os.getpid()

    with isolated_call.Isolated(process_id, 10, "a test") as process:
        first = process.call(False)
        assert first == process.call(False) != os.getpid()
        died = process.call(True)
        assert isinstance(died, isolated_call.Failed)
        assert "SIGABRT" in str(died.error)
        assert isinstance(process.call(False), int)
        assert process.call(False) != first


def test_bfloat16_products_lose_only_mantissa_precision(tmp_path: Path) -> None:
    save(two_products(), tmp_path / "plain.onnx")
    bfloat16.quantize(tmp_path / "plain.onnx", tmp_path / "half.onnx", [], ["y"], {})
    x = normal(4, 64, seed=5)
    half = onnx.load(tmp_path / "half.onnx")
    assert [node.op_type for node in half.graph.node] == ["Cast", "MatMul", "Cast", "MatMul"]
    assert {tensor.name for tensor in half.graph.initializer} == {"a.bfloat16", "b"}
    expected, outputs = answers(tmp_path / "plain.onnx", x), ReferenceEvaluator(half).run(None, {"x": x})
    assert isinstance(outputs, list)
    got = outputs[0]
    off = np.abs(got - expected).max() / np.abs(expected).max()
    assert 1e-5 < off < 2**-7


PRODUCT = (
    SAMPLED
    + """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 64))
    def forward(self, x):
        return x @ self.weight
"""
)


def test_a_variant_that_the_cpu_cannot_run_is_created_and_judged_by_the_benchmark(project: Path) -> None:
    shape = {"shape": ["batch", 64]}
    changes = {"quality": None, "inputs": {"x": shape}, "outputs": {"y": shape}, "tolerance": {"atol": 1e-4}}
    params = toy_params(**changes, quantize={"candidates": ["bfloat16"]}) | {"runtimes": ["cpu", "cuda"]}
    write_project(project, PRODUCT, params)
    report = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    assert isinstance(report, QuantizeReport)
    (made,) = report.variants
    assert (made.name, made.status, made.precision) == ("bfloat16", "passed", "bfloat16")
    assert "benchmark judges its outputs" in made.reason
    assert (made.agreement, made.cosine) == (None, None)
