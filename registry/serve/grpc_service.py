"""The Open Inference Protocol over gRPC, on the event loop of the HTTP server."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from onward.registry.serve import protocol
from onward.registry.serve.grpc_messages import MESSAGES, METHODS, SERVICE
from onward.registry.serve.limits import Limits
from onward.registry.serve.protocol import DTYPES, Fault, Request, Wanted
from onward.registry.serve.served import ServedModel, tensors, version_of

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
_GRACE_S = 30.0


class GrpcService:
    """The methods of the service.

    Args:
        models: the served models by their names.
        limits: what one request may cost.
        tokens: the bearer tokens that are accepted; empty if none is needed.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, tokens: frozenset[str]) -> None:
        self._models, self._limits, self._tokens = models, limits, tokens
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
        options = [("grpc.max_receive_message_length", self._limits.bytes), ("grpc.max_send_message_length", -1)]
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
                self._check_token(name, context.invocation_metadata())
                return await method(request)
            except Fault as fault:
                await context.abort(_CODES.get(fault.status, grpc.StatusCode.INTERNAL), fault.message)

        request, response = MESSAGES[f"{name}Request"], MESSAGES[f"{name}Response"]
        return grpc.unary_unary_rpc_method_handler(call, request.FromString, response.SerializeToString)

    def _check_token(self, name: str, metadata: Sequence[tuple[str, str]]) -> None:
        if not self._tokens or name in ("ServerLive", "ServerReady"):
            return
        kind, _, given = str(dict(metadata or ()).get("authorization", "")).partition(" ")
        matches = [hmac.compare_digest(given.encode(), token.encode()) for token in self._tokens]
        if kind.lower() != "bearer" or not any(matches):
            raise Fault(401, "a bearer token is needed: metadata authorization: Bearer TOKEN")

    def _model(self, name: str, wanted: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            raise Fault(404, f"there is no model {name!r}; this server has {', '.join(self._models)}")
        loaded = version_of(model.session.loaded)
        if wanted and wanted != loaded:
            raise Fault(404, f"{name} has version {loaded} loaded, not {wanted}")
        return model

    async def _ServerLive(self, _: Any) -> Any:  # noqa: N802  named as the method
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ServerReady(self, _: Any) -> Any:  # noqa: N802
        return MESSAGES["ServerReadyResponse"](ready=all(model.ready for model in self._models.values()))

    async def _ModelReady(self, request: Any) -> Any:  # noqa: N802
        return MESSAGES["ModelReadyResponse"](ready=self._model(request.name, request.version).ready)

    async def _ServerMetadata(self, _: Any) -> Any:  # noqa: N802
        from importlib.metadata import version

        return MESSAGES["ServerMetadataResponse"](name="onward", version=version("onward"))

    async def _ModelMetadata(self, request: Any) -> Any:  # noqa: N802
        model = self._model(request.name, request.version)
        loaded = model.session.loaded
        found = await asyncio.to_thread(loaded.metadata)
        answer = MESSAGES["ModelMetadataResponse"](
            name=model.name, versions=[version_of(loaded)], platform=f"onward_{found.providers[0]}"
        )
        for key, specs in (("inputs", found.inputs), ("outputs", found.outputs)):
            for tensor in tensors(specs):
                getattr(answer, key).add(**tensor)
        return answer

    async def _ModelInfer(self, request: Any) -> Any:  # noqa: N802
        model = self._model(request.model_name, "")
        if not model.ready:
            raise Fault(503, f"{model.name} is not ready yet")
        asked = _request(request)
        try:
            answer = await asyncio.wait_for(model.infer(asked.arrays, request.model_version), self._limits.seconds)
        except TimeoutError:
            raise Fault(504, f"{model.name} did not answer within {self._limits.seconds:g} s") from None
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
    return Request(arrays, outputs, message.id, True)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Fault(400, f"input {name}: a string is not UTF-8") from None
