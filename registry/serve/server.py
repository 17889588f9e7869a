"""Loads models, starts the HTTP server, and follows the environments until the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from onward.registry.inference.session import InferenceSession
from onward.registry.serve import request_log, tracing
from onward.registry.serve.access import Access
from onward.registry.serve.batching import Batching
from onward.registry.serve.candidates import attach
from onward.registry.serve.following import Follower
from onward.registry.serve.limits import Limits
from onward.registry.serve.metrics import Metrics
from onward.registry.serve.names import names_of
from onward.registry.serve.queued import QueuedObserver
from onward.registry.serve.request_log import RequestLog
from onward.registry.serve.rest import Rest
from onward.registry.serve.served import ServedModel, Sizes

_LOG = logging.getLogger("onward.serve")
# How long an idle connection stays open. It is longer than the idle time-outs of usual proxies, so that the proxy
# closes first: a request on a connection that the server closes at that moment is lost.
_KEEP_ALIVE_S = 75


@dataclass(frozen=True)
class Options:
    """How the server runs.

    Attributes:
        host: the address that it listens on.
        port: the port; 0 for any free one.
        grpc_port: the port of gRPC; 0 for any free one, None for no gRPC.
        poll: seconds between two looks at an environment.
        queue: requests per model that may wait.
        workers: runs per model at the same time; None for as many as there are processors for.
        batch_delay_ms: the longest time that a request waits for others to be joined with, in ms; 0 joins nothing.
        max_batch: the most samples of a batch; None for the best size of the version's batch sweep, or 32.
        shadows: MODEL@ENVIRONMENT whose version also computes a share of the live version's requests.
        shadow_share: that share, 0 to 1.
        canaries: the percentage of requests that a candidate answers, by its MODEL@ENVIRONMENT.
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
    batch_delay_ms: float = 0.0
    max_batch: int | None = None
    shadows: tuple[str, ...] = ()
    shadow_share: float = 0.1
    canaries: Mapping[str, float] = field(default_factory=dict)
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
        sizes = Sizes(Batching(options.queue, options.batch_delay_ms / 1000, options.max_batch), options.workers)
        for target, name in names_of(targets).items():
            session = InferenceSession(target, allow_cached=True)
            self.models[name] = ServedModel(target, name, session, self.metrics, sizes)
            self.models[name].start()
        self._observers: list[QueuedObserver] = []
        if request_log.is_on():
            for model in self.models.values():
                model.observers.append(RequestLog())
        self._spans = tracing.from_environment()
        if self._spans is not None:
            for model in self.models.values():
                model.observers.append(self._spans)
        self._candidates = attach(self.models, options, self.metrics)
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
                timeout_keep_alive=_KEEP_ALIVE_S,
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
        self._uvicorn.run()

    def observe(self, observer: QueuedObserver) -> None:
        """Let an observer see the requests of all models, until the server ends.

        Args:
            observer: the observer, which is started.
        """
        for model in self.models.values():
            model.observers.append(observer)
        self._observers.append(observer)
        observer.start()

    @contextlib.asynccontextmanager
    async def _beside(self, _: Starlette) -> AsyncIterator[None]:
        """What runs beside the HTTP server: gRPC, on the same event loop.

        Models and observers end here and not after `run`, because uvicorn raises the signal again that ended it.
        """
        try:
            async with self._grpc():
                yield
        finally:
            self._stop.set()
            self._look.set()
            for model in self.models.values():
                await asyncio.to_thread(model.close)
            for observer in (*self._observers, self._spans):
                if observer is not None:
                    await asyncio.to_thread(observer.close)

    @contextlib.asynccontextmanager
    async def _grpc(self) -> AsyncIterator[None]:
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
        while not self.port and not self._stop.wait(0.05):
            continue
        grpc = f" and, for gRPC, {self.options.host}:{self.grpc_port}" if self.grpc_port else ""
        _LOG.info("listens on %s:%d%s", self.options.host, self.port, grpc)
        self._follow_each(self._candidates)
        while not self._stop.is_set():
            self._look.wait(self.options.poll)
            self._look.clear()
            self._follow_each([*self.models.values(), *self._candidates])

    def _follow_each(self, followed: Sequence[ServedModel | Follower]) -> None:
        for one in followed:
            if self._stop.is_set():
                return
            try:
                one.follow()
            except Exception:
                _LOG.exception("%s: following its environment failed; the loaded version stays", one.target)
