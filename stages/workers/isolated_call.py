"""Calls a function in a forked process, because exporters, optimisers and quantisers run native code that may abort.

Processes are forked, not spawned: they inherit the function's arguments and all imported modules. Forking is unsafe
while other threads run. So stages that use isolated calls start no threads, and import torch and onnxruntime inside
isolated calls only.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from onward.registry.errors import OPERATOR_FAULTS, OnwardError
from onward.stages.config import paths
from onward.stages.workers.worker import Killed, WorkerFailure, death, kernel_kills

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def call(timeout: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Compute `function(*args, **kwargs)` in a forked process.

    Args:
        timeout: Time limit, in seconds.
        function: The function; it may be a closure.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The function's result, which must be picklable.

    Raises:
        WorkerFailure: The function raised, its process died of a signal, or it took longer than `timeout`.
        OnwardError: The function raised this error, such as UsageError.
        Killed: The process was killed from outside.
        OSError: The function raised an error that the user must fix, such as a full disk.
    """
    process: Isolated[None, R] = Isolated(
        lambda _: function(*args, **kwargs), timeout, getattr(function, "__name__", "a call")
    )
    with process:
        outcome = process.call(None)
    if isinstance(outcome, Failed):
        raise outcome.error
    return outcome


@dataclass(frozen=True)
class Failed:
    """The reason why a call has no result."""

    error: WorkerFailure | OnwardError


class Isolated(Generic[T, R]):
    """A forked process that calls one function many times, so that imports run only once.

    If a call ends the process, the next call starts a new one.

    Args:
        function: The function; it may be a closure. Its argument and result must be picklable.
        timeout: Time limit per call, in seconds.
        name: Name of the function, for messages.
    """

    def __init__(self, function: Callable[[T], R], timeout: float, name: str) -> None:
        self.function, self.timeout, self.name = function, timeout, name.strip("_")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._begun: deque[T] = deque()
        self._kills = 0

    def __enter__(self) -> Isolated[T, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def call(self, argument: T) -> R | Failed:
        """Call the function and wait for its result.

        Returns:
            The result, or why there is none: the call raised, the process died of a signal, or the time ran out.

        Raises:
            Killed: The process was killed from outside.
            OSError: The call raised an error that the user must fix, such as a full disk.
        """
        self.begin(argument)
        return self.finish()

    def begin(self, argument: T) -> None:
        """Queue a call behind those begun earlier, without waiting for it; `finish` returns its result."""
        _, pipe = self._started()
        self._begun.append(argument)
        _send(pipe, argument)

    def finish(self) -> R | Failed:
        """Wait for the oldest call that was begun and not finished. Its `timeout` starts now.

        Returns:
            The result, or why there is none, as `call` does.

        Raises:
            Killed: The process was killed from outside.
            OSError: The call raised an error that the user must fix, such as a full disk.
        """
        process, pipe = self._started()
        self._begun.popleft()
        try:
            if not pipe.poll(self.timeout):
                self._end()
                return Failed(WorkerFailure("timed out", f"no result within {self.timeout:g} s"))
            outcome, value = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            process.join()
            found = death(self.name, process.exitcode or 0, kills=self._kills)
            self._end()
            if isinstance(found, Killed):
                raise found from None
            return Failed(found)
        if outcome == "returned":
            result: R = value
            return result
        if isinstance(value, OSError | Killed):
            raise value
        return Failed(value)

    def _started(self) -> tuple[multiprocessing.process.BaseProcess, Connection[Any, Any]]:
        if self._process is None or self._pipe is None:
            context = multiprocessing.get_context("fork")
            self._pipe, theirs = context.Pipe()
            self._kills = kernel_kills()
            sys.stdout.flush()
            sys.stderr.flush()
            self._process = context.Process(target=_serve, args=(theirs, self._pipe, self.function))
            self._process.start()
            theirs.close()
            for argument in self._begun:  # queued calls that the previous process did not answer
                _send(self._pipe, argument)
        return self._process, self._pipe

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(0.2)
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def _send(pipe: Connection[Any, Any], argument: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the process has died: `finish` reports why
        pipe.send(argument)


def _serve(pipe: Connection[Any, Any], theirs: Connection[Any, Any], function: Callable[..., Any]) -> None:
    theirs.close()
    try:
        while True:
            outcome = _outcome(function, pipe.recv())
            try:
                pipe.send(outcome)
            except (pickle.PicklingError, TypeError, AttributeError) as error:  # the result cannot be pickled
                pipe.send(("raised", _failure(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the parent has closed the pipe and reads no further answers


def _outcome(function: Callable[..., Any], argument: Any) -> tuple[str, Any]:
    try:
        return "returned", function(argument)
    except (OnwardError, WorkerFailure) as error:
        return "raised", error
    except OSError as error:
        is_for_user = error.errno in OPERATOR_FAULTS
        return "raised", OSError(error.errno, error.strerror, error.filename) if is_for_user else _failure(error)
    except BaseException as error:
        full = os.strerror(errno.ENOSPC)  # native libraries give the text only, not the error number
        return "raised", OSError(errno.ENOSPC, full) if full in str(error) else _failure(error)


def _failure(error: BaseException) -> WorkerFailure:
    """Describe an error, with the innermost line of the team's own code in its traceback, if there is one."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    own = next((frame for frame in frames if _is_team_code(frame.filename)), None)
    where = f" ({paths.without_paths(own.filename)}:{own.lineno})" if own else ""
    return WorkerFailure("error", f"{type(error).__name__}: {error}{where}")


def _is_team_code(filename: str) -> bool:
    """Whether a source file is in the project and belongs neither to an installed package nor to Onward."""
    path = Path(filename).resolve()
    stages = Path(__file__).resolve().parents[1]
    return path.is_relative_to(paths.root()) and "site-packages" not in path.parts and not path.is_relative_to(stages)
