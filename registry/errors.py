"""Every error that Onward raises on purpose, and the exit code that a command ends with when it meets one.

OnwardError                    1
├── Refused                    1   a gate or a check said no
├── UsageError                 2   wrong usage or configuration: the message says where and what to do
│   └── NotReady               2   something that has to be there first is missing
├── LostRace                   3   someone else got there first
├── StoreUnreachable           4   the tracking server or store could not be reached, or answers nonsense
│   └── StoreMissing           4   there is no store where one is looked for
└── MachineFault               5   this machine cannot do it: disk, permissions, memory, ONNX Runtime, our own defects
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Faults of the machine that a person has to correct; they say nothing about a model.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OPERATOR_FAULTS = (*DISK_FULL, errno.EACCES, errno.EROFS)


class OnwardError(Exception):
    """The base: its message says what is wrong, where, and what to do next."""

    exit_code = 1


class Refused(OnwardError):
    """A gate or a check said no; nothing was changed."""


class UsageError(OnwardError):
    """A mistake in params.yaml, in an argument, or in a file that the user named."""

    exit_code = 2


class NotReady(UsageError):
    """What has to be there first is missing or wrong: an earlier report, a module that does not import, a store. A
    stage that meets this computes nothing and gives no verdict. Any other UsageError in a stage is a verdict."""


class LostRace(OnwardError):
    """Another promotion or rollback was appended first; nothing of this one counts."""

    exit_code = 3


class StoreUnreachable(OnwardError):
    """The MLflow server or store did not answer, or answered nonsense. Whether something was changed is not known,
    unless the message says it."""

    exit_code = 4


class StoreMissing(StoreUnreachable):
    """There is no store where one is looked for, and this is not the place to make one."""


class MachineFault(OnwardError):
    """This machine cannot do what was asked: its disk, permissions or memory, or ONNX Runtime while it runs."""

    exit_code = 5


@contextmanager
def saying(done: Callable[[], str]) -> Iterator[None]:
    """Add to an error of Onward's what was done until it was met, where that is something: `done` says it."""
    try:
        yield
    except OnwardError as error:
        words = done()
        raise (type(error)(f"{error}. {words}") if words else error) from error.__cause__
