"""What both readers of params.yaml (registry/policy.py, stages/params.py) refuse before they look at what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.errors import UsageError


def load(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read a YAML file with a parser.

    Raises:
        UsageError: it is no UTF-8, or an alias in it stands inside what it stands for, or it is nested too deep.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path.name}: line {line}: is no UTF-8: save the file as UTF-8") from None
    try:
        found = parse(text)
        if _is_circular(found, set(), set()):
            raise UsageError(f"{path.name}: holds itself: an alias (*name) stands inside what it is the name of")
    except RecursionError:
        raise UsageError(f"{path.name}: is nested too deep") from None
    return found


def _is_circular(value: Any, above: set[int], known: set[int]) -> bool:
    """Whether a container holds itself. `known` are those that were looked through: an alias may be used often."""
    if not isinstance(value, dict | list) or id(value) in known:
        return False
    if id(value) in above:
        return True
    above.add(id(value))
    inside = value.values() if isinstance(value, dict) else value
    found = any(_is_circular(item, above, known) for item in inside)
    above.discard(id(value))
    known.add(id(value))
    return found
