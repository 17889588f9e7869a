"""Calls a function in a forked process: exporters, optimisers and quantisers run native code that may abort.

Fork, not spawn: the function's arguments and the modules it needs are there already. So a stage that isolates calls
must not have started threads of its own; none imports torch or onnxruntime outside an isolated call.
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

from onward.registry.errors import OnwardError
from onward.stages.config import paths
from onward.stages.workers.worker import OPERATORS, Killed, WorkerFailure, death, kernel_kills

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def call(timeout: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`function(*args, **kwargs)`, computed in a forked process; the result must be picklable.

    Raises:
        WorkerFailure: it raised, died of a signal, or took longer than `timeout` seconds.
        OnwardError: it raised one, for instance a UsageError; Killed, if it was killed from outside.
        OSError: it raised one that an operator has to set right, such as a full disk.
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
    """A call that came to nothing, and why."""

    error: WorkerFailure | OnwardError


class Isolated(Generic[T, R]):
    """A forked process that computes one function of many arguments, so that what it imports is imported once. Where a
    call takes the process down, the next one gets another. The function may be a closure; arguments and results must
    be picklable."""

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
        """The result, or why there is none: the call raised, died of a signal, or took too long.

        Raises:
            Killed: the process was killed from outside.
            OSError: the call raised one that an operator has to set right, such as a full disk.
        """
        self.begin(argument)
        return self.finish()

    def begin(self, argument: T) -> None:
        """Start a call once those begun before are over, and go on with something else until `finish`."""
        _, pipe = self._started()
        self._begun.append(argument)
        _send(pipe, argument)

    def finish(self) -> R | Failed:
        """What came of the first call begun and not finished; `timeout` counts from here. Raises as `call` does."""
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
            for argument in self._begun:  # those that the process before this one did not live to see
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
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the process has died: finish says of what
        pipe.send(argument)


def _serve(pipe: Connection[Any, Any], theirs: Connection[Any, Any], function: Callable[..., Any]) -> None:
    theirs.close()
    try:
        while True:
            outcome = _outcome(function, pipe.recv())
            try:
                pipe.send(outcome)
            except (pickle.PicklingError, TypeError, AttributeError) as error:  # a result that cannot be handed over
                pipe.send(("raised", _failure(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the parent is done with this process, and does not read what it would still say


def _outcome(function: Callable[..., Any], argument: Any) -> tuple[str, Any]:
    try:
        return "returned", function(argument)
    except (OnwardError, WorkerFailure) as error:
        return "raised", error
    except OSError as error:
        theirs = error.errno in OPERATORS
        return "raised", OSError(error.errno, error.strerror, error.filename) if theirs else _failure(error)
    except BaseException as error:
        full = os.strerror(errno.ENOSPC)  # native libraries say it in words alone
        return "raised", OSError(errno.ENOSPC, full) if full in str(error) else _failure(error)


def _failure(error: BaseException) -> WorkerFailure:
    """The failure, with the line of the team's own code that raised it, if one did."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    own = next((frame for frame in frames if _is_teams(frame.filename)), None)
    where = f" ({paths.without_paths(own.filename)}:{own.lineno})" if own else ""
    return WorkerFailure("error", f"{type(error).__name__}: {error}{where}")


def _is_teams(filename: str) -> bool:
    """Whether a source file lies in the project, and is neither an installed package nor Onward's own."""
    path = Path(filename).resolve()
    ours = Path(__file__).resolve().parents[1]
    return path.is_relative_to(paths.root()) and "site-packages" not in path.parts and not path.is_relative_to(ours)
