"""A table of measured figures and their limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One row: a figure, its limit, what was measured, and whether it is within the limit."""

    figure: str
    wanted: str
    found: str
    held: bool


def table(findings: list[Finding]) -> str:
    """The findings as a Markdown table."""
    lines = ["| figure | limit | measured | met |", "|---|---|---|---|"]
    lines += [f"| {f.figure} | {f.wanted} | {f.found} | {'yes' if f.held else '**no**'} |" for f in findings]
    return "\n".join(lines) + "\n"
