"""The Open Inference Protocol over gRPC, on the event loop of the HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from onward.registry.serve import protocol
from onward.registry.serve.access import Access
from onward.registry.serve.grpc_messages import MESSAGES, METHODS, SERVICE
from onward.registry.serve.protocol import DTYPES, Fault, Request, Wanted
from onward.registry.serve.versions import CONFIG_TYPES, config, tensors, version_of

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# The field of InferTensorContents for each type. FP16 has none, so it needs raw contents.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
# Methods that need no token: a load balancer calls them.
_OPEN = ("ServerLive", "ServerReady")
_GRACE_S = 30.0


class GrpcService:
    """The methods of the service.

    Args:
        access: the served models by their names, and who may use them.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._server: Any = None

    async def start(self, address: str, certificate: Path | None, key: Path | None) -> int:
        """Listen on an address, such as "127.0.0.1:8081".

        Args:
            address: host and port; port 0 is any free one.
            certificate: the file of the TLS certificate; None for plain text.
            key: the file of its key.

        Returns:
            the port.
        """
        options = [("grpc.max_receive_message_length", self._access.limits.bytes), ("grpc.max_send_message_length", -1)]
        self._server = grpc.aio.server(options=options)
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if certificate is not None and key is not None:
            pair = (key.read_bytes(), certificate.read_bytes())
            port: int = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            port = self._server.add_insecure_port(address)
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Let running calls finish, and stop."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)

    def _handler(self, name: str) -> Any:
        method: Callable[[Any], Awaitable[Any]] = getattr(self, f"_{name}")

        async def call(request: Any, context: Any) -> Any:
            try:
                if name not in _OPEN:
                    sent = dict(context.invocation_metadata() or ()).get("authorization", "")
                    self._access.check_token(str(sent), "metadata authorization")
                return await method(request)
            except Fault as fault:
                await context.abort(_CODES.get(fault.status, grpc.StatusCode.INTERNAL), fault.message)

        request, response = MESSAGES[f"{name}Request"], MESSAGES[f"{name}Response"]
        return grpc.unary_unary_rpc_method_handler(call, request.FromString, response.SerializeToString)

    async def _ServerLive(self, _: Any) -> Any:  # noqa: N802  named as the method
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ServerReady(self, _: Any) -> Any:  # noqa: N802
        return MESSAGES["ServerReadyResponse"](ready=self._access.ready)

    async def _ModelReady(self, request: Any) -> Any:  # noqa: N802
        return MESSAGES["ModelReadyResponse"](ready=self._access.model(request.name, request.version).ready)

    async def _ServerMetadata(self, _: Any) -> Any:  # noqa: N802
        from importlib.metadata import version

        return MESSAGES["ServerMetadataResponse"](name="onward", version=version("onward"))

    async def _ModelMetadata(self, request: Any) -> Any:  # noqa: N802
        model = self._access.model(request.name, request.version)
        loaded = model.session.loaded
        found = await asyncio.to_thread(loaded.metadata)
        answer = MESSAGES["ModelMetadataResponse"](
            name=model.name, versions=[version_of(loaded)], platform=f"onward_{found.providers[0]}"
        )
        for key, specs in (("inputs", found.inputs), ("outputs", found.outputs)):
            for tensor in tensors(specs):
                getattr(answer, key).add(**tensor)
        return answer

    async def _ModelConfig(self, request: Any) -> Any:  # noqa: N802
        model = self._access.model(request.name, request.version)
        found = await asyncio.to_thread(model.session.loaded.metadata)
        facts = config(model.name, found)
        for spec in (*facts["input"], *facts["output"]):
            spec["data_type"] = CONFIG_TYPES.index(spec["data_type"])
        return MESSAGES["ModelConfigResponse"](config=MESSAGES["ModelConfig"](**facts))

    async def _ModelInfer(self, request: Any) -> Any:  # noqa: N802
        model = self._access.ready_model(request.model_name)
        asked = _request(request)
        answer = self._access.at_once(model, asked, request.model_version)
        if answer is None:
            answer = await self._access.answer(model, asked, request.model_version)
        response = MESSAGES["ModelInferResponse"](model_name=model.name, model_version=answer.version, id=asked.id)
        for name in [one.name for one in asked.outputs] or list(answer.outputs):
            if name not in answer.outputs:
                raise Fault(400, f"the model has no output {name!r}; it has {', '.join(answer.outputs)}")
            array = answer.outputs[name]
            response.outputs.add(name=name, datatype=protocol.datatype(array, name), shape=np.shape(array))
            response.raw_output_contents.append(protocol.to_raw(array))
        return response


def _request(message: Any) -> Request:
    """Read the arrays of a ModelInferRequest.

    Raises:
        Fault: an input is not valid.
    """
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise Fault(400, f"there are {len(message.inputs)} inputs and {len(raw)} raw contents: give one for each")
    arrays: dict[str, protocol.Array] = {}
    for number, entry in enumerate(message.inputs):
        dtype = DTYPES.get(entry.datatype)
        if dtype is None:
            known = ", ".join(DTYPES)
            raise Fault(400, f"input {entry.name}: datatype {entry.datatype!r} is unknown; it is one of {known}")
        shape = list(entry.shape)
        if any(size < 0 for size in shape):
            raise Fault(400, f"input {entry.name}: shape {shape} must be a list of sizes")
        if entry.name in arrays:
            raise Fault(400, f"input {entry.name} is given twice")
        if raw:
            arrays[entry.name] = protocol.from_raw(entry.name, raw[number], dtype, shape)
        elif entry.datatype not in _CONTENTS:
            raise Fault(400, f"input {entry.name}: {entry.datatype} needs raw_input_contents")
        else:
            values: list[Any] = list(getattr(entry.contents, _CONTENTS[entry.datatype]))
            if dtype.hasobject:
                values = [_text(entry.name, value) for value in values]
            arrays[entry.name] = protocol.from_list(entry.name, values, dtype, shape)
    outputs = [Wanted(one.name, True) for one in message.outputs]
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice") or "int64_param")
                  for name, value in message.parameters.items()}  # fmt: skip
    return Request(arrays, outputs, message.id, True, parameters)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Fault(400, f"input {name}: a string is not UTF-8") from None
