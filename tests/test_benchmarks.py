"""The benchmarks run; what they find on a busy machine is for people to read."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_the_registry_holds_under_a_small_race_and_a_few_kills(tmp_path):
    command = [sys.executable, "-m", "benchmarks.registry", "--processes", "2", "--changes", "4", "--kills", "3"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "table.md")],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "table.md").read_text()
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    assert all(row.endswith("| yes |") for row in rows)


def test_what_predict_costs_is_stated_for_every_way_of_calling_it(tmp_path):
    table = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.predict", "--rounds", "3", "--wanted", "1e9", "--out", str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in table.read_text().splitlines() if line.startswith("| `predict")]
    assert len(rows) == 6
    assert all(row.endswith("| yes |") for row in rows)
