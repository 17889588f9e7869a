"""Loads params.yaml and rejects malformed content, for registry/gates/policy.py and stages/params.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onward.registry.errors import UsageError


def load(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read a YAML file.

    Args:
        path: The file.
        parse: Converts its text to a value.

    Returns:
        The value.

    Raises:
        UsageError: The file is not UTF-8, is too deeply nested, or has an alias inside the value that it refers to.
        OSError: The file cannot be read.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path.name}: line {line}: is not UTF-8: save the file as UTF-8") from None
    try:
        found = parse(text)
        if _is_circular(found, set(), set()):
            raise UsageError(f"{path.name}: is circular: an alias (*name) is inside the value that it refers to")
    except RecursionError:
        raise UsageError(f"{path.name}: is nested too deeply") from None
    return found


def parse(text: str) -> Any:
    """Parse YAML and reject duplicate keys, because PyYAML silently uses the last one.

    Args:
        text: The YAML text.

    Returns:
        The value.

    Raises:
        yaml.YAMLError: The text is not YAML, or a key occurs twice in a mapping.
    """
    import yaml

    _require_once(yaml.compose(text, Loader=yaml.SafeLoader), set())
    return yaml.safe_load(text)


def _require_once(node: Any, known: set[int]) -> None:
    import yaml

    if node is None or id(node) in known or isinstance(node, yaml.ScalarNode):
        return
    known.add(id(node))
    if not isinstance(node, yaml.MappingNode):
        for item in node.value:
            _require_once(item, known)
        return
    seen = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value} occurs twice", key.start_mark)
            seen.add(key.value)
        _require_once(value, known)


def _is_circular(value: Any, above: set[int], known: set[int]) -> bool:
    """Whether a container contains itself. `known` has the checked containers, because an alias may occur often."""
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
