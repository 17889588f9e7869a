"""The team's functions that a command line names, and what they may do to a command's output."""

from __future__ import annotations

import os
import sys

from pydantic import TypeAdapter, ValidationError

from onward.registry.errors import UsageError
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.config.source_files import defines, is_installed, locate
from onward.stages.config.values import CallableName


def require_callable_name(option: str, name: str) -> None:
    """Refuse what is not of the form `package.module:function`.

    Raises:
        UsageError: it is not; the message begins with `option`.
    """
    try:
        TypeAdapter(CallableName).validate_python(name)
    except ValidationError:
        raise UsageError(f"{option}: {name!r} is not of the form package.module:function") from None


def require_callable(option: str, name: str) -> None:
    """Import a function. It runs the team's code: call this in an isolated process.

    Raises:
        UsageError: it does not import; the message begins with `option`.
    """
    keep_stdout_clean()
    try:
        resolve(name)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error
    require_defined(option, name)


def require_defined(option: str, name: str) -> None:
    """Refuse a function that `onward stage params` would not find, since it reads the text of the module alone.

    Raises:
        UsageError: the text does not define it; the message begins with `option`.
    """
    module, _, attribute = name.partition(":")
    found = locate(module, paths.source_folders())
    if found is not None and not is_installed(found) and not defines(found, attribute):
        raise UsageError(f"{option}: {name}: the text of {found.name} does not define {attribute!r}; write it as a def")


def keep_stdout_clean() -> None:
    """Send what the team's code prints to stderr: stdout contains the command's own output."""
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def in_a_line(error: BaseException) -> str:
    """Type and first line of an error."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
