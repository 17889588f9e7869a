"""Loads models, starts the HTTP server, and follows the environments until the process ends."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from onward.registry.errors import UsageError
from onward.registry.inference.session import InferenceSession
from onward.registry.serve.access import Access
from onward.registry.serve.limits import Limits
from onward.registry.serve.metrics import Metrics
from onward.registry.serve.rest import Rest
from onward.registry.serve.served import ServedModel

_LOG = logging.getLogger("onward.serve")


@dataclass(frozen=True)
class Options:
    """How the server runs.

    Attributes:
        host: the address that it listens on.
        port: the port; 0 for any free one.
        grpc_port: the port of gRPC; 0 for any free one, None for no gRPC.
        poll: seconds between two looks at an environment.
        queue: requests per model that may wait.
        workers: requests per model that run at the same time; None for as many as there are processors for.
        limits: what one request may cost.
        tokens: bearer tokens; empty if none is needed.
        certificate: the file of the TLS certificate; None for plain HTTP.
        key: the file of its key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    poll: float = 2.0
    queue: int = 64
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    tokens: frozenset[str] = frozenset()
    certificate: Path | None = None
    key: Path | None = None


class Server:
    """The server of some models.

    Args:
        targets: MODEL@ENVIRONMENT, MODEL/VERSION, or paths of .onnx files.
        options: how it runs.

    Raises:
        OnwardError: a model cannot be loaded, or does not repeat its recorded answers on this host.
    """

    def __init__(self, targets: Sequence[str], options: Options) -> None:
        self.metrics, self.options = Metrics(), options
        self.models: dict[str, ServedModel] = {}
        for target, name in _names(targets).items():
            session = InferenceSession(target, allow_cached=True)
            self.models[name] = ServedModel(target, name, session, self.metrics, options.queue, options.workers)
            self.models[name].start()
        self._look, self._stop = threading.Event(), threading.Event()
        self.grpc_port = 0
        self._access = Access(self.models, options.limits, options.tokens)
        rest = Rest(self._access, self.metrics, self._look.set)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                rest.app(self._beside),
                host=options.host,
                port=options.port,
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=options.certificate,
                ssl_keyfile=options.key,
                timeout_graceful_shutdown=30,
            )
        )

    @property
    def port(self) -> int:
        """The port that it listens on; 0 before it does."""
        servers = getattr(self._uvicorn, "servers", ())
        return next((socket.getsockname()[1] for server in servers for socket in server.sockets), 0)

    def run(self) -> None:
        """Serve until the process receives SIGTERM or SIGINT. Running requests finish."""
        follower = threading.Thread(target=self._follow, name="onward-follow", daemon=True)
        follower.start()
        try:
            self._uvicorn.run()
        finally:
            self._stop.set()
            self._look.set()
            for model in self.models.values():
                model.close()

    @contextlib.asynccontextmanager
    async def _beside(self, _: Starlette) -> AsyncIterator[None]:
        """The gRPC server, which runs on the same event loop."""
        if self.options.grpc_port is None:
            yield
            return
        from onward.registry.serve.grpc_service import GrpcService

        options = self.options
        service = GrpcService(self._access)
        address = f"{options.host}:{options.grpc_port}"
        self.grpc_port = await service.start(address, options.certificate, options.key)
        try:
            yield
        finally:
            await service.stop()

    def stop(self) -> None:
        """End `run` from another thread."""
        self._uvicorn.should_exit = True

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._look.wait(self.options.poll)
            self._look.clear()
            for model in self.models.values():
                if self._stop.is_set():
                    return
                try:
                    model.follow()
                except Exception:
                    _LOG.exception("%s: following its environment failed; the loaded version stays", model.target)


def _names(targets: Sequence[str]) -> dict[str, str]:
    """The name in URLs of each target: the model's name, or all of the target if two have the same model.

    Raises:
        UsageError: a target is given twice.
    """
    if len(set(targets)) != len(targets):
        raise UsageError(f"a target is given twice: {' '.join(targets)}")
    short = {target: _model_name(target) for target in targets}
    return {
        target: name if list(short.values()).count(name) == 1 else target.replace("/", "@")
        for target, name in short.items()
    }


def _model_name(target: str) -> str:
    if target.endswith(".onnx") or target.startswith((".", "/")):
        path = Path(target)
        return path.stem if path.suffix else path.name
    return target.partition("@")[0].partition("/")[0]
