"""What both readers of params.yaml (registry/gates/policy.py, stages/params.py) refuse before they look at what it
says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onward.registry.errors import UsageError


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


def parse(text: str) -> Any:
    """What YAML says, every key once: of a name that stands twice, the last would win unnoticed.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice in one mapping.
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
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value)
        _require_once(value, known)


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
