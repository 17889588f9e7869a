"""Checks names of models and environments, so that they can be part of a path, a filter or a tag."""

from __future__ import annotations

import re

from onward.registry.errors import UsageError

# No dot, because it separates environment and model in `production.cnn`. No slash, quote or space.
PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_NAME = re.compile(PATTERN)
# How messages describe the pattern.
NAME_RULE = "use letters, digits, - and _, starting with a letter or digit"


def is_name(name: str) -> bool:
    """Tell whether `name` can be the name of a model or an environment."""
    return _NAME.fullmatch(name) is not None


def valid_name(name: str, what: str) -> str:
    """Check a name.

    Args:
        name: The name.
        what: What it names: "a model" or "an environment".

    Returns:
        The name.

    Raises:
        UsageError: The name is not valid.
    """
    if not is_name(name):
        raise UsageError(f"{name!r} is not a valid name for {what}: {NAME_RULE}")
    return name


def tag_of(prefix: str, host: str) -> str:
    """The name of a host's tag, in the characters and the length that MLflow allows.

    Args:
        prefix: the beginning of the name.
        host: the host, or another name of a program.
    """
    return prefix + re.sub(r"[^A-Za-z0-9_.-]", "_", host)[:100]
