"""What a benchmark found, held against what was wanted, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    figure: str
    wanted: str
    found: str
    held: bool


def table(findings: list[Finding]) -> str:
    """The findings as Markdown."""
    lines = ["| figure | wanted | found | held |", "|---|---|---|---|"]
    lines += [f"| {f.figure} | {f.wanted} | {f.found} | {'yes' if f.held else '**no**'} |" for f in findings]
    return "\n".join(lines) + "\n"
