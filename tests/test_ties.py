"""Answers that depend on the order of equal values are not judged, in real samples and for integers too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from onward.stages.config.schema import Tolerance
from onward.stages.parity.cases import Case
from onward.stages.parity.check import answers, check
from onward.stages.parity.reference import OnnxOriginal
from onward.stages.workers import ties
from onward.stages.workers.jitter import graphs, jittered_file
from onward.stages.workers.torch_reference import Original
from onward.stages.workers.worker import AS_IT_IS, Worker
from tests.toy import through, toy_params, write_project

ROWS = np.array([[1, 3, 3, 2, 3], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]])


class Choices(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (
            x.topk(2).indices, x.argmax(1), x.max(1).indices, x.sort(1).indices, x.argsort(1, descending=True),
            torch.argsort(x, dim=1, stable=True), torch.argmax(x), x.argmin(1, keepdim=True), x.max(0).indices,
            x.argmin(keepdim=True),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("script", [False, True])
def test_pytorch_chooses_correctly_in_every_order_and_differently_among_equals(
    dtype: torch.dtype, script: bool
) -> None:
    module = torch.jit.script(Choices()) if script else Choices()
    x = torch.tensor(ROWS).to(dtype)
    with torch.inference_mode():
        plain = module(x)
        found = []
        for seed in range(4):
            with ties.mode(seed, []):
                found.append(module(x))
    for position, wanted in enumerate(plain):
        others = [one[position] for one in found]
        assert all(other.shape == wanted.shape and other.dtype == wanted.dtype for other in others)
        assert any(not torch.equal(other, wanted) for other in others) == (position != 6), position  # 5 is unique
    for one in (plain, *found):
        assert torch.equal(x.gather(1, one[0]), x.topk(2).values)
        assert torch.equal(x.gather(1, one[3]), x.sort(1).values)
        assert x.flatten()[one[6]] == x.max()
        assert one[0][2].tolist() == [0, 1]  # no equal values, so no other order


def chooser(path: Path, kind: int = TensorProto.FLOAT, opset: int = 17, largest_last: bool = False) -> Path:
    """A graph from x [n, 5] to the indices of the two largest and the largest value of each row."""
    nodes = [
        helper.make_node("TopK", ["x", "two"], ["values", "top"], axis=-1),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0, select_last_index=int(largest_last)),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 5])],
        [
            helper.make_tensor_value_info("top", TensorProto.INT64, ["n", 2]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["n"]),
        ],
        [onnx.numpy_helper.from_array(np.array([2]), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_a_graph_chooses_differently_among_equals_only(tmp_path: Path, kind: int) -> None:
    plain = chooser(tmp_path / "m.onnx", kind)
    x = ROWS.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    wanted = onnxruntime.InferenceSession(str(plain)).run(None, {"x": x})
    changed = [False, False]
    for seed in range(4):
        assert jittered_file(plain, tmp_path / "j.onnx", seed)
        onnx.checker.check_model(str(tmp_path / "j.onnx"), full_check=True)
        for position, got in enumerate(onnxruntime.InferenceSession(str(tmp_path / "j.onnx")).run(None, {"x": x})):
            changed[position] |= not np.array_equal(got, wanted[position])
            assert np.array_equal(got[2], wanted[position][2])
            rows = np.take_along_axis(x, got.reshape(3, -1), 1)
            assert np.array_equal(rows, np.take_along_axis(x, wanted[position].reshape(3, -1), 1))
    assert changed == [True, True]


def test_non_max_suppression_keeps_its_indices(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["kept"])],
        "g",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "n", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, "n"]),
        ],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, ["k", 3])],
        [
            onnx.numpy_helper.from_array(np.array([9]), "most"),
            onnx.numpy_helper.from_array(np.array([0.5], np.float32), "overlap"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9], [5, 5, 6, 6]]], np.float32)
    results = []
    for scores in ([0.9, 0.8, 0.7], [0.9, 0.9, 0.7]):
        fed = {"boxes": boxes, "scores": np.array([[scores]], np.float32)}
        for seed in range(4):
            other = onnx.ModelProto()
            other.CopyFrom(model)
            ties.reorder(other, list(graphs(other.graph)), seed)
            session = onnxruntime.InferenceSession(other.SerializeToString())
            results.append(session.run(None, fed)[0][:, 2].tolist())
    assert results[:4] == [[0, 2]] * 4
    assert [1, 2] in results[4:]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_only_the_choice_among_equals_is_excused(tmp_path: Path, kind: int) -> None:
    x = ROWS.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    case = Case("samples0@3", 0, {"n": 3}, {"x": x}, made_up=False)
    original = OnnxOriginal.onnx(chooser(tmp_path / "m.onnx", kind), "the original", options=AS_IT_IS)
    assert isinstance(original, OnnxOriginal)
    original.file = tmp_path / "m.onnx"
    with original:
        expected = answers(original, [case])
    assert not expected[0].probe
    with Worker.onnx(chooser(tmp_path / "last.onnx", kind, largest_last=True), "the last of equals") as candidate:
        assert candidate.run(case.inputs)["best"].tolist() == [4, 4, 0]
        assert check(candidate, expected, Tolerance())[0].verdict == "ok"
        wrong = [Case(case.name, 0, case.sizes, {"x": x[:, ::-1].copy()}, made_up=False)]
        swapped = [type(expected[0])(wrong[0], expected[0].outputs, {}, expected[0].spread)]
        assert check(candidate, swapped, Tolerance())[0].verdict == "out of tolerance"  # row 2 has no equals


SOURCE = """
import numpy as np
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return x.topk(3).indices

def net():
    return Net()

def samples(split):
    rng = np.random.default_rng({"evaluation": 1, "calibration": 2}[split])
    return {"x": rng.integers(0, 4, (96, 40))}
"""


def test_a_model_of_integers_with_equal_values_passes(project: Path) -> None:
    inputs = {"x": {"dtype": "int64", "shape": ["batch", 40], "range": [0, 3]}}
    outputs = {"y": {"shape": ["batch", 3], "kind": "indices"}}
    dims = {"batch": {"max": 40, "typical": [1, 4]}}  # the largest batch is run once, unlike the others
    params = toy_params(inputs=inputs, outputs=outputs, quality=None, dims=dims)
    write_project(project, source=SOURCE, params=params)
    reports = through("train", "data", "export", "verify")
    assert {stage: report.reason for stage, report in reports.items()} == dict.fromkeys(reports, "")


class Branch(torch.nn.Module):
    """A higher-order operator, which dispatch modes treat differently."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x * 2.5, lambda x: x / 3, (x,))
        return found


def branch() -> torch.nn.Module:
    return Branch()


def test_a_module_with_a_branch_runs_when_it_is_shaken(tmp_path: Path) -> None:
    save_file({}, tmp_path / "w.safetensors")
    original = Original("tests.test_ties:branch", tmp_path / "w.safetensors", ["x"], ["y"])
    x = {"x": np.array([[1.1, 2.3]], np.float32)}
    plain = original.run(x)
    original.shake(0)
    assert np.allclose(original.run(x)["y"], plain["y"])
    assert original.met == []
