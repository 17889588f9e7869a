"""YAML for values in one line, read alike by YAML 1.1 (PyYAML, in the registry) and YAML 1.2 (ruamel.yaml, DVC)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def inline(value: Any) -> str:
    """A text, number, list or mapping as YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(key)}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    """A text as it is where both versions of YAML read it as that text, else in double quotes."""
    if re.fullmatch(r"[A-Za-z0-9_./][\w./-]*(:[A-Za-z_]\w*)?", text, re.ASCII) and _read(text) == [text, text]:
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    return quoted.rstrip("\n")


def _read(text: str) -> list[Any]:
    try:
        return [yaml.safe_load(text), YAML(typ="safe", pure=True).load(text)]
    except (yaml.YAMLError, YAMLError, ValueError):  # ValueError: of a date that does not exist
        return []
