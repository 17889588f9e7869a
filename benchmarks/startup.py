"""How long Python takes to import Onward and to print the command's help: benchmarks/startup.md.

    python -m benchmarks.startup [--rounds N]

Each command runs in a new process, in rounds of random order beside an interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

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


def measure(rounds: int) -> dict[str, list[float]]:
    """Time every command once per round, in random order; seconds."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(COMMANDS), len(COMMANDS)):
            begun = time.perf_counter()
            subprocess.run(COMMANDS[name][0], check=True, capture_output=True)
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
        lines.append(f"| `{name}` | {median:.3f} | {min(times):.3f} | {limit or ''} | {holds} |")
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
