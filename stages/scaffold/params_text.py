"""Adds an entry to the text of params.yaml and leaves everything else as it is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

from onward.registry.errors import UsageError

_BOM = "\ufeff"
_INDENT = 2


def insert_entry(text: str, lines: list[str], values: Mapping[str, Any]) -> str:
    """Append an entry to the mapping `models:`, behind its last entry.

    Comments and layout of the rest are kept. Only where `models:` is written in braces, ruamel.yaml rewrites the file
    first, which keeps comments and order.

    Args:
        text: params.yaml.
        lines: the entry, the line with its name first.
        values: the entry as it will be read, below its name.

    Returns:
        the new text, which says the same as before, and the entry.

    Raises:
        UsageError: there is no such text, for instance because `models:` is an alias.
    """
    bom, text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    before = _parse(text) or {}
    models = before.get("models") or {}
    wanted = {**before, "models": {**models, **values}}
    for candidate in _candidates(text, lines):
        try:
            after = _parse(candidate)
        except YAMLError:
            continue
        if after == wanted and list(after["models"]) == list(wanted["models"]):
            return bom + candidate
    entry = "\n".join(f"  {line}" for line in lines)
    raise UsageError(
        f"params.yaml: the entry could not be added without changing the rest; add it below models: by hand:\n{entry}"
    )


def _parse(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _candidates(text: str, lines: list[str]) -> Iterator[str]:
    newline = "\r\n" if "\r\n" in text else "\n"
    root = YAML(typ="safe", pure=True).compose(text)
    if root is None:
        yield _joined(text, [f"models:{newline}", *_indented(lines, _INDENT, newline)], newline)
        return
    pairs = {key.value: (key, value) for key, value in root.value if isinstance(key, ScalarNode)}
    if "models" not in pairs:
        end = end_of_content(text, root.end_mark.index)
        block = [newline, f"models:{newline}", *_indented(lines, _INDENT, newline)]
        yield _joined(text[:end], block, newline) + text[end:]
        return
    key, models = pairs["models"]
    if isinstance(models, ScalarNode) or not models.value:
        yield from _into_empty(text, key.end_mark.index, models, lines, newline)
    elif isinstance(models, MappingNode) and not models.flow_style:
        yield from _behind_last(text, models, lines, newline)
    else:
        yield from _behind_last(*_in_blocks(text), lines, newline)


def _into_empty(text: str, key_end: int, models: Any, lines: list[str], newline: str) -> Iterator[str]:
    """Below `models:` without a value, or in place of `{}`, `null` or `~`."""
    start, end = models.start_mark.index, models.end_mark.index
    said = text[start:end]
    if said.strip("{} \r\n\t") == "" or said in ("null", "Null", "NULL", "~"):
        rest = f"{text[:start].rstrip(' ')}{text[end:]}" if start > key_end else text
    else:
        rest = text
    line_end = rest.find("\n", key_end)
    cut = len(rest) if line_end < 0 else line_end + 1
    yield _joined(rest[:cut], _indented(lines, _INDENT, newline), newline) + rest[cut:]


def _behind_last(text: str, models: MappingNode, lines: list[str], newline: str) -> Iterator[str]:
    """Behind the last entry, before the blank lines and comments of what follows; else right before what follows."""
    column = models.value[0][0].start_mark.column
    end = line_start(text, models.end_mark.index)
    positions = [end_of_content(text, end, column), end]
    for position in positions:
        apart = [] if text[:position].endswith((newline * 2, "\n\n")) else [newline]
        block = [*apart, *_indented(lines, column, newline)]
        yield _joined(text[:position], block, newline) + text[position:]


def _in_blocks(text: str) -> tuple[str, MappingNode]:
    """The same text with `models:` in lines of their own instead of in braces, and the node of `models`."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**16
    content = yaml.load(text)
    content["models"].fa.set_block_style()
    buffer = io.StringIO()
    yaml.dump(content, buffer)
    written = buffer.getvalue()
    root = YAML(typ="safe", pure=True).compose(written)
    return written, next(value for key, value in root.value if key.value == "models")


def _indented(lines: list[str], column: int, newline: str) -> list[str]:
    return [f"{' ' * column}{line}{newline}" for line in lines]


def _joined(head: str, block: list[str], newline: str) -> str:
    return head + ("" if not head or head.endswith("\n") else newline) + "".join(block)


def line_start(text: str, index: int) -> int:
    """Find where the line of `index` begins; the end of the text where nothing but spaces is left."""
    if not text[index:].strip():
        return len(text)
    return text.rfind("\n", 0, index) + 1


def end_of_content(text: str, end: int, column: int = 0) -> int:
    """Find the end of the last line before `end` that is neither blank nor a comment left of `column`."""
    kept = text[:end]
    while kept:
        start = kept.rfind("\n", 0, -1) + 1
        line = kept[start:]
        bare = line.strip()
        indentation = len(line) - len(line.lstrip(" "))
        if bare and not (bare.startswith("#") and indentation < column):
            return len(kept)
        kept = kept[:start]
    return 0
