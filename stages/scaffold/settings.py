"""Writes the usual settings into the models of params.yaml, so that `dvc exp run -S` can change them.

DVC refuses to change a key that params.yaml does not contain, unless it is written with a plus sign. So each model
names its usual settings with the value `default`, which means: as under `defaults`, else Onward's default.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

from onward.stages.config.load import INHERITED
from onward.stages.scaffold.params_text import end_of_content, line_start

USUAL = {
    "export": ("opset", "strategy"),
    "tolerance": ("rtol", "atol"),
    "optimize": ("candidates",),
    "quantize": ("candidates", "calibration_samples"),
    "benchmark": ("search_seconds", "finalists", "rounds", "race_seconds"),
    "budget": ("quality_drop", "latency_ms", "size_mb", "memory_mb"),
}
COMMENT = "# Settings that `dvc exp run -S` can change; `default` is the value under `defaults`, else Onward's."


def values() -> dict[str, dict[str, str]]:
    """The usual settings, as params.yaml is read."""
    return {section: dict.fromkeys(keys, INHERITED) for section, keys in USUAL.items()}


def lines() -> list[str]:
    """The lines that say `values`."""
    return [COMMENT, *(_line(section, keys) for section, keys in USUAL.items())]


def with_settings(text: str) -> str:
    """Add the usual settings that are missing to the models of params.yaml, and change nothing else.

    Args:
        text: params.yaml.

    Returns:
        The new text. A model to which they cannot be added so, such as one in braces, stays as it is.
    """
    for name in _models(_parse(text)):
        content = _parse(text)
        changed = _changed(text, name)
        if _models(content).get(name) and _parse(changed) == _expected(content, name):
            text = changed
    return text


def _parse(text: str) -> Any:
    """What a YAML text says; None if it is not YAML."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None


def _models(content: Any) -> dict[str, Any]:
    models = content.get("models") if isinstance(content, dict) else None
    return (
        {name: model for name, model in models.items() if isinstance(model, dict)} if isinstance(models, dict) else {}
    )


def _expected(content: Any, name: str) -> Any:
    """A file's content with all usual settings of one model."""
    content = _separate(content)
    model = content["models"][name]
    for section, keys in USUAL.items():
        settings = model.setdefault(section, {})
        if isinstance(settings, dict):
            for key in keys:
                settings.setdefault(key, INHERITED)
    return content


def _separate(value: Any) -> Any:
    """A copy in which nothing is shared; YAML's anchors make values that are."""
    if isinstance(value, dict):
        return {key: _separate(item) for key, item in value.items()}
    return [_separate(item) for item in value] if isinstance(value, list) else value


def _changed(text: str, name: str) -> str:
    """The text with the settings added to one model; the same text if there is no place for them."""
    root = YAML(typ="safe", pure=True).compose(text)
    entry = _value(_value(root, "models"), name)
    if not isinstance(entry, MappingNode) or entry.flow_style or not entry.value:
        return text
    newline = "\r\n" if "\r\n" in text else "\n"
    edits: list[tuple[int, str]] = []
    missing: list[str] = []
    for section, keys in USUAL.items():
        node = _value(entry, section)
        if node is None:
            missing.append(_line(section, keys))
        elif isinstance(node, MappingNode):
            there = {key.value for key, _ in node.value}
            edits += _into(text, node, [f"{key}: {INHERITED}" for key in keys if key not in there], newline)
    if missing:
        edits.append(_below(text, entry, [COMMENT, *missing], newline))
    for position, addition in sorted(edits, reverse=True):  # from the end, so that earlier positions stay right
        text = text[:position] + addition + text[position:]
    return text


def _value(node: Any, key: str) -> Any:
    """The node of a key's value; None if there is none."""
    pairs = node.value if isinstance(node, MappingNode) else []
    return next((value for name, value in pairs if isinstance(name, ScalarNode) and name.value == key), None)


def _into(text: str, section: MappingNode, settings: list[str], newline: str) -> list[tuple[int, str]]:
    """The edit that adds settings to a section that exists, as (position, addition)."""
    if not settings:
        return []
    if not section.flow_style:
        return [_below(text, section, settings, newline)]
    brace = section.end_mark.index - 1
    while text[brace - 1] == " ":
        brace -= 1
    return [(brace, f"{', ' if section.value else ''}{', '.join(settings)}")]


def _below(text: str, mapping: MappingNode, added: list[str], newline: str) -> tuple[int, str]:
    """The edit that adds lines at the end of a mapping, as (position, addition)."""
    column = mapping.value[0][0].start_mark.column
    position = end_of_content(text, line_start(text, mapping.end_mark.index), column)
    apart = "" if text[:position].endswith("\n") else newline
    return position, apart + "".join(f"{' ' * column}{line}{newline}" for line in added)


def _line(section: str, keys: Collection[str]) -> str:
    return f"{section}: {{{', '.join(f'{key}: {INHERITED}' for key in keys)}}}"
