"""What a session accepts, rejects and returns."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onward.registry.errors import Refused, UsageError
from onward.registry.inference import session
from onward.registry.inference.session import InferenceSession, ProviderFallback
from onward.registry.operations import promotion
from tests.conftest import not_none
from tests.store_factory import add_candidate, fresh_store, scale_model

Value = tuple[str, int, list[str | int]]  # the name of an input or output, its type, its shape

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def save(
    path: Path,
    nodes: list[NodeProto],
    inputs: list[Value],
    outputs: list[Value],
    initializers: Iterable[TensorProto] = (),
) -> Path:
    def value(name: str, kind: int, shape: list[str | int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes, "graph", [value(*i) for i in inputs], [value(*o) for o in outputs], initializer=list(initializers)
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def scale(tmp_path: Path) -> InferenceSession:
    return InferenceSession(scale_model(tmp_path / "scale.onnx", 2))


@pytest.fixture
def two(tmp_path: Path) -> InferenceSession:
    """A model with total = a.sum(sequence) and picked = ids, for a float32[batch, sequence] and ids int64[batch]."""
    return InferenceSession(
        save(
            tmp_path / "two.onnx",
            [
                helper.make_node("ReduceSum", ["a", "axes"], ["total"], keepdims=0),
                helper.make_node("Identity", ["ids"], ["picked"]),
            ],
            [("a", TensorProto.FLOAT, ["batch", "sequence"]), ("ids", TensorProto.INT64, ["batch"])],
            [("total", TensorProto.FLOAT, ["batch"]), ("picked", TensorProto.INT64, ["batch"])],
            [numpy_helper.from_array(np.array([1], np.int64), "axes")],
        )
    )


@pytest.fixture
def fixed(tmp_path: Path) -> InferenceSession:
    return InferenceSession(
        save(
            tmp_path / "fixed.onnx",
            [helper.make_node("Neg", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [4, 2])],
            [("y", TensorProto.FLOAT, [4, 2])],
        )
    )


def test_one_input_can_be_given_by_position_by_name_or_as_a_dict(scale: InferenceSession) -> None:
    for answer in (scale.predict(X), scale.predict(x=X), scale.predict({"x": X}), scale.predict(X.tolist())):
        assert answer.dtype == np.float32
        assert np.array_equal(answer, 2 * X)


def test_torch_tensors_are_accepted(scale: InferenceSession) -> None:
    torch = pytest.importorskip("torch")
    assert np.array_equal(scale.predict(torch.from_numpy(X).requires_grad_()), 2 * X)
    with pytest.raises(UsageError, match="input x cannot be converted to an array"):
        scale.predict(torch.from_numpy(X).to(torch.bfloat16))


def test_many_inputs_give_a_dict_of_outputs(two: InferenceSession) -> None:
    ids = np.arange(3)
    for answer in (two.predict(X, ids), two.predict(X, ids=ids), two.predict(ids=ids, a=X)):
        assert list(answer) == ["total", "picked"]
        assert np.array_equal(answer["total"], X.sum(1))
        assert np.array_equal(answer["picked"], ids)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X,), {}, r"input ids is missing; the model takes a float32\[batch, sequence\], ids int64\[batch\]"),
        ((X, [1], [2]), {}, "3 inputs given, the model takes 2"),
        ((X,), {"a": X}, "input 'a' is given by position and by name"),
        ((X, [1, 2, 3]), {"mask": X}, "the model has no input mask"),
        ((X, [1, 2]), {}, "dimension batch is 3 in input a and 2 in input ids"),
        ((X[0], [1, 2, 3]), {}, r"input a has rank 1, shape \[4\]"),
        ((X, np.array([1.0, 2, 3])), {}, r"input ids is float64.*astype\('int64'\)"),
        ((X, [1.5, 2, 3]), {}, "input ids is float64"),
        ((X.astype(np.int64), [1, 2, 3]), {}, "input a is int64"),
        ((X.astype(complex), [1, 2, 3]), {}, "input a is complex128"),
        (([[1, 2], [3]], [1, 2]), {}, "input a cannot be converted to an array"),
        ((X, ["one", "two", "three"]), {}, "input ids is <U5"),
        ((X, [1, 2, 2**63]), {}, "input ids is float64"),
        ((None, [1, 2, 3]), {}, "input a is object"),
        ((X[:0], np.arange(0)), {}, "input a is empty"),
    ],
)
def test_invalid_inputs_are_rejected_with_a_message(
    two: InferenceSession, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        two.predict(*args, **kwargs)


def test_a_valid_shape_does_not_admit_other_shapes_later(two: InferenceSession) -> None:
    for _ in range(2):
        two.predict(X, np.arange(3))
        for wrong in (np.arange(2), np.arange(0)):
            with pytest.raises(UsageError, match=r"dimension batch is 3|input ids is empty"):
                two.predict(X, wrong)


def test_fixed_dimensions_are_checked(scale: InferenceSession) -> None:
    with pytest.raises(UsageError, match=r"shape \[3, 3\]; the model takes x float32\[batch, 4\]"):
        scale.predict(X[:, :3])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.uint16, bool])
def test_lossless_casts_are_made(scale: InferenceSession, dtype: type[Any]) -> None:
    values = np.ones((2, 4), dtype)
    assert np.array_equal(scale.predict(values), np.full((2, 4), 2, np.float32))


def test_other_memory_layouts_give_the_same_outputs(scale: InferenceSession) -> None:
    swapped = X.astype(">f4")
    assert np.array_equal(scale.predict(np.asfortranarray(X)), 2 * X)
    assert np.array_equal(scale.predict(swapped), 2 * X)
    assert np.array_equal(scale.predict(X[::-1]), 2 * X[::-1])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_joined_batches_give_the_same_outputs(scale: InferenceSession, two: InferenceSession, batch_size: int) -> None:
    assert np.array_equal(scale.predict_batches(X, batch_size), 2 * X)
    for inputs in ({"a": X, "ids": np.arange(3)}, (X, np.arange(3)), [X, np.arange(3)]):
        answer = two.predict_batches(inputs, batch_size)
        assert np.array_equal(answer["total"], X.sum(1))
        assert np.array_equal(answer["picked"], np.arange(3))


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_a_model_of_a_fixed_batch_takes_any_number_of_samples(fixed: InferenceSession, count: int) -> None:
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    assert np.array_equal(fixed.predict_batches(values), -values)


def test_zero_samples_give_empty_outputs(
    scale: InferenceSession, two: InferenceSession, fixed: InferenceSession
) -> None:
    empty = scale.predict_batches(X[:0])
    assert (empty.shape, empty.dtype) == ((0, 4), np.float32)
    answer = two.predict_batches({"a": X[:0], "ids": np.arange(0)})
    assert {name: (array.shape, array.dtype) for name, array in answer.items()} == {
        "total": ((0,), np.float32),
        "picked": ((0,), np.int64),
    }
    assert fixed.predict_batches(np.zeros((0, 2), np.float32)).shape == (0, 2)


def test_invalid_batches_are_rejected(scale: InferenceSession, two: InferenceSession) -> None:
    with pytest.raises(UsageError, match="differ in their number of samples"):
        two.predict_batches((X, np.arange(2)))
    with pytest.raises(UsageError, match="the model has 2 inputs, not one"):
        two.predict_batches(X)
    with pytest.raises(UsageError, match="batch_size: 0"):
        scale.predict_batches(X, 0)
    with pytest.raises(UsageError, match="first axis"):
        scale.predict_batches(np.float32(1))
    with pytest.raises(UsageError, match="rank 3"):
        scale.predict_batches(np.zeros((0, 4, 1), np.float32))


def test_an_output_that_is_not_per_sample_cannot_be_joined(tmp_path: Path) -> None:
    summed = InferenceSession(
        save(
            tmp_path / "sum.onnx",
            [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
            [("x", TensorProto.FLOAT, ["batch", 4])],
            [("y", TensorProto.FLOAT, [])],
        )
    )
    assert summed.predict(X) == X.sum()
    with pytest.raises(UsageError, match="output y does not have one row per sample"):
        summed.predict_batches(X)


def test_strings_are_accepted(tmp_path: Path) -> None:
    same = InferenceSession(
        save(
            tmp_path / "text.onnx",
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", TensorProto.STRING, ["batch"])],
            [("y", TensorProto.STRING, ["batch"])],
        )
    )
    assert same.predict(["one", "two"]).tolist() == ["one", "two"]
    with pytest.raises(UsageError, match=r"x string\[batch\]"):
        same.predict(np.arange(2))


def test_a_session_reads_the_metadata_of_a_file(scale: InferenceSession, tmp_path: Path) -> None:
    about = scale.metadata
    assert about.inputs[0].about == "four numbers"
    assert about.inputs[0].shape == ["batch", 4]
    assert about.opsets == {"ai.onnx": 20}
    assert about.providers == ["CPUExecutionProvider"]
    assert len(about.sha256) == 64
    assert about.version is None


def test_a_missing_provider_gives_a_warning(tmp_path: Path) -> None:
    path = scale_model(tmp_path / "m.onnx", 2)
    with pytest.warns(ProviderFallback, match="NoSuchProvider cannot be used here"):
        loaded = InferenceSession(path, providers=["NoSuchProvider"])
    assert np.array_equal(loaded.predict(X), 2 * X)
    with pytest.raises(UsageError, match=r"CUDAExecutionProvider cannot be used here.*onward\[cuda\]"):
        InferenceSession(path, providers=["CUDAExecutionProvider"], strict_providers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InferenceSession(path, providers=[("CPUExecutionProvider", {})], strict_providers=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.onnx", None, "there is no such file"),
        ("garbage.onnx", b"\x00\xff not onnx", "ONNX Runtime cannot load the model"),
        ("empty.onnx", b"", "ONNX Runtime cannot load the model"),
    ],
)
def test_invalid_model_files_are_rejected(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        InferenceSession(path)


def test_a_session_loads_by_environment_version_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    promotion.promote("cnn", "staging", 2, reason="because", store=store)
    live = InferenceSession("cnn@staging")
    assert np.array_equal(live.predict(X), 2 * X)
    about = live.metadata
    assert (about.model, about.version, about.environment, about.entry) == ("cnn", 2, "staging", 1)
    assert about.sha256 == not_none(store.candidate("cnn", 2)).sha256
    assert np.array_equal(InferenceSession("cnn/1").predict(X), X)
    assert np.array_equal(InferenceSession(session.cache() / about.manifest).predict(X), 2 * X)


def test_changed_bytes_are_rejected_with_the_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    add_candidate(store, "cnn")
    promotion.promote("cnn", "staging", reason="because", store=store)
    folder = session.cache() / InferenceSession("cnn@staging").metadata.manifest
    with open(folder / "MLmodel", "a") as file:
        file.write("\n")
    with pytest.raises(Refused, match=r"cnn@staging: .*MLmodel has changed.*Delete .* to download it again"):
        InferenceSession("cnn@staging")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("cnn@production", Refused, "nothing is live in production of cnn"),
        ("cnn@moon", UsageError, "no environment 'moon'"),
        ("nope@staging", UsageError, "no version of 'nope'"),
        ("cnn/9", UsageError, "no version 9 of cnn"),
        ("cnn", UsageError, "there is no such file; a registered model is MODEL@ENVIRONMENT"),
        ("../x@staging", UsageError, "there is no such file"),
    ],
)
def test_unknown_targets_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, error: type[Exception], message: str
) -> None:
    add_candidate(fresh_store(tmp_path, monkeypatch), "cnn")
    with pytest.raises(error, match=message):
        InferenceSession(target)


def test_without_onnxruntime_the_error_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'onward\[cpu\]'"):
        InferenceSession(scale_model(tmp_path / "m.onnx", 2))


def test_importing_a_session_imports_neither_torch_nor_mlflow_nor_onnxruntime() -> None:
    heavy = ("torch", "mlflow", "onnxruntime")
    code = f"import onward.registry.inference.session, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
