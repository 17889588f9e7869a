"""Environment variables that switch something on or off."""

from __future__ import annotations

import os

from onward.registry.errors import UsageError


def is_on(name: str) -> bool:
    """Whether an environment variable is set to 1, true, yes or on.

    Args:
        name: The variable's name.

    Raises:
        UsageError: It has another value, and does not say 0, false, no or off either.
    """
    value = os.environ.get(name, "").lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise UsageError(f"{name}: {value!r} is not valid: set it to 1 or 0")
