"""False alarms and power of the drift test, beside Evidently's defaults: benchmarks/drift.md.

    python -m benchmarks.drift [--windows N] [--trials N] [--peer FOLDER]

Each false-alarm row judges N windows without drift as a server does: with the four windows before each. New references
are drawn every 20 windows, because a reference has a sampling error of its own. A trial of power is five windows with
the same drift. With --peer, Evidently is installed in FOLDER and runs on the same traffic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift_streams import CATEGORY, NUMBERS, traffic
from benchmarks.findings import Finding, table
from onward.registry.errors import OnwardError
from onward.registry.evidence.records import OutputKind
from onward.registry.monitoring.drift import LAST, FeatureResult, Judge, Summary, Window
from onward.registry.monitoring.reference import build
from onward.registry.text import markdown_table

RESULTS = Path(__file__).parent / "drift.md"
SIZES = (100, 1000, 10_000, 100_000)
REFERENCE = 1000
WINDOWS_PER_REFERENCE = 20
PEER_WINDOWS = 25
# The figures that are required.
MOST_ALARMS = 1  # of 1,000 windows, at each size
LEAST_POWER = 0.9  # at a shift of 0.3 standard deviations and 1,000 samples
_KINDS = [OutputKind(output="scores", kind="scores", axis=1)]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        n: Samples of a window.
        reference: Samples of the reference.
        correlation: Of neighbouring samples of a window.
        shift: Of one column, in standard deviations.
        moved: The share of samples that move from one category to another.
    """

    n: int
    reference: int = REFERENCE
    correlation: float = 0.0
    shift: float = 0.0
    moved: float = 0.0

    @property
    def column(self) -> str:
        """The column with the drift."""
        return f"input {CATEGORY if self.moved else 'normal'}"


@dataclass(frozen=True)
class Alarms:
    """What was found in one case.

    Attributes:
        windows: Number of windows without drift, or of trials.
        alarms: Those in which anything raises an alarm.
        column: Those in which the column with the drift does.
        exceeded: Windows in which a feature exceeds floor and threshold, before the rule of 3 of 5.
    """

    windows: int
    alarms: int
    column: int
    exceeded: int


def window(case: Case, rng: np.random.Generator, n: int = 0) -> Window:
    """A window of a case; one of `n` samples without drift, if `n` is given."""
    found = traffic(n, rng) if n else traffic(case.n, rng, case.shift, case.moved, case.correlation)
    return Window({name: found[name] for name in (*NUMBERS, CATEGORY)}, {"scores": found["scores"]})


def judge_of(case: Case, rng: np.random.Generator) -> Judge:
    """A judge with a new reference."""
    sample = window(case, rng, case.reference)
    return Judge(build(sample.inputs, sample.outputs, _KINDS), thresholds=False)  # type: ignore[arg-type]


def without_drift(case: Case, windows: int, seed: int = 0) -> Alarms:
    """Judge windows of a case without drift, one after the other."""
    return _count(_judged_in_turn(case, windows, np.random.default_rng(seed)), case)


def with_drift(case: Case, trials: int, seed: int = 0) -> Alarms:
    """Judge trials of five windows of a case with drift."""
    return _count(_trials(case, trials, np.random.default_rng(seed)), case)


def _judged_in_turn(case: Case, windows: int, rng: np.random.Generator) -> Iterator[list[FeatureResult]]:
    for start in range(0, windows, WINDOWS_PER_REFERENCE):
        judge, last = judge_of(case, rng), list[Summary]()
        for _ in range(min(WINDOWS_PER_REFERENCE, windows - start)):
            last = [*last, judge.summarise(window(case, rng))][-LAST:]
            yield judge.judge(last)


def _trials(case: Case, trials: int, rng: np.random.Generator) -> Iterator[list[FeatureResult]]:
    for _ in range(trials):
        judge = judge_of(case, rng)
        yield judge.judge([judge.summarise(window(case, rng)) for _ in range(LAST)])


def _count(judged: Iterator[list[FeatureResult]], case: Case) -> Alarms:
    windows = alarms = column = exceeded = 0
    for results in judged:
        windows += 1
        alarms += any(one.alarm for one in results)
        column += any(one.alarm for one in results if one.feature == case.column)
        exceeded += any(one.windows[-1] for one in results)
    return Alarms(windows, alarms, column, exceeded)


