"""InferenceSession: loads by name or file, checks what it is fed, and never falls back in silence."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from registry.errors import Refused, UsageError
from registry.session import InferenceSession, ProviderFallback
from tests.evidence_factory import register
from tests.onnx_models import linear

X = np.linspace(-1, 1, 28, dtype=np.float32).reshape(7, 4)


@pytest.fixture
def session(tmp_path: Path) -> InferenceSession:
    return InferenceSession(linear(tmp_path / "m.onnx"))


@pytest.fixture
def two(tmp_path: Path) -> InferenceSession:
    """a [batch, 2] float32 and n [batch] int64 to their sum and their difference."""
    shape = ["batch", 2]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["f", "axis"], ["c"]),
            helper.make_node("Add", ["a", "c"], ["sum"]),
            helper.make_node("Sub", ["a", "c"], ["difference"]),
        ],
        "two",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("sum", "difference")],
        [onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return InferenceSession(path)


def test_arrays_tensors_lists_and_wider_numbers_give_the_same_answer(session: InferenceSession) -> None:
    wanted = session.predict(X)
    assert wanted.shape == (7, 3)
    for value in (torch.from_numpy(X), torch.from_numpy(X).requires_grad_(), X.astype(np.float64), X.tolist()):
        assert np.allclose(session.predict(value), wanted)
    assert np.allclose(session.predict(x=X), wanted)
    assert np.allclose(session.predict({"x": X}), wanted)


def test_many_inputs_go_by_position_by_name_or_mixed(two: InferenceSession) -> None:
    a, n = np.ones((3, 2), np.float32), np.array([1, 2, 3])
    for found in (two.predict(a, n), two.predict(a, n=n), two.predict(n=n, a=a), two.predict({"a": a, "n": n})):
        assert found["sum"].tolist() == [[2, 2], [3, 3], [4, 4]]
        assert found["difference"][0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"x": X[0]}, r"x has 1 dimensions"),
        ({"x": X[:, :3]}, r"x has shape \[7, 3\]; wanted \['batch', 4\]"),
        ({"z": X}, "missing x; unknown z; the model has x float32"),
        ({}, "missing x"),
        ({"x": X > 0, "y": X}, "unknown y"),
        ({"x": X.astype(np.complex64)}, "x is complex64; wanted float32"),
        ({"x": [["a"] * 4]}, "no array of numbers"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_wanted(session: InferenceSession, feed: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        session.predict(**feed)


def test_inputs_that_disagree_on_a_dimension_are_refused(two: InferenceSession) -> None:
    with pytest.raises(UsageError, match="n has batch = 2, an earlier input has 3"):
        two.predict(np.ones((3, 2), np.float32), np.array([1, 2]))
    with pytest.raises(UsageError, match="both by position and by name"):
        two.predict(np.ones((3, 2), np.float32), a=np.ones((3, 2), np.float32))
    with pytest.raises(UsageError, match="3 inputs given"):
        two.predict(1, 2, 3)
    with pytest.raises(UsageError, match="n is float64; wanted int64"):
        two.predict(np.ones((1, 2), np.float32), np.array([1.5]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batches_give_what_one_call_gives(session: InferenceSession, batch_size: int) -> None:
    assert np.allclose(session.predict_batches(X, batch_size), session.predict(X), atol=1e-6)


def test_batches_of_many_inputs_and_of_none(two: InferenceSession, session: InferenceSession) -> None:
    feed = {"a": np.ones((5, 2), np.float32), "n": np.arange(5)}
    found = two.predict_batches(feed, 2)
    assert np.array_equal(found["sum"], two.predict(feed)["sum"])
    empty = session.predict_batches(X[:0])
    assert (empty.shape, empty.dtype) == ((0, 3), np.float32)
    with pytest.raises(UsageError, match="different numbers of samples"):
        two.predict_batches({**feed, "n": np.arange(4)})
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        session.predict_batches(X, 0)


def test_a_provider_that_is_not_used_is_loud_and_fatal_on_request(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.warns(
        ProviderFallback, match="CUDAExecutionProvider is not used here.*computes on CPUExecutionProvider"
    ):
        InferenceSession(path, providers=["CUDAExecutionProvider"])
    with pytest.raises(Refused, match="CUDAExecutionProvider is not used"):
        InferenceSession(path, providers=["CUDAExecutionProvider"], strict_providers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InferenceSession(path, providers=["CPUExecutionProvider"], strict_providers=True)


def test_session_options_are_the_callers(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    assert InferenceSession(linear(tmp_path / "m.onnx"), session_options=options).predict(X).shape == (7, 3)


def test_metadata_documents_inputs_and_outputs(session: InferenceSession) -> None:
    found = session.metadata
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 4], "about": ""}]
    assert found["providers"] == ["CPUExecutionProvider"]
    assert found["opsets"] == {"ai.onnx": 17}


def test_a_version_is_loaded_from_the_store_and_then_from_the_cache(store_uri: str, tmp_path: Path) -> None:
    register(tmp_path)
    session = InferenceSession("toy/1")
    assert (session.metadata["model"], session.metadata["version"]) == ("toy", "1")
    cached = tmp_path / "cache" / "onward" / session.metadata["sha256"]
    assert (cached / "model.onnx").is_file()
    assert np.array_equal(InferenceSession("toy/1").predict(X), session.predict(X))
    (cached / "model.onnx").write_bytes(b"changed")
    with pytest.raises(Refused, match=r"model\.onnx has changed.*in the cache"):
        InferenceSession("toy/1")


def test_files_that_are_no_model_are_a_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"rubbish")
    with pytest.raises(UsageError, match="is no ONNX file"):
        InferenceSession(path)
    with pytest.raises(UsageError, match="there is no such file; a registered model is MODEL@ENVIRONMENT"):
        InferenceSession(tmp_path / "none.onnx")
