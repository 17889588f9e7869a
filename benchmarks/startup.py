"""How long Onward takes to start: imports, the command's help, and a session's first answer. See benchmarks/startup.md.

    python -m benchmarks.startup [--rounds N]

Each command runs in a new process, in rounds of random order beside an interpreter that does nothing. The sessions find
the version that is live in a store, and its files in the cache of this machine.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serving_servers import free_port, running, start

RESULTS = Path(__file__).parent / "startup.md"
ROUNDS = 30
NOTHING = "python -c pass"
# By command: what it runs, and the limit in seconds.
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    NOTHING: ([sys.executable, "-c", "pass"], None),
    "import onward": ([sys.executable, "-c", "import onward"], 0.15),
    "onward --help": ([str(Path(sys.executable).parent / "onward"), "--help"], 0.2),
    "onward --version": ([str(Path(sys.executable).parent / "onward"), "--version"], 0.2),
    "import onward.registry.inference.session": (
        [sys.executable, "-c", "import onward.registry.inference.session"],
        None,
    ),
}
SESSION = """
import numpy
from onward import InferenceSession
InferenceSession("cnn@staging").predict(numpy.ones((2, 4), numpy.float32))
"""
FIRST_S = 1.0
# The sessions, by the kind of their store.
SESSIONS = {kind: f"first answer of `InferenceSession`, {kind}" for kind in ("SQLite store", "MLflow server")}
for _name in SESSIONS.values():
    COMMANDS[_name] = ([sys.executable, "-c", SESSION], FIRST_S)


@contextmanager
def stores(folder: Path) -> Iterator[dict[str, dict[str, str]]]:
    """A store with a live version, as a file and behind a server; yields the environment of each kind of session."""
    from benchmarks.registry_races import change, prepare
    from onward.registry.store.store import Store

    here, before = Path.cwd(), dict(os.environ)
    database = f"sqlite:///{folder}/mlflow.db"
    os.environ |= {"MLFLOW_TRACKING_URI": database, "XDG_CACHE_HOME": f"{folder}/cache"}
    os.chdir(folder)
    try:
        prepare()
        change(Store(), 0, "benchmark")
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", database]
        with running(start(command, f"http://127.0.0.1:{port}/health", folder / "log")):
            place = {**os.environ, "PYTHONPATH": str(RESULTS.parent.parent)}
            server = place | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
            found = dict(zip(SESSIONS.values(), (place, server), strict=True))
            for name, environment in found.items():  # warms the cache and the server
                subprocess.run(COMMANDS[name][0], check=True, capture_output=True, env=environment)
            yield found
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def measure(rounds: int) -> dict[str, list[float]]:
    """Time every command once per round, in random order; seconds."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    order = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="onward-startup-") as temporary, stores(Path(temporary)) as environments:
        for _ in range(rounds):
            for name in order.sample(list(COMMANDS), len(COMMANDS)):
                begun = time.perf_counter()
                subprocess.run(COMMANDS[name][0], check=True, capture_output=True, env=environments.get(name))
                found[name].append(time.perf_counter() - begun)
    return found


def table(found: dict[str, list[float]], rounds: int) -> str:
    """The page of results."""
    lines = [
        "# Start-up times",
        "",
        f"`python -m benchmarks.startup --rounds {rounds}`: seconds in a new process; median and fastest of all "
        "rounds.",
        "",
        "| command | median | fastest | limit | holds |",
        "|---|---|---|---|---|",
    ]
    for name, times in found.items():
        limit = COMMANDS[name][1]
        median = statistics.median(times)
        holds = "" if limit is None else "yes" if median <= limit else "no"
        shown = name if "`" in name else f"`{name}`"
        lines.append(f"| {shown} | {median:.3f} | {min(times):.3f} | {limit or ''} | {holds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the page; exit 1 if a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    page = table(measure(rounds), rounds)
    print(page)
    RESULTS.write_text(page)
    sys.exit("| no |" in page)


if __name__ == "__main__":
    main()
