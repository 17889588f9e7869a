"""What the commands of both benchmarks have in common: their options, their results, and what they print at the end."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from benchmarks.peers.judging import Row
from benchmarks.peers.results import Hosts
from onward.registry.files import write_atomically

ROOT = Path(__file__).parents[2]


def parser(name: str, description: str, models: Iterable[str], metavar: str) -> argparse.ArgumentParser:
    """The parser of a benchmark's options.

    Args:
        name: of the benchmark's module.
        description: its first line.
        models: that it can measure.
        metavar: what a model is called.
    """
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--only", nargs="+", metavar=metavar, choices=models, default=list(models))
    found.add_argument("--rounds", type=int, default=20, help="rounds of the race, 3 or more (20)")
    found.add_argument(
        "--peers-folder", type=Path, default=ROOT / ".peers", help="folder of environments and made files"
    )
    found.add_argument("--report", action="store_true", help="only write the table from the .json file")
    return found


def parsed(of: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of this process, with enough rounds."""
    arguments = of.parse_args()
    if arguments.rounds < 3:
        of.error(f"--rounds {arguments.rounds}: an interval needs 3 or more")
    return arguments


def read(results: Path) -> Hosts:
    """The results so far."""
    return Hosts.model_validate_json(results.read_bytes()) if results.is_file() else Hosts()


def save(hosts: Hosts, results: Path, table: Path, page: str) -> None:
    """Write the results, and the page that shows them."""
    write_atomically(results, (hosts.model_dump_json(indent=1, exclude_defaults=True) + "\n").encode())
    write_atomically(table, page.encode())


def conclude(rows: Iterable[Row], table: Path) -> int:
    """Print every figure with its target; return 1 if a target is missed."""
    found = list(rows)
    for row in found:
        print(f"{'met' if row.holds else 'not measured' if row.holds is None else 'MISSED':13}{row.figure}: ", end="")
        print(f"{row.measured} (target: {row.wanted})")
    print(f"written: {table.relative_to(ROOT)}")
    return 1 if any(row.holds is False for row in found) else 0
