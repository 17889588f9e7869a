"""Escapes untrusted text, so that it cannot bring control sequences or markup to a terminal or a page.

Reasons, names, tags and the metadata of models come from stores, files and other people. All code that prints such text
or passes it to something that interprets markup uses this module.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

# Control characters, formatting (ESC, bidi, zero width), lone surrogates, line and paragraph separators.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
# Unicode classifies these as letters, marks or symbols, but they are invisible: fillers, joiners, selectors, an empty
# Braille cell.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# These change only the appearance of the character before them, so they are not escaped.
_SELECTORS = re.compile("[\ufe00-\ufe0f]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_MARKDOWN = re.compile(
    r"""
    [\\`*\[\]~|]              # escapes, code, emphasis, links, pictures, tables
    | (?<![^\W_])_|_(?![^\W_])  # emphasis; not an underscore inside a word
    | ^([\#>+=-]|\d+(?=[.)]))   # headings, quotations, lists, lines
    | :(?=[\w+-]+:)             # :emoji:
    | (?<!\S)@                  # a mention
    """,
    re.VERBOSE,
)


def printable(text: object) -> str:
    r"""Convert `text` to one line, with unprintable characters as escapes: ``\x1b``, ``\u202e``, ``\n``."""
    return "".join(map(_shown, str(text)))


def _shown(character: str) -> str:
    if " " <= character <= "~":
        return character
    if character in _SHORT:
        return _SHORT[character]
    kind = unicodedata.category(character)
    if kind == "Zs":
        return " "
    if kind in _HIDDEN or (_BLANK.match(character) and not _SELECTORS.match(character)):
        number = ord(character)
        return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return character


def one_line(text: str) -> str:
    """Replace each run of white space in `text`, including line breaks, by a space; "" if nothing is visible."""
    line = " ".join(text.split())
    return line if is_visible(line) else ""


def first_line(error: Exception) -> str:
    """The first line of an error's message; the error's class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_visible(text: str) -> bool:
    """Tell whether `text` contains a visible character: not white space, a control character or of zero width."""
    return any(unicodedata.category(character)[0] in "LNPS" and not _BLANK.match(character) for character in text)


def markdown(text: object) -> str:
    """Escape `text` for a page that renders Markdown, such as MLflow's descriptions.

    Only markup is escaped, so that the text is also readable without rendering.

    Args:
        text: The text; it is converted with `str`.

    Returns:
        One line of Markdown that is displayed as the text.
    """
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")
    return _MARKDOWN.sub(_escaped, line)


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    return f"{found}\\" if found.isdigit() else f"\\{found}"


def is_unicode(text: str) -> bool:
    """Tell whether `text` can be encoded as UTF-8. Arguments that are not UTF-8 contain lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name is similar to `name`, else the empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown.

    Args:
        header: the titles of the columns, as Markdown.
        rows: the cells of each row, as Markdown.
    """
    titles = list(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *rows))


def cut_after_line(text: str, most: int, ending: str) -> str:
    """A text without its last lines, if it is longer than `most` characters.

    Args:
        text: the text.
        most: the largest number of characters.
        ending: what follows the last line that is left.
    """
    return text if len(text) <= most else text[: most - len(ending)].rpartition("\n")[0] + ending


def plain_words(reason: str) -> str:
    """Put a library's message on one line of at most 400 characters."""
    return re.sub(r"\s+", " ", reason).strip()[:400]
