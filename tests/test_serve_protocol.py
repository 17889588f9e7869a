"""The Open Inference Protocol: what is sent is what is read, and a bad request gets an error that names the input."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from onward.registry.serve import protocol
from onward.registry.serve.protocol import DTYPES, Fault, Request, Wanted

ARRAYS = st.sampled_from([dtype for dtype in DTYPES.values() if not dtype.hasobject]).flatmap(
    lambda dtype: nps.arrays(dtype, nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


def request_of(head: dict[str, Any], raw: bytes = b"") -> Request:
    text = orjson.dumps(head)
    return protocol.parse(text + raw, len(text) if raw else None)


def read_answer(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """The outputs of a response by name: arrays for raw tensors, lists for JSON."""
    length = int(headers.get(protocol.HEADER_LENGTH, len(body)))
    document, at, found = orjson.loads(body[:length]), length, {}
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[output["name"]] = output["data"]
        else:
            found[output["name"]] = np.frombuffer(body[at : at + size], DTYPES[output["datatype"]]).reshape(
                output["shape"]
            )
            at += size
    assert at == len(body)
    return found


@given(ARRAYS, ARRAYS)
def test_raw_tensors_are_read_as_they_were_sent(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> None:
    inputs = [
        {"name": name, "datatype": protocol.datatype(array, name), "shape": list(array.shape),
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in (("a", first), ("b", second))
    ]  # fmt: skip
    head = orjson.dumps({"inputs": inputs})
    found = protocol.parse(head + first.tobytes() + second.tobytes(), len(head)).arrays
    for name, array in (("a", first), ("b", second)):
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")
        assert found[name].shape == array.shape


@given(ARRAYS)
def test_raw_outputs_are_written_as_they_were_computed(array: np.ndarray[Any, Any]) -> None:
    headers, body = protocol.answer("m", "1", Request({}, binary=True), {"y": array})
    found = read_answer(headers, body)["y"]
    assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")
    assert found.shape == array.shape


@given(nps.arrays(np.float32, nps.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32)))
def test_json_keeps_float32_values(array: np.ndarray[Any, Any]) -> None:
    nested = request_of(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.tolist()}]}
    )
    assert np.array_equal(nested.arrays["x"], array)
    headers, body = protocol.answer("m", "1", nested, {"y": array})
    assert np.array_equal(np.array(read_answer(headers, body)["y"], np.float32), array.ravel())


def test_strings_are_read_from_json_and_from_raw_tensors() -> None:
    texts = ["ä", "", "long text"]
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    entry = {"name": "t", "datatype": "BYTES", "shape": [3]}
    assert request_of({"inputs": [entry | {"data": texts}]}).arrays["t"].tolist() == texts
    sized = entry | {"parameters": {"binary_data_size": len(raw)}}
    assert request_of({"inputs": [sized]}, raw).arrays["t"].tolist() == texts
    for cut in (raw[:-1], raw[:2]):
        with pytest.raises(Fault, match="raw strings end inside"):
            request_of({"inputs": [entry | {"parameters": {"binary_data_size": len(cut)}}]}, cut)


X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("nothing", 'a list "inputs"'),
        ([X, X], "input x is given twice"),
        ([X | {"datatype": "FLOAT"}], "input x: datatype 'FLOAT' is unknown; it is one of BOOL"),
        ([X | {"datatype": "INT64", "data": [1.5, 2]}], "input x: data cannot be read as int64"),
        ([X | {"datatype": "UINT8", "data": [1, 300]}], "input x: data cannot be read as uint8"),
        ([X | {"shape": [3]}], r"input x: shape \[3\] needs 3 values, and data has 2"),
        ([X | {"shape": [-1]}], "must be a list of sizes"),
        ([X | {"data": [[1], [2, 3]]}], "input x: data cannot be read as float32"),
        ([X | {"data": ["1", "2"]}], "input x: data cannot be read as float32"),
        ([X | {"data": None}], 'input x: "data" must be a list'),
        ([{"datatype": "FP32"}], 'each input must be a JSON object with a "name"'),
        ([X | {"parameters": {"binary_data_size": 8}}], "binary_data_size is 8, and 0 bytes are left"),
    ],
)
def test_a_bad_request_gets_the_reason(inputs: Any, words: str) -> None:
    with pytest.raises(Fault, match=words) as caught:
        request_of({"inputs": inputs})
    assert caught.value.status == 400


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_rubbish_gets_an_error_and_no_exception(body: bytes, length: int | None) -> None:
    with pytest.raises(Fault):
        protocol.parse(body, length)


def test_bytes_after_the_last_tensor_are_an_error() -> None:
    with pytest.raises(Fault, match="4 bytes of raw tensors belong to no input"):
        request_of({"inputs": [X]}, b"abcd")


def test_only_the_wanted_outputs_are_sent_in_their_order() -> None:
    outputs: dict[str, np.ndarray[Any, Any]] = {"a": np.zeros(1, np.float32), "b": np.ones(2, np.int64)}
    headers, body = protocol.answer("m", "1", Request({}, [Wanted("b", True), Wanted("a", False)]), outputs)
    assert list(read_answer(headers, body)) == ["b", "a"]
    with pytest.raises(Fault, match="the model has no output 'c'; it has a, b"):
        protocol.answer("m", "1", Request({}, [Wanted("c", False)]), outputs)
