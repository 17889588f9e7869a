"""Tables in Markdown, for descriptions. All cells are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onward.registry.text import markdown, markdown_table

# `markdown` escapes the point of a number, because a line that starts with one may be an item of a list.
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; "" without rows.

    Args:
        header: the titles of the columns.
        rows: the cells of each row; they are escaped.
    """
    return linked(header, [[cell if _NUMBER.fullmatch(cell) else markdown(cell) for cell in row] for row in rows])


def linked(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already, such as links; "" without rows.

    Args:
        header: the titles of the columns.
        rows: the cells of each row.
    """
    if not rows:
        return ""
    return markdown_table(map(markdown, header), rows)


def figure(value: float | None) -> str:
    """A number with four significant digits, or all digits before the point; "" for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
