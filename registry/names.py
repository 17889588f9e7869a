"""Names of models and environments: what they may contain, so that they can be part of a path, a filter or a tag."""

from __future__ import annotations

import re

from onward.registry.errors import UsageError

# No dot: it separates environment and model in `production.cnn`. No slash, quote or space.
PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_NAME = re.compile(PATTERN)


def is_name(name: str) -> bool:
    """Whether `name` can be the name of a model or an environment."""
    return _NAME.fullmatch(name) is not None


def valid_name(name: str, what: str) -> str:
    """Return `name` if it can be the name of `what`: "a model" or "an environment".

    Raises:
        UsageError: it cannot.
    """
    if not is_name(name):
        raise UsageError(f"{name!r} is no name for {what}: letters, digits, - and _, a letter or digit first")
    return name
