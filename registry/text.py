"""Text that somebody else wrote is data: no control sequence and no markup in it reaches a terminal or a page.

Reasons, names, tags and the metadata of models come from stores, files and other people. Everything that prints such
text, or hands it to something that interprets markup, passes it through this module.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

# Control characters, formatting (ESC, bidi, zero width), lone surrogates, line and paragraph separators.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
# Unicode counts these as letters, marks or symbols, and they show nothing: fillers, joiners, selectors, an empty cell.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
# These change how the character before them looks, and hide nothing.
_SELECTORS = re.compile("[\ufe00-\ufe0f]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_MARKDOWN = re.compile(
    r"""
    [\\`*\[\]~|]              # escapes, code, emphasis, links, pictures, tables
    | (?<![^\W_])_|_(?![^\W_])  # emphasis; an underscore inside a word is none
    | ^([\#>+=-]|\d+(?=[.)]))   # headings, quotations, lists, lines
    | :(?=[\w+-]+:)             # :emoji:
    | (?<!\S)@                  # a mention
    """,
    re.VERBOSE,
)


def printable(text: object) -> str:
    """`text` in one line, with what cannot be printed shown as an escape: ``\\x1b``, ``\\u202e``, ``\\n``."""
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
    """`text` with every run of white space, line breaks included, as one space; empty where it shows nothing."""
    line = " ".join(text.split())
    return line if is_visible(line) else ""


def is_visible(text: str) -> bool:
    """Whether `text` holds a character that shows: none is white space, a control or of zero width."""
    return any(unicodedata.category(c)[0] in "LNPS" and not _BLANK.match(c) for c in text)


def markdown(text: object) -> str:
    """`text` for a page that renders Markdown, as MLflow's descriptions do: it is shown as it is.

    Only what would be markup is escaped, so that the text stays readable where it is not rendered.
    """
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")
    return _MARKDOWN.sub(_escaped, line)


def _escaped(match: re.Match[str]) -> str:
    found = match[0]
    return f"{found}\\" if found.isdigit() else f"\\{found}"


def mathtext(text: object) -> str:
    """`text` for matplotlib, which takes what stands between two dollar signs for a formula."""
    return printable(text).replace("$", r"\$")


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: an argument whose bytes are no UTF-8 holds lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name is similar to `name`, else the empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def plain_words(reason: str) -> str:
    """Put a library's message on one line of at most 400 characters."""
    return re.sub(r"\s+", " ", reason).strip()[:400]
