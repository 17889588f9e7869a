"""Calls a function in a forked process: exporters, optimisers and quantisers run native code that may abort.

Fork, not spawn: the function's arguments and the modules it needs are there already. So a stage that isolates calls
must not have started threads of its own; none imports torch or onnxruntime outside an isolated call.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

from registry.errors import OnwardError
from stages.runtime.pool import WorkerFailure, death, kernel_kills

P = ParamSpec("P")
R = TypeVar("R")


def call(timeout: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`function(*args, **kwargs)`, computed in a forked process; the result must be picklable.

    Raises:
        WorkerFailure: it raised, died of a signal, or took longer than `timeout` seconds.
        OnwardError: it raised one, for instance a UsageError; Killed, if it was killed from outside.
        OSError: it raised one with an errno, such as a full disk.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()
    kills = kernel_kills()
    process = context.Process(target=_body, args=(theirs, function, args, kwargs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise WorkerFailure("timed out", f"no result within {timeout:g} s")
        try:
            outcome, value = ours.recv()
        except EOFError:
            process.join()
            name = getattr(function, "__name__", "a call").strip("_")
            raise death(name, process.exitcode or 0, kills=kills) from None
    finally:
        if process.is_alive():
            process.join(0.5)
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()
    if outcome == "raised":
        raise value
    result: R = value
    return result


def _body(pipe: Connection, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    try:
        outcome: tuple[str, Any] = ("returned", function(*args, **kwargs))
    except (OnwardError, WorkerFailure) as error:
        outcome = ("raised", error)
    except OSError as error:
        outcome = ("raised", OSError(error.errno, error.strerror, error.filename) if error.errno else _failure(error))
    except BaseException as error:
        full = os.strerror(errno.ENOSPC)  # native libraries say it in words alone
        outcome = ("raised", OSError(errno.ENOSPC, full) if full in str(error) else _failure(error))
    pipe.send(outcome)
    pipe.close()


def _failure(error: BaseException) -> WorkerFailure:
    """The failure, which the report will tell; on the terminal, where in the code it came up."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " > ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
    print(f"{type(error).__name__} at {where}", file=sys.stderr)
    return WorkerFailure("error", f"{type(error).__name__}: {error}")
