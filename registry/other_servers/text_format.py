"""Writes protobuf's text format.

    to_text([("name", "cnn"), ("input", [("data_type", Symbol("TYPE_FP32")), ("dims", -1)])])

A message is a list of fields. A field that occurs several times is repeated. Strings are escaped, so that no name can
end a string and add fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_PLAIN = frozenset(range(0x20, 0x7F)) - set(b"\"\\'")


@dataclass(frozen=True)
class Symbol:
    """The name of an enumeration's value.

    Attributes:
        name: the name.
    """

    name: str


Field: TypeAlias = tuple[str, "str | int | bool | Symbol | Message"]
Message: TypeAlias = Sequence[Field]


def to_text(message: Message) -> str:
    """Write a message.

    Args:
        message: its fields.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def quoted(text: str) -> str:
    """A string literal: printable ASCII as it is, every other byte of its UTF-8 form as an octal escape."""
    return '"' + "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _lines(message: Message, indent: str) -> Iterable[str]:
    for name, value in message:
        if isinstance(value, Symbol):
            yield f"{indent}{name}: {value.name}"
        elif isinstance(value, bool):
            yield f"{indent}{name}: {str(value).lower()}"
        elif isinstance(value, int):
            yield f"{indent}{name}: {value}"
        elif isinstance(value, str):
            yield f"{indent}{name}: {quoted(value)}"
        else:
            yield f"{indent}{name} {{"
            yield from _lines(value, f"{indent}  ")
            yield f"{indent}}}"
