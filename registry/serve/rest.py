"""The HTTP server: the Open Inference Protocol, health, and metrics."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from onward.registry.serve import protocol
from onward.registry.serve.access import Access
from onward.registry.serve.engine import Answer
from onward.registry.serve.metrics import Metrics
from onward.registry.serve.protocol import Fault
from onward.registry.serve.served import ServedModel
from onward.registry.serve.versions import config, tensors, version_of

_LOG = logging.getLogger("onward.serve")
_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
# Paths that need no token: a load balancer asks for them.
_OPEN = ("/v2/health/live", "/v2/health/ready")
# Seconds between two looks whether the caller of a slow request is still connected.
_LOOK_S = 0.25


class Rest:
    """The endpoints.

    Args:
        access: the served models by their names in URLs, and who may use them.
        metrics: what /metrics shows.
        look: called by POST /v2/onward/refresh, to look at the environments at once.
    """

    def __init__(
        self,
        access: Access,
        metrics: Metrics,
        look: Callable[[], object],
    ) -> None:
        self._access, self._metrics, self._look = access, metrics, look

    def app(self, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Starlette:
        """The ASGI application.

        Args:
            lifespan: what runs beside it, from its start to its end.
        """
        # Routes are tried in order: the one for requests comes first.
        paths = (_MODEL, _VERSION)
        routes = [Route(f"{path}/infer", self._guarded(self._infer), methods=["POST"]) for path in paths]
        routes += [
            Route("/v2", self._guarded(self._server)),
            Route("/v2/health/live", self._guarded(self._live)),
            Route("/v2/health/ready", self._guarded(self._ready)),
            Route("/metrics", self._guarded(self._show_metrics)),
            Route("/v2/onward/refresh", self._guarded(self._refresh), methods=["POST"]),
            Route("/v2/onward/events", self._guarded(self._events)),
        ]
        for path in paths:
            routes += [
                Route(path, self._guarded(self._metadata)),
                Route(f"{path}/config", self._guarded(self._config)),
                Route(f"{path}/ready", self._guarded(self._model_ready)),
            ]
        return Starlette(routes=routes, exception_handlers={404: _unknown_path, 405: _unknown_path}, lifespan=lifespan)

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint with the check of the token; faults become the protocol's errors."""

        async def guarded(request: Request) -> Response:
            try:
                if request.scope["path"] not in _OPEN:
                    self._access.check_token(request.headers.get("authorization", ""), "Authorization")
                return await endpoint(request)
            except Fault as fault:
                return JSONResponse({"error": fault.message}, fault.status)

        return guarded

    async def _server(self, _: Request) -> Response:
        from importlib.metadata import version

        return JSONResponse({"name": "onward", "version": version("onward"), "extensions": ["binary_tensor_data"]})

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = self._access.ready
        unreachable = sorted(name for name, model in self._access.models.items() if not model.reachable)
        body = {"ready": ready, "registry_unreachable_for": unreachable}
        return JSONResponse(body, 200 if ready else 503)

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def _refresh(self, _: Request) -> Response:
        self._look()
        return JSONResponse({"looking": True}, 202)

    async def _events(self, _: Request) -> Response:
        """The newest events of each model, the oldest first."""
        return JSONResponse(
            {name: [asdict(event) for event in model.events] for name, model in self._access.models.items()}
        )

    async def _metadata(self, request: Request) -> Response:
        model = self._model(request)
        loaded = model.session.loaded
        found = await asyncio.to_thread(loaded.metadata)
        return JSONResponse(
            {
                "name": model.name,
                "versions": [version_of(loaded)],
                "platform": f"onward_{found.providers[0]}",
                "inputs": tensors(found.inputs),
                "outputs": tensors(found.outputs),
                "parameters": {"sha256": found.sha256, "environment": found.environment, "entry": found.entry},
            }
        )

    async def _config(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse(config(model.name, await asyncio.to_thread(model.session.loaded.metadata)))

    async def _model_ready(self, request: Request) -> Response:
        model = self._model(request)
        body = {"name": model.name, "ready": model.ready, "version": version_of(model.session.loaded)}
        return JSONResponse(body, 200 if model.ready else 503)

    async def _infer(self, request: Request) -> Response:
        model = self._access.ready_model(request.path_params["model"])
        body = await self._body(request)
        length = request.headers.get(protocol.HEADER_LENGTH)
        if length is not None and not length.isdecimal():
            raise Fault(400, f"{protocol.HEADER_LENGTH} is {length!r}, not a number of bytes")
        asked = protocol.parse(body, int(length) if length else None)
        wanted = request.path_params.get("version", "")
        number = request.headers.get("x-request-id") or asked.id or uuid.uuid4().hex
        answer = self._access.at_once(model, asked, wanted, number)
        if answer is None:
            answer = await _while_connected(request, self._access.answer(model, asked, wanted, number))
        headers, content = protocol.answer(model.name, answer.version, asked, answer.outputs)
        headers["x-request-id"] = number.encode("ascii", "replace").decode()[:128].replace("\n", "").replace("\r", "")
        return Response(content, headers=headers)

    def _model(self, request: Request) -> ServedModel:
        return self._access.model(request.path_params["model"], request.path_params.get("version", ""))

    async def _body(self, request: Request) -> bytes:
        most = self._access.limits.bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise Fault(413, f"the request has {announced} bytes, and at most {most} are accepted")
        parts, total = [], 0
        async for part in request.stream():
            total += len(part)
            if total > most:
                raise Fault(413, f"the request has more than {most} bytes")
            parts.append(part)
        return b"".join(parts)


async def _while_connected(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Wait for an answer, and give it up if the caller disconnects.

    Raises:
        Fault: the caller disconnected. Nobody receives it.
    """
    task = asyncio.create_task(answer)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_S)
            if not task.done() and await request.is_disconnected():
                raise Fault(499, "the caller disconnected")
        return task.result()
    finally:
        task.cancel()


async def _unknown_path(request: Request, error: Any) -> Response:
    text = f"there is no {request.method} {request.url.path}; infer is POST {_MODEL}/infer"
    return JSONResponse({"error": text}, getattr(error, "status_code", 404))
