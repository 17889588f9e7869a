"""Write the report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.peers.judging import Row, best_peer, rows
from benchmarks.peers.recipes import ARCHITECTURES, TITLES
from benchmarks.peers.results import Entry, Hosts, Measured, Result, Speed

HOLDS = {True: "yes", False: "**no**", None: "not measured"}


def report(hosts: Hosts) -> str:
    """The whole page: for each kind of host the targets, and then one table per architecture."""
    lines = ["# Onward against its peers", ""]
    lines += [
        "Made by `python -m benchmarks.against_peers`. Latencies are medians of all calls, in milliseconds. Ratios use",
        "the medians of the fastest quarter of each file's rounds, which other work on the machine disturbed least.",
        "Intervals are 95 % bootstrap intervals; below 1 is faster.",
    ]
    for kind, measured in hosts.root.items():
        lines += ["", f"## {kind}", "", machine(measured), ""]
        lines += ["### Figures", "", "| figure | target | measured | met |", "|---|---|---|---|"]
        lines += [row_line(row) for row in rows(measured)]
        lines += ["", "### Architectures", "", *overview(measured, ARCHITECTURES)]
        for name, title in ARCHITECTURES.items():
            if name in measured.results:
                lines += ["", *result_table(measured.results[name], title, level=4)]
    return "\n".join(lines) + "\n"


def machine(measured: Measured) -> str:
    """A sentence on the host and the versions of the tools."""
    found = next((result.machine for result in measured.results.values() if result.machine), {})
    sets = ", ".join(found.get("instruction_sets", ())) or "no known instruction sets"
    tools = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
    return f"Machine: {found.get('cpu', 'unknown')}, {found.get('cores', '?')} cores, {sets}. {tools}."


def row_line(row: Row) -> str:
    """A figure as a row of a table."""
    return f"| {row.figure} | {row.wanted} | {row.measured} | {HOLDS[row.holds]} |"


def overview(measured: Measured, titles: Mapping[str, str]) -> list[str]:
    """A table with one row per model."""
    lines = [
        "| architecture | Onward's choice | over plain | fastest peer | over the fastest peer |",
        "|---|---|---|---|---|",
    ]
    for name, title in titles.items():
        result = measured.results.get(name)
        if result is None:
            lines.append(f"| {title} | {measured.not_measured.get(name, 'not measured')} | | | |")
            continue
        onward = result.entry(result.best)
        if not onward.to_plain:
            lines.append(f"| {title} | {onward.reason} | | | |")
            continue
        peer_name, peer = best_peer(result)
        lines.append(
            f"| {title} | {result.released or result.chosen} | {_speed(onward.to_plain['all'])} | {peer_name} "
            f"| {_speed(peer.onward_to_it['all'])} |"
        )
    return lines


def result_table(result: Result, title: str, level: int) -> list[str]:
    """A section with everything that was measured of a model."""
    sizes = result.sizes
    lines = [f"{'#' * level} {title}", ""]
    if result.stages:
        lines += ["Onward's stages: " + ", ".join(f"{n} {s:.0f} s" for n, s in result.stages.items()) + ".", ""]
    head = [*(f"{size} p50" for size in sizes), "over plain", "Onward over it"]
    head += ["worst cosine", "SNR dB", "quality", "MB", "made in s", "remark"]
    lines += [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return [*lines, *(_entry(entry, sizes) for entry in result.entries)]


def _entry(entry: Entry, sizes: list[str]) -> str:
    first, _, rest = entry.name.partition(" ")
    cells = [f"{TITLES[first]} {rest}" if first in TITLES else entry.name]
    cells += [f"{entry.p50_ms[size]:.3g}" if size in entry.p50_ms else "" for size in sizes]
    cells += [_speed(speeds["all"]) if "all" in speeds else "" for speeds in (entry.to_plain, entry.onward_to_it)]
    cells += [_number(entry.cosine, ".4f"), _number(entry.snr_db, ".1f"), _number(entry.quality, ".3f")]
    cells += [_number(entry.size_mb, ".2f"), _number(entry.seconds, ".0f"), (entry.reason or entry.faults)]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _speed(speed: Speed) -> str:
    return f"{speed.value:.3f} ({speed.low:.3f} to {speed.high:.3f})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
