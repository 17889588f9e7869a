"""The benchmarks run. Their figures on a busy machine are not checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def registry(tmp_path: Path, *arguments: str) -> tuple[int, list[str]]:
    """Run benchmarks.registry on SQLite; returns its exit code and the rows of its table."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry", "--no-postgres", *arguments, "--out", str(tmp_path / "table.md")],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == (tmp_path / "table.md").read_text(), done.stderr
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]


def test_the_registry_survives_a_small_race_and_a_few_kills(tmp_path: Path) -> None:
    code, rows = registry(tmp_path, "--only", "races", "kills", "--processes", "2", "--changes", "4", "--kills", "3")
    assert code == 0
    assert len(rows) == 10
    assert all(row.endswith("| yes |") for row in rows)


def test_the_cost_of_predict_is_reported_for_every_call_form(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.predict", "--rounds", "3", "--wanted", "1e9", "--out", str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in table.read_text().splitlines() if line.startswith("| `predict")]
    assert len(rows) == 6
    rows += [line for line in table.read_text().splitlines() if line.startswith(("| `strict", "| `shape"))]
    assert len(rows) == 10
    assert all(row.endswith("| yes |") for row in rows)


def test_the_registry_survives_a_failing_server_and_reports_its_costs(tmp_path: Path) -> None:
    small = ["--entries", "12", "--rounds", "1", "--models", "2", "--faults", "6"]
    _, rows = registry(tmp_path, "--only", "latencies", "status", "cold", "outages", *small)
    timed = [row for row in rows if any(words in row for words in ("under", "at most", "error within"))]
    assert len(timed) == 11
    assert len(rows) == 24
    assert all(row.endswith("| yes |") for row in rows if row not in timed)


def test_the_server_is_measured_and_survives_changes_and_kills(tmp_path: Path) -> None:
    small = ["--rounds", "1", "--count", "20", "--swaps", "2", "--seconds", "0.5", "--soak", "3"]
    command = [sys.executable, "-m", "benchmarks.serving", "--only", "latency", "swaps", "kills", "soak"]
    table = tmp_path / "table.md"
    done = subprocess.run([*command, *small, "--out", str(table)], cwd=ROOT, capture_output=True, text=True)
    rows = [line for line in table.read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 12, done.stdout + done.stderr
    timed = [row for row in rows if any(words in row for words in ("p50 over", "p99 during", "memory over"))]
    assert len(timed) == 4
    assert all(row.endswith("| yes |") for row in rows if row not in timed), done.stdout
