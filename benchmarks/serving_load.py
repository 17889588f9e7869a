"""Sends requests to a server and times the answers, for benchmarks/serving.py.

Requests are prepared bytes, and answers are read with plain sockets, so that the load costs the machine little.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# One request: sends it and returns the status and the body of the answer.
Call = Callable[[], tuple[int, bytes]]
PATIENCE_S = 60.0
# The protocol's names of the types that the models take.
_KINDS = {"float32": "FP32", "int64": "INT64"}


@dataclass
class Load:
    """What a load received.

    Attributes:
        latencies: seconds of each request that got an answer.
        failed: the statuses and errors of the others.
        seconds: how long the load lasted.
    """

    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.latencies + other.latencies, self.failed + other.failed, self.seconds + other.seconds)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def ms(self, percentile: float) -> float:
        """A percentile of the latencies, in ms."""
        return float(np.percentile(self.latencies, percentile)) * 1e3 if self.latencies else float("nan")


def rest_binary(inputs: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request of the Open Inference Protocol with raw tensors: the body and its headers."""
    entries = [
        {
            "name": name,
            "datatype": _KINDS[str(array.dtype)],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in inputs.items()
    ]
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(array.tobytes() for array in inputs.values())
    return body, {"Inference-Header-Content-Length": str(len(head))}


def rest_json(inputs: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request of the Open Inference Protocol with JSON numbers. MLServer takes no raw tensors over REST."""
    entries = [
        {"name": name, "datatype": _KINDS[str(array.dtype)], "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    return json.dumps({"inputs": entries}).encode(), {"Content-Type": "application/json"}


def mlflow_json(inputs: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request of MLflow's scoring server."""
    body = json.dumps({"inputs": {name: array.tolist() for name, array in inputs.items()}}).encode()
    return body, {"Content-Type": "application/json"}


class Http:
    """A connection that stays open.

    Args:
        port: the server's port on this machine.
        path: the path of the requests.
        body: their body.
        headers: their headers.
    """

    def __init__(self, port: int, path: str, body: bytes, headers: dict[str, str]) -> None:
        lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._port, self._request = port, "\r\n".join([*lines, "", ""]).encode() + body
        self._socket: socket.socket | None = None

    def __call__(self) -> tuple[int, bytes]:
        """Send the request once, over a new connection after an error."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(self._request)
            return self._read(self._socket)
        except OSError:
            self._socket.close()
            self._socket = None
            raise

    def _read(self, connection: socket.socket) -> tuple[int, bytes]:
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more(connection)
        head = bytes(data[:end]).lower().split(b"\r\n")
        status = int(head[0].split()[1])
        length = next(int(line.split(b":")[1]) for line in head if line.startswith(b"content-length:"))
        while len(data) < end + 4 + length:
            data += self._more(connection)
        if b"connection: close" in head:
            connection.close()
            self._socket = None
        return status, bytes(data[end + 4 :])

    def _more(self, connection: socket.socket) -> bytes:
        found = connection.recv(1 << 16)
        if not found:
            raise ConnectionError("the server closed the connection")
        return found


def grpc_request(model: str, inputs: dict[str, Any]) -> bytes:
    """A serialised ModelInferRequest with raw tensors."""
    from onward.registry.serve.grpc_messages import MESSAGES

    message = MESSAGES["ModelInferRequest"](model_name=model)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=_KINDS[str(array.dtype)], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    found: bytes = message.SerializeToString()
    return found


def grpcio_call(port: int, method: str, request: bytes) -> Call:
    """A call of grpcio's client, on a channel of its own."""
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
    send = channel.unary_unary(method, None, None)

    def call() -> tuple[int, bytes]:
        try:
            return 200, send(request, timeout=PATIENCE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ConnectionError(str(error)) from None

    return call


def drive(
    calls: list[Call],
    seconds: float = 0.0,
    count: int = 0,
    check: Callable[[bytes], str] | None = None,
    stop: threading.Event | None = None,
) -> Load:
    """Send requests from one thread per call, each after the answer to the one before.

    Args:
        calls: one per thread.
        seconds: how long, if `count` is 0.
        count: how many requests each thread sends.
        check: returns what is wrong with the body of an answer; "" if nothing is.
        stop: ends the load when it is set.
    """
    found = [Load() for _ in calls]
    end = time.perf_counter() + (seconds or 1e9)

    def send(call: Call, load: Load) -> None:
        sent = 0
        while time.perf_counter() < end and not (count and sent >= count) and not (stop and stop.is_set()):
            begun = time.perf_counter()
            sent += 1
            try:
                status, body = call()
            except (OSError, ValueError, StopIteration) as error:
                load.failed.append(f"{type(error).__name__}: {error}")
                time.sleep(0.01)
                continue
            took = time.perf_counter() - begun
            wrong = str(status) if status != 200 else check(body) if check else ""
            if wrong:
                load.failed.append(wrong)
            else:
                load.latencies.append(took)

    threads = [threading.Thread(target=send, args=pair) for pair in zip(calls, found, strict=True)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = sum(found, Load())
    whole.seconds = time.perf_counter() - begun
    return whole