def peer(folder: Path) -> list[dict[str, Any]]:
    """Run Evidently on the same traffic, in an environment in `folder`."""
    from benchmarks.peers.environments import environment

    command = [str(environment("evidently", folder)), "-m", "benchmarks.drift_evidently", str(PEER_WINDOWS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise OnwardError(f"Evidently failed: {' '.join(done.stderr.split())[-500:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cases() -> tuple[list[Case], list[Case]]:
    """The cases without drift, and those with drift."""
    calm = [
        *[Case(n) for n in SIZES],
        *[Case(n, reference=100) for n in (100, 1000, 10_000)],
        *[Case(n, correlation=0.9) for n in SIZES[:3]],
        *[Case(1000, correlation=0.99)],
    ]
    shifts, moves = (0.1, 0.3, 0.5), (0.05, 0.1, 0.2)
    drifting = [
        *[Case(n, shift=shift) for n in (100, 1000, 10_000) for shift in shifts],
        *[Case(1000, reference=450, shift=shift) for shift in shifts],
        *[Case(1000, reference=100, shift=shift) for shift in shifts],
        *[Case(n, moved=moved) for n in (100, 1000, 10_000) for moved in moves],
    ]
    return calm, drifting


def page(
    calm: dict[Case, Alarms], drifting: dict[Case, Alarms], evidently: list[dict[str, Any]] | None, seconds: float
) -> str:
    """The page of results."""
    peers = {(e["n"], e.get("correlation", 0.0), e.get("shift", 0.0), e.get("moved", 0.0)): e for e in evidently or []}

    def beside(case: Case, key: str) -> str:
        found = peers.get((case.n, case.correlation, case.shift, case.moved))
        return f"{found[key]:.0%}" if found and case.reference == REFERENCE else ""

    rows = [
        (
            f"{case.n:,}", f"{case.reference:,}", f"{case.correlation:g}", f"{found.alarms} of {found.windows:,}",
            f"{found.exceeded} of {found.windows:,}", beside(case, "any"), beside(case, "whole"),
        )
        for case, found in calm.items()
    ]  # fmt: skip
    power = [
        (
            f"{case.shift:g} standard deviations" if case.shift else f"{case.moved:.0%} of the samples change category",
            f"{case.n:,}", f"{case.reference:,}", f"{found.column / found.windows:.0%}", beside(case, "column"),
        )
        for case, found in drifting.items()
    ]  # fmt: skip
    windows, trials = (max(one.windows for one in found.values()) for found in (calm, drifting))
    return "\n".join(
        [
            "# Drift: false alarms and power",
            "",
            f"`python -m benchmarks.drift --windows {windows} --trials {trials}`: five columns of numbers (normal, "
            "lognormal, logistic, bimodal, heavy-tailed), one of five categories, and three scores, in "
            f"{len(_features())} tests. {seconds / 60:.0f} minutes of processor time. "
            "[Decision 83](../docs/decisions/0083-drift-that-matters.md) explains the method.",
            "",
            table(_findings(calm, drifting)),
            "## Windows without drift",
            "",
            "The correlation is that of neighbouring samples (AR(1)). An alarm is 3 of 5 windows in which the same "
            f"test exceeds floor and threshold. Evidently ({PEER_WINDOWS} windows per row, its defaults) judges each "
            "window alone: a column drifts, or at least half of the columns do.",
            "",
            markdown_table(
                (
                    "samples of a window", "samples of the reference", "correlation", "alarms",
                    "windows in which a test exceeds both", "Evidently: a column", "Evidently: the data set",
                ),
                rows,
            ),
            "## Power",
            "",
            "The share of trials in which the column with the drift raises an alarm after five windows; for Evidently, "
            "the share of windows in which that column drifts.",
            "",
            markdown_table(
                ("drift of one column", "samples of a window", "samples of the reference", "Onward", "Evidently"), power
            ),
        ]
    )  # fmt: skip


def _features() -> list[FeatureResult]:
    rng = np.random.default_rng(0)
    return judge_of(Case(100), rng).judge([window(Case(100), rng)])


def _findings(calm: dict[Case, Alarms], drifting: dict[Case, Alarms]) -> list[Finding]:
    found = [
        Finding(
            f"false alarms in {one.windows:,} windows of {case.n:,}", f"<= {MOST_ALARMS}", str(one.alarms),
            one.alarms <= MOST_ALARMS,
        )
        for case, one in calm.items()
        if case == Case(case.n)
    ]  # fmt: skip
    one = drifting[Case(1000, shift=0.3)]
    power = one.column / one.windows
    wanted = "power at a shift of 0.3 standard deviations, 1,000 samples"
    return [*found, Finding(wanted, f">= {LEAST_POWER}", f"{power:.2f}", power >= LEAST_POWER)]


def main() -> None:
    """Measure, print and write the page; exit 1 if a required figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--peer", type=Path)
    options = parser.parse_args()
    began = time.process_time()
    calm, drifting = cases()
    quiet = {case: _shown(case, without_drift(case, options.windows)) for case in calm}
    loud = {case: _shown(case, with_drift(case, options.trials)) for case in drifting}
    seconds = time.process_time() - began
    evidently = peer(options.peer) if options.peer else None
    text = page(quiet, loud, evidently, seconds)
    print(text)
    RESULTS.write_text(text)
    sys.exit("**no**" in text)


def _shown(case: Case, found: Alarms) -> Alarms:
    print(case, found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
