"""The Open Inference Protocol, version 2, over HTTP: requests and responses as JSON, with the binary tensor extension.

    request = parse(body, header_length)            # arrays by input name, and the outputs that the caller wants
    headers, body = answer("cnn", "3", request, outputs)

The JSON part may be followed by raw tensors, in the order of the inputs that have `binary_data_size`. The HTTP header
Inference-Header-Content-Length then gives the length of the JSON part. Objects are never unpickled.

Source: the specification of the protocol (Open Inference Protocol, REST) and Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Array = npt.NDArray[Any]

HEADER_LENGTH = "inference-header-content-length"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32), "UINT64": np.dtype(np.uint64), "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16), "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16), "FP32": np.dtype(np.float32), "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


class Fault(Exception):
    """A request that gets an error.

    Attributes:
        status: the HTTP status.
        message: what is wrong, for the caller.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Wanted:
    """An output that the caller asks for.

    Attributes:
        name: its name.
        binary: whether as a raw tensor.
    """

    name: str
    binary: bool


@dataclass(frozen=True)
class Request:
    """A request for inference.

    Attributes:
        arrays: the inputs by name.
        outputs: the outputs that the caller asks for; empty for all of them.
        id: the caller's identifier; "" if there is none.
        binary: whether all outputs are wanted as raw tensors, if `outputs` is empty.
        parameters: the request's own parameters.
    """

    arrays: dict[str, Array]
    outputs: Sequence[Wanted] = ()
    id: str = ""
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The time limit that the caller sets with the parameter `timeout` in µs, as for Triton; 0 if there is none.

        Raises:
            Fault: it is no number.
        """
        timeout = self.parameters.get("timeout", 0)
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or timeout < 0:
            raise Fault(400, f"the parameter timeout is {timeout!r}, not a number of microseconds")
        return timeout / 1e6


def parse(body: bytes, header_length: int | None = None) -> Request:
    """Read a request.

    Args:
        body: the body of the HTTP request.
        header_length: the number of bytes of the JSON part; None if there are no raw tensors.

    Raises:
        Fault: the body is no valid request.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise Fault(400, f"{HEADER_LENGTH} is {header_length}, and the body has {len(body)} bytes")
    head, raw = (body, b"") if header_length is None else (body[:header_length], body[header_length:])
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise Fault(400, f"the request is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise Fault(400, 'the request must be a JSON object with a list "inputs"')
    arrays: dict[str, Array] = {}
    at = 0
    for entry in document["inputs"]:
        name, array, used = _input(entry, raw, at)
        if name in arrays:
            raise Fault(400, f"input {name} is given twice")
        arrays[name] = array
        at += used
    if at != len(raw):
        raise Fault(400, f"{len(raw) - at} bytes of raw tensors belong to no input")
    parameters = _parameters(document, "the request")
    return Request(
        arrays,
        [_wanted(entry) for entry in document.get("outputs") or ()],
        str(document.get("id") or ""),
        bool(parameters.get("binary_data_output")),
        parameters,
    )


def answer(model: str, version: str, request: Request, outputs: Mapping[str, Array]) -> tuple[dict[str, str], bytes]:
    """Write a response.

    Args:
        model: the model's name.
        version: the version that computed the outputs.
        request: the request.
        outputs: all outputs by name.

    Returns:
        the HTTP headers and the body.

    Raises:
        Fault: the caller asks for an output that the model does not have, or whose type the protocol does not have.
    """
    wanted = request.outputs or [Wanted(name, request.binary) for name in outputs]
    entries, raw = [], []
    for one in wanted:
        if one.name not in outputs:
            raise Fault(400, f"the model has no output {one.name!r}; it has {', '.join(outputs)}")
        array = np.ascontiguousarray(outputs[one.name]).reshape(np.shape(outputs[one.name]))
        entry: dict[str, Any] = {"name": one.name, "datatype": datatype(array, one.name), "shape": list(array.shape)}
        if one.binary:
            raw.append(to_raw(array))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = array.ravel()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id:
        document["id"] = request.id
    head = orjson.dumps(document, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raw:
        return {"content-type": "application/json"}, head
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return headers, b"".join((head, *raw))


def datatype(array: Array, name: str) -> str:
    """The protocol's name of an array's type.

    Raises:
        Fault: the protocol does not have the type.
    """
    kind = np.dtype(object) if array.dtype.kind in "USO" else array.dtype.newbyteorder("=")
    if kind not in _NAMES:
        raise Fault(500, f"output {name} has type {array.dtype}, which the protocol does not have")
    return _NAMES[kind]


def protocol_type(dtype: str) -> str:
    """The protocol's name of an input's or output's type, such as "float32"; "?" if it has none."""
    kind = np.dtype(object) if dtype in ("string", "object") else None
    try:
        return _NAMES.get(kind or np.dtype(dtype), "?")
    except TypeError:
        return "?"


def _input(entry: Any, raw: bytes, at: int) -> tuple[str, Array, int]:
    """One input: its name, its array, and the number of bytes of its raw tensor."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Fault(400, 'each input must be a JSON object with a "name"')
    name, shape = entry["name"], entry.get("shape")
    dtype = DTYPES.get(str(entry.get("datatype")))
    if dtype is None:
        raise Fault(
            400, f"input {name}: datatype {entry.get('datatype')!r} is unknown; it is one of {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Fault(400, f"input {name}: shape {shape!r} must be a list of sizes")
    size = _parameters(entry, f"input {name}").get("binary_data_size")
    if size is None:
        return name, from_list(name, entry.get("data"), dtype, shape), 0
    if type(size) is not int or size < 0 or at + size > len(raw):
        raise Fault(400, f"input {name}: binary_data_size is {size!r}, and {len(raw) - at} bytes are left")
    return name, from_raw(name, raw[at : at + size], dtype, shape), size


def from_list(name: str, data: Any, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """Read the values of an input from a list, nested or flat.

    Args:
        name: the input, for messages.
        data: the values.
        dtype: their type.
        shape: the shape of the array.

    Raises:
        Fault: the values do not have the type, or their number does not fit the shape.
    """
    count = math.prod(shape)
    if not isinstance(data, list):
        raise Fault(400, f'input {name}: "data" must be a list')
    try:
        if dtype.hasobject:
            array = np.empty(count, object)
            flat = _flat(data)
            if len(flat) != count or not all(isinstance(value, str) for value in flat):
                raise ValueError("strings are expected")
            array[:] = flat
            return array.reshape(shape)
        exact = np.asarray(data)
        if exact.size and exact.dtype.kind not in ("biu" if dtype.kind in "biu" else "biuf"):
            raise ValueError(f"values of type {exact.dtype} are no {dtype}")
        array = np.asarray(data, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise Fault(400, f"input {name}: data cannot be read as {dtype}: {error}") from None
    if array.size != count:
        raise Fault(400, f"input {name}: shape {shape} needs {count} values, and data has {array.size}")
    return array.reshape(shape)


def _flat(data: list[Any]) -> list[Any]:
    found: list[Any] = []
    waiting = list(reversed(data))
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        else:
            found.append(value)
    return found


def from_raw(name: str, data: bytes, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """Read the values of an input from a raw tensor: little-endian, and strings after their lengths.

    Args:
        name: the input, for messages.
        data: the raw tensor.
        dtype: the type of the values.
        shape: the shape of the array.

    Raises:
        Fault: the number of bytes does not fit the shape, or a string is not UTF-8.
    """
    count = math.prod(shape)
    if not dtype.hasobject:
        if len(data) != count * dtype.itemsize:
            raise Fault(400, f"input {name}: shape {shape} needs {count * dtype.itemsize} bytes, not {len(data)}")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    texts: list[str] = []
    at = 0
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise Fault(400, f"input {name}: the raw strings end inside a length")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise Fault(400, f"input {name}: the raw strings end inside a string")
        try:
            texts.append(data[at : at + length].decode())
        except UnicodeDecodeError:
            raise Fault(400, f"input {name}: a raw string is not UTF-8") from None
        at += length
    if len(texts) != count:
        raise Fault(400, f"input {name}: shape {shape} needs {count} strings, not {len(texts)}")
    array = np.empty(count, object)
    array[:] = texts
    return array.reshape(shape)


def to_raw(array: Array) -> bytes:
    """Write an array as a raw tensor, as `from_raw` reads it."""
    if array.dtype.kind not in "USO":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _parameters(entry: dict[str, Any], of: str) -> dict[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise Fault(400, f"{of}: parameters must be a JSON object")
    return parameters


def _wanted(entry: Any) -> Wanted:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Fault(400, 'each output must be a JSON object with a "name"')
    return Wanted(entry["name"], bool(_parameters(entry, f"output {entry['name']}").get("binary_data")))


def _plain(value: Any) -> Any:
    """What orjson cannot write itself: arrays of types that it does not know."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.float16:
            return value.astype(np.float32)
        return [one.decode(errors="replace") if isinstance(one, bytes) else one for one in value.tolist()]
    raise TypeError
