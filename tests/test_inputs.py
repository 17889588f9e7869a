"""The dimensions of an input: a name means one size in all inputs, a placeholder means any size."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.evidence.records import dimension
from onward.registry.inference.inputs import Input, documented
from onward.registry.inference.session import InferenceSession

PLACEHOLDERS = [None, "", "?", "-1", "*", "None", "none", "unk", "unk__12", "Unknown", "dynamic", " ? ", "0", -1]
NAMES = ["N", "batch", "batch_size", "unk__width", "DynamicDimension.0", "s0", "2*s0", "none_left", "anything"]

open_dimension = st.sampled_from(PLACEHOLDERS)
size = st.integers(1, 5)


def made_input(name: str, shape: list[int | str | None]) -> Input:
    return Input(SimpleNamespace(name=name, type="tensor(float)", shape=shape))


def fits(inputs: list[Input], shapes: list[list[int]]) -> bool:
    sizes: dict[str, tuple[str, int]] = {}
    try:
        for spec, shape in zip(inputs, shapes, strict=True):
            spec.check_shape(tuple(shape), spec.shape, sizes)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_a_placeholder_is_not_a_dimension_name(placeholder: int | str | None) -> None:
    assert dimension(placeholder) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_dimension_name_is_kept(name: str) -> None:
    assert dimension(name) == name


@given(st.lists(st.lists(st.tuples(open_dimension, size), min_size=1, max_size=4), min_size=1, max_size=3))
def test_unnamed_dimensions_accept_any_size(inputs: list[list[tuple[int | str | None, int]]]) -> None:
    specs = [made_input(f"x{n}", [dim for dim, _ in dims]) for n, dims in enumerate(inputs)]
    assert fits(specs, [[size for _, size in dims] for dims in inputs])


@given(st.lists(st.lists(st.tuples(st.sampled_from([*PLACEHOLDERS, "a", "b", 2, 3]), size), min_size=1), min_size=1))
def test_inputs_fit_if_every_size_and_name_fits(inputs: list[list[tuple[int | str | None, int]]]) -> None:
    pairs = [(dim, size) for dims in inputs for dim, size in dims]
    sizes = all(size == dim for dim, size in pairs if dim in (2, 3))
    names = all(len({size for dim, size in pairs if dim == name}) <= 1 for name in ("a", "b"))
    specs = [made_input(f"x{n}", [dim for dim, _ in dims]) for n, dims in enumerate(inputs)]
    assert fits(specs, [[size for _, size in dims] for dims in inputs]) == (sizes and names)


def test_params_yaml_names_unnamed_dimensions_of_the_graph() -> None:
    assert documented(["N", 3, "N", None], ["batch", 3, "height", "width"]) == ["batch", 3, "height", "width"]
    assert documented(["N", 3, "N"], ["batch", "channels", 48]) == ["batch", 3, None]
    assert documented(["N", "?"], None) == ["N", None]
    assert documented(["N", 3], ["batch"]) == ["N", 3]


def model(path: Path, dims: list[int | str | None], declared: str = "") -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if declared:
        helper.set_model_props(made, dict.fromkeys(("onward.inputs", "onward.outputs"), declared))
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_a_session_accepts_different_sizes_for_two_unnamed_dimensions(
    tmp_path: Path, placeholder: int | str | None
) -> None:
    path = model(tmp_path / "m.onnx", [placeholder, 3, placeholder])
    session = InferenceSession(path)
    x = np.ones((48, 3, 192), np.float32)
    assert session.predict(x).shape == x.shape
    assert session.predict_batches(x, 20).shape == x.shape
    assert session.predict_batches(x[:0]).shape == (0, 3, 0)
    assert session.metadata.inputs[0].shape == ["?", 3, "?"]
    assert onnx_file.describe(path).outputs[0].shape == ["?", 3, "?"]


def test_params_yaml_overrides_a_graph_that_uses_one_name_for_two_dimensions(tmp_path: Path) -> None:
    said = json.dumps({name: {"shape": ["batch", 3, "width"]} for name in "xy"})
    session = InferenceSession(model(tmp_path / "m.onnx", ["N", 3, "N"], said))
    x = np.ones((4, 3, 9), np.float32)
    assert session.predict(x).shape == x.shape
    assert session.predict_batches(x[:0]).shape == (0, 3, 9)
    with pytest.raises(UsageError, match="dimension N is 4 in input x and 9 in input x"):
        InferenceSession(model(tmp_path / "plain.onnx", ["N", 3, "N"])).predict(x)


@pytest.mark.parametrize("declared", ["[1]", "nonsense", '{"x": 1}', '{"x": {"shape": "b"}}', '{"x": {"shape": [{}]}}'])
def test_metadata_of_another_tool_is_ignored(tmp_path: Path, declared: str) -> None:
    session = InferenceSession(model(tmp_path / "m.onnx", ["N", 3], declared))
    assert session.predict(np.ones((4, 3), np.float32)).shape == (4, 3)
