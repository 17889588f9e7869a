"""Numbers and units in words, in the same way in the page and on the terminal."""

from __future__ import annotations

import math


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; large ones with separators of thousands, and without an exponent."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "not a number")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def milliseconds(value: float) -> str:
    """A time with its unit: "0.032 ms", "1,204 ms"."""
    return f"{number(value)} ms"


def megabytes(size: float) -> str:
    """A size with its unit, which depends on the size: "12.3 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{number(size / factor)} {unit}"
    return f"{size:.0f} B"


def percent(share: float) -> str:
    """A share in per cent: "0.8 %", "100 %"."""
    if not math.isfinite(share):
        return number(share)
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def counted(count: int, noun: str) -> str:
    """A count and a noun, in the plural unless the count is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
