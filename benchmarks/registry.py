"""Test the registry under races, kills and outages, and measure its commands.

    python -m benchmarks.registry                                     # all parts, at full size, SQLite and Postgres
    python -m benchmarks.registry --only kills --kills 20
    python -m benchmarks.registry --processes 2 --changes 4 --kills 3 --entries 12 --models 2 --no-postgres

Each part uses new stores: new SQLite files, and databases of a Postgres that is started for it. The table is printed,
and written to `--out FILE`. The exit code is 1 if a limit is not met.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from benchmarks import registry_races
from benchmarks.findings import Finding, table
from benchmarks.registry_outages import outages
from benchmarks.registry_races import kill, race
from benchmarks.registry_speed import cold_starts, latencies, status_of_many
from tests.servers import postgres, postgres_binaries

PARTS = ("latencies", "status", "cold", "races", "kills", "outages")


@contextmanager
def sqlite() -> Iterator[str]:
    """Use a new SQLite store in a temporary folder, which is also the working directory."""
    with (
        tempfile.TemporaryDirectory(prefix="onward-benchmark-") as folder,
        chdir(folder),
        _in_use(f"sqlite:///{folder}/mlflow.db"),
    ):
        yield folder


@contextmanager
def on_postgres() -> Iterator[str]:
    """Use a new database of a new Postgres, in the same way."""
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("Postgres is not installed: run `make postgres`, or use `--no-postgres`")
    with (
        tempfile.TemporaryDirectory(prefix="onward-benchmark-") as folder,
        chdir(folder),
        postgres(binaries) as uri,
        _in_use(f"{uri}/mlflow"),
    ):
        yield folder


@contextmanager
def _in_use(uri: str) -> Iterator[None]:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


def run(arguments: argparse.Namespace) -> Iterator[tuple[str, Finding]]:
    """Yield every finding with the name of its store."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "onward.registry.operations.promotion"])

    def races() -> Iterator[Finding]:
        registry_races.prepare()
        yield from race(context, arguments.processes, arguments.changes)

    def kills() -> Iterator[Finding]:
        registry_races.prepare()
        yield from kill(context, arguments.kills, arguments.seed)

    stores: dict[str, Callable[[], object]] = {"SQLite": sqlite}
    if not arguments.no_postgres:
        stores["Postgres"] = on_postgres
    lengths = (10, arguments.entries)
    plan: list[tuple[str, str, Callable[[str], Iterable[Finding]]]] = [
        ("latencies", "SQLite", lambda _: latencies(lengths, arguments.rounds)),
        ("status", "Postgres" if "Postgres" in stores else "SQLite", lambda _: status_of_many(arguments.models)),
        ("cold", "SQLite", lambda _: cold_starts()),
        *[("races", name, lambda _: races()) for name in stores],
        ("kills", "SQLite", lambda _: kills()),
        ("outages", "SQLite", lambda folder: outages(Path(folder), arguments.faults, arguments.seed)),
    ]
    for part, name, measure in plan:
        if part in arguments.only:
            with stores[name]() as folder:  # type: ignore[attr-defined]
                for finding in measure(folder):
                    print(f"{part} on {name}: {finding.figure}: {finding.found}", file=sys.stderr, flush=True)
                    yield name, finding


def main() -> int:
    """Run the parts, print and write the table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--changes", type=int, default=50, help="changes of each process")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--entries", type=int, default=1000, help="entries of the long log; the short one has 10")
    parser.add_argument("--rounds", type=int, default=25, help="rollbacks and promotions on each log")
    parser.add_argument("--models", type=int, default=200, help="models for `status`")
    parser.add_argument("--faults", type=int, default=40, help="changes on a server with 50 %% of answers 500")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--no-postgres", action="store_true")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    out = arguments.out.resolve() if arguments.out else None
    found = list(run(arguments))
    written = "# The registry under races, kills and outages, and its latencies\n"
    for name in dict.fromkeys(name for name, _ in found):
        written += f"\n## {name}\n\n{table([finding for where, finding in found if where == name])}"
    print(written, end="")
    if out:
        out.write_text(written)
    return 0 if all(finding.held for _, finding in found) else 1


if __name__ == "__main__":
    sys.exit(main())
