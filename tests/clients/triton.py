"""Calls `onward serve` with NVIDIA's tritonclient, in that package's own environment, and prints what it got as JSON.

python triton.py HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def outcome(call: Any) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return call()
    except InferenceServerException as error:
        return {"status": str(error.status()), "error": error.message()}


def given(library: Any, values: Any = X, name: str = "x", datatype: str = "FP32", **how: Any) -> list[Any]:
    """The inputs of a request."""
    tensor = library.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, **how)
    return [tensor]


def answered(result: Any) -> dict[str, Any]:
    """The version, the identifier and the outputs of a response."""
    head = result.get_response()
    if not isinstance(head, dict):
        head = {"model_version": head.model_version, "id": head.id}
    return {"version": head["model_version"], "id": head.get("id"), "y": result.as_numpy("y").tolist()}


def common(client: Any, library: Any) -> dict[str, Any]:
    """Calls that both protocols have."""
    wrong = X[:, :3].copy()
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("cnn"),
        "version ready": client.is_model_ready("cnn", "1"),
        "infer": answered(client.infer("cnn", given(library), request_id="7")),
        "of version": answered(client.infer("cnn", given(library), model_version="1")),
        "in time": answered(client.infer("cnn", given(library), timeout=30_000_000)),
        "wrong shape": outcome(lambda: client.infer("cnn", given(library, wrong))),
        "wrong type": outcome(lambda: client.infer("cnn", given(library, X.astype(np.int64), datatype="INT64"))),
        "wrong name": outcome(lambda: client.infer("cnn", given(library, name="z"))),
        "wrong model": outcome(lambda: client.infer("other", given(library))),
        "wrong version": outcome(lambda: client.infer("cnn", given(library), model_version="9")),
        "too late": outcome(lambda: client.infer("cnn", given(library), timeout=1)),
    }


def main(http_port: str, grpc_port: str) -> None:
    """Print the results of all calls."""
    http = by_http.InferenceServerClient(f"127.0.0.1:{http_port}")
    grpc = by_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    wanted = [by_http.InferRequestedOutput("y", binary_data=False)]
    found = {
        "http": common(http, by_http)
        | {
            "metadata": http.get_model_metadata("cnn"),
            "config": http.get_model_config("cnn"),
            "server": http.get_server_metadata(),
            "json": answered(http.infer("cnn", given(by_http, binary_data=False), outputs=wanted)),
            "mixed": answered(http.infer("cnn", given(by_http, binary_data=False))),
            "async": answered(http.async_infer("cnn", given(by_http)).get_result()),
        },
        "grpc": common(grpc, by_grpc)
        | {
            "metadata": grpc.get_model_metadata("cnn", as_json=True),
            "config": grpc.get_model_config("cnn", as_json=True),
            "server": grpc.get_server_metadata(as_json=True),
            "within the deadline": answered(grpc.infer("cnn", given(by_grpc), client_timeout=30)),
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:3])
