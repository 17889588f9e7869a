"""Onward's errors, and the exit code of a command that ends with one.

OnwardError                    1
├── Refused                    1   a gate or a check failed
├── UsageError                 2   wrong usage or configuration; the message says where and what to do
│   └── NotReady               2   something that is needed first is missing
├── LostRace                   3   another promotion or rollback was faster
├── StoreUnreachable           4   the tracking server or store cannot be reached, or its answer is invalid
│   └── StoreMissing           4   there is no store at the given place
└── MachineFault               5   a fault of this machine: disk, permissions, memory, ONNX Runtime, a defect of Onward
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The exit codes that shells expect after Ctrl-C and after a closed pipe: 128 plus the number of the signal.
INTERRUPTED, READER_GONE = 130, 141
# Faults of the machine that a person has to correct; they say nothing about a model.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OPERATOR_FAULTS = (*DISK_FULL, errno.EACCES, errno.EROFS)


class OnwardError(Exception):
    """Base of all errors. The message says what is wrong, where, and what to do next."""

    exit_code = 1


class Refused(OnwardError):
    """A gate or a check failed; nothing was changed."""


class UsageError(OnwardError):
    """A mistake in params.yaml, in an argument, or in a file from the user."""

    exit_code = 2


class NotReady(UsageError):
    """Something that is needed first is missing or wrong: an earlier report, an importable module, a store.

    A stage with this error computes nothing and gives no verdict. Any other UsageError in a stage is a verdict.
    """


class LostRace(OnwardError):
    """Another promotion or rollback was appended first, so this one does not count."""

    exit_code = 3


class StoreUnreachable(OnwardError):
    """The MLflow server or store did not answer, or its answer is invalid.

    It is unknown whether anything was changed, unless the message says so.
    """

    exit_code = 4


class StoreMissing(StoreUnreachable):
    """There is no store at the given place, and this command must not create one."""


class MachineFault(OnwardError):
    """A fault of this machine: its disk, permissions or memory, or ONNX Runtime while it runs."""

    exit_code = 5


@contextmanager
def saying(done: Callable[[], str]) -> Iterator[None]:
    """Add to an OnwardError what was already done when it occurred.

    Args:
        done: Returns a sentence about what was done; "" for nothing.
    """
    try:
        yield
    except OnwardError as error:
        sentence = done()
        raise (type(error)(f"{error}. {sentence}") if sentence else error) from error.__cause__
