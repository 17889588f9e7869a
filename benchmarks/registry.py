"""Does the registry hold under races, kills and outages, and what does it cost?

    python -m benchmarks.registry                                     # all, at full size, on SQLite and on Postgres
    python -m benchmarks.registry --only kills --kills 20
    python -m benchmarks.registry --processes 2 --changes 4 --kills 3 --entries 12 --models 2 --no-postgres

Each part has stores of its own: new SQLite files, and databases of a Postgres that is started for it. The table goes to
stdout, and to `--out FILE`. Exit code 1 where something did not hold.
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
    """A new SQLite store in a folder of its own, which is the working directory meanwhile."""
    with (
        tempfile.TemporaryDirectory(prefix="onward-benchmark-") as folder,
        chdir(folder),
        _in_use(f"sqlite:///{folder}/mlflow.db"),
    ):
        yield folder


@contextmanager
def on_postgres() -> Iterator[str]:
    """A new database of a new Postgres, likewise."""
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("Postgres is not installed: `make postgres` does that, `--no-postgres` goes without")
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
    """Every finding, with the store that it was made on."""
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--changes", type=int, default=50, help="of each process")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--entries", type=int, default=1000, help="of the long log; the short one has 10")
    parser.add_argument("--rounds", type=int, default=25, help="of rollback and promote on each log")
    parser.add_argument("--models", type=int, default=200, help="whose status is asked")
    parser.add_argument("--faults", type=int, default=40, help="changes on a server that answers 500 half of the time")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--no-postgres", action="store_true")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    out = arguments.out.resolve() if arguments.out else None
    found = list(run(arguments))
    written = "# The registry under races, kills and outages, and what it costs\n"
    for name in dict.fromkeys(name for name, _ in found):
        written += f"\n## {name}\n\n{table([finding for where, finding in found if where == name])}"
    print(written, end="")
    if out:
        out.write_text(written)
    return 0 if all(finding.held for _, finding in found) else 1


if __name__ == "__main__":
    sys.exit(main())
