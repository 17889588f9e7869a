"""Does the deployment log survive races and kills? Two figures, each from real processes on a real store.

    python -m benchmarks.registry                                   # 8 processes x 50 changes; 200 kills
    python -m benchmarks.registry --processes 4 --changes 10 --kills 20

The store is a new SQLite file in a temporary folder, or `--store URI`: an empty MLflow store, which is written to.
The table goes to stdout, and to `--out FILE`. Exit code 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import operations, overview
from registry.errors import LostRace, Refused
from registry.store import Store
from tests.store_factory import add_candidate

MODEL = "cnn"
ENVIRONMENT = "staging"
VERSIONS = 3


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    figure: str
    wanted: str
    found: str
    held: bool


def change(store: Store, number: int, actor: str) -> str:
    """Promote or roll back, by turns, and return what was said."""
    try:
        if number % 3 == 2:
            done = operations.rollback(MODEL, ENVIRONMENT, reason="benchmark", actor=actor, store=store)
        else:
            live = store.log(ENVIRONMENT, MODEL).line.live
            version = 1 + (live.candidate_version if live else 0) % VERSIONS
            done = operations.promote(MODEL, ENVIRONMENT, version, reason="benchmark", actor=actor, store=store)
    except LostRace:
        return "lost"
    except Refused:  # a rollback where nothing was before
        return "refused"
    return "won" if done.changed else "live already"


def _change_often(seed: int, changes: int, answers: Any) -> None:
    store = Store()
    for number in range(changes):
        start = time.perf_counter()
        try:
            said = change(store, seed + number, f"p{seed}")
        except Exception as error:  # whatever it is, it is what this benchmark looks for
            said = f"error: {type(error).__name__}: {str(error)[:200]}"
        answers.put((f"p{seed}", said, time.perf_counter() - start))


def _read_often(stop: Any, answers: Any) -> None:
    """Read until told to stop, and report what was seen as counted, each time that it was something new."""
    store = Store()
    seen: list[Any] = []
    while not stop.is_set():
        counted = [entry.key for entry in store.log(ENVIRONMENT, MODEL).line.counted]
        if not seen or counted != seen[-1]:
            seen.append(counted)
    answers.put(seen)


def race(context: Any, processes: int, changes: int) -> Iterator[Finding]:
    """Many processes change one environment at once, while another reads it."""
    answers, views, stop = context.Queue(), context.Queue(), context.Event()
    reader = context.Process(target=_read_often, args=(stop, views))
    writers = [context.Process(target=_change_often, args=(seed, changes, answers)) for seed in range(processes)]
    start = time.perf_counter()
    for process in (reader, *writers):
        process.start()
    told = [answers.get() for _ in range(processes * changes)]
    seconds = time.perf_counter() - start
    stop.set()
    seen = views.get()
    for process in (reader, *writers):
        process.join()
    log = Store().log(ENVIRONMENT, MODEL)
    said = Counter(answer for _, answer, _ in told)
    errors = {answer: count for answer, count in said.items() if answer.startswith("error")}
    won = Counter(actor for actor, answer, _ in told if answer == "won")
    counted = Counter(entry.actor for entry in log.line.counted)
    final = [entry.key for entry in log.line.counted]
    agree = sum(view == final[: len(view)] for view in seen)
    title = f"{processes} processes x {changes} changes"
    yield Finding(title, "no error but a lost race", _said(said) if not errors else str(errors), not errors)
    yield Finding(title, "entries counted = changes told won", f"{len(final)} = {won.total()}", counted == won)
    yield Finding(title, "one live deployment", f"entry {log.line.base}", log.line.live is not None)
    yield Finding(title, "every reader agrees", f"{agree} of {len(seen)} views", agree == len(seen))
    marked = {entry.number for entry in log.line.lost} == log.marked
    yield Finding(title, "every lost entry is marked", f"{len(log.marked)} of {len(log.line.lost)}", marked)
    operations.reconcile()
    drift = overview.status()[0].environments[0].drift
    yield Finding(title, "aliases agree at the end", f"{len(drift)} drifts", not drift)
    times = sorted(took for _, answer, took in told if answer == "won")
    yield Finding(title, "-", f"{seconds:.0f} s in all, {times[len(times) // 2]:.2f} s a change that won (p50)", True)


def _said(said: Counter[str]) -> str:
    return ", ".join(f"{count} {answer}" for answer, count in said.most_common())


def _change_until_killed(seed: int, started: Any) -> None:
    store, number = Store(), seed
    store.log(ENVIRONMENT, MODEL)  # connected, so that kills fall upon changes
    started.set()
    while True:
        change(store, number, f"k{seed}")
        number += 1


def kill(context: Any, kills: int, seed: int) -> Iterator[Finding]:
    """Processes that change an environment are killed at random moments; the next command finds all in order."""
    draw, store = random.Random(seed), Store()
    change(store, 0, "before")
    start = time.perf_counter()
    change(store, 0, "before")
    one = time.perf_counter() - start
    without_live = drifted = unhealed = entries = 0
    for number in range(kills):
        before = len(store.log(ENVIRONMENT, MODEL).line.counted)
        started = context.Event()
        process = context.Process(target=_change_until_killed, args=(number, started))
        process.start()
        started.wait(120)
        time.sleep(draw.uniform(0, 2 * one))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        log = store.log(ENVIRONMENT, MODEL)
        entries += len(log.line.counted) - before
        without_live += log.line.live is None or not overview.check(MODEL, ENVIRONMENT, store).met
        drifted += bool(overview.status(store)[0].environments[0].drift)
        change(store, number, "next")
        unhealed += bool(overview.status(store)[0].environments[0].drift)
    title = f"{kills} kills at random moments"
    yield Finding(title, "never without a live version that works", f"{without_live} times without", not without_live)
    found = f"{drifted} times to be healed, {unhealed} times not"
    yield Finding(title, "the next command heals the views", found, not unhealed)
    yield Finding(title, "-", f"{entries} entries appended by those killed", True)


@contextlib.contextmanager
def _own_store() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="onward-benchmark-") as folder:
        yield f"sqlite:///{folder}/mlflow.db"


def table(findings: list[Finding]) -> str:
    """The findings as Markdown."""
    lines = ["| figure | wanted | found | held |", "|---|---|---|---|"]
    lines += [f"| {f.figure} | {f.wanted} | {f.found} | {'yes' if f.held else '**no**'} |" for f in findings]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, help="a file for the table")
    parser.add_argument("--store", help="an empty MLflow store; without it, a new SQLite file")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "registry.operations"])
    with contextlib.nullcontext(arguments.store) if arguments.store else _own_store() as uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        for factor in range(1, VERSIONS + 1):
            add_candidate(Store(), MODEL, factor)
        findings = list(race(context, arguments.processes, arguments.changes))
        findings += kill(context, arguments.kills, arguments.seed)
    written = f"# The registry under races and kills\n\nStore: {uri.split(':')[0]}.\n\n{table(findings)}"
    print(written, end="")
    if arguments.out:
        arguments.out.write_text(written)
    return 0 if all(finding.held for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
