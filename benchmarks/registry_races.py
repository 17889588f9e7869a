"""The deployment log under races and kills, with real processes on a real store."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.findings import Finding
from onward.registry.artifact.manifest import check_folder
from onward.registry.errors import LostRace, Refused
from onward.registry.operations import overview, promotion
from onward.registry.store.resolve import resolve
from onward.registry.store.store import Store
from tests.store_factory import add_candidate

MODEL = "cnn"
ENVIRONMENT = "staging"
VERSIONS = 3


def prepare() -> None:
    """Register the versions that are promoted and rolled back."""
    for factor in range(1, VERSIONS + 1):
        add_candidate(Store(), MODEL, factor)


def change(store: Store, number: int, actor: str) -> str:
    """Promote or roll back, by turns; return the outcome: won, already live, lost, refused."""
    try:
        if number % 3 == 2:
            done = promotion.rollback(MODEL, ENVIRONMENT, reason="benchmark", actor=actor, store=store)
        else:
            live = store.head(ENVIRONMENT, MODEL).history.live
            version = 1 + (live.candidate_version if live else 0) % VERSIONS
            done = promotion.promote(MODEL, ENVIRONMENT, version, reason="benchmark", actor=actor, store=store)
    except LostRace:
        return "lost"
    except Refused:  # a rollback without an earlier deployment
        return "refused"
    return "won" if done.changed else "already live"


def _place() -> tuple[str, str]:
    """The store and the working directory. Child processes get them, because the fork server may have others."""
    return os.environ["MLFLOW_TRACKING_URI"], os.getcwd()


def _enter(place: tuple[str, str]) -> Store:
    os.environ["MLFLOW_TRACKING_URI"] = place[0]
    os.chdir(place[1])
    return Store()


def _change_often(place: tuple[str, str], seed: int, changes: int, answers: Any) -> None:
    store = _enter(place)
    for number in range(changes):
        start = time.perf_counter()
        try:
            outcome = change(store, seed + number, f"p{seed}")
        except Exception as error:  # the benchmark reports any other error
            outcome = f"error: {type(error).__name__}: {str(error)[:200]}"
        answers.put((f"p{seed}", outcome, time.perf_counter() - start))


def _read_often(place: tuple[str, str], stop: Any, answers: Any) -> None:
    """Read until `stop` is set, and report every different list of entries that counted."""
    store = _enter(place)
    seen: list[Any] = []
    while not stop.is_set():
        log = store.log(ENVIRONMENT, MODEL)
        counted = [entry.key for entry in log.history.counted]
        if not seen or counted != seen[-1]:
            seen.append(counted)
    answers.put(seen)


def race(context: Any, processes: int, changes: int) -> Iterator[Finding]:
    """Let many processes change one environment at once while another reads it."""
    answers, views, stop = context.Queue(), context.Queue(), context.Event()
    reader = context.Process(target=_read_often, args=(_place(), stop, views))
    writers = [
        context.Process(target=_change_often, args=(_place(), seed, changes, answers)) for seed in range(processes)
    ]
    start = time.perf_counter()
    for process in (reader, *writers):
        process.start()
    outcomes = [answers.get() for _ in range(processes * changes)]
    seconds = time.perf_counter() - start
    stop.set()
    seen = views.get()
    for process in (reader, *writers):
        process.join()
    log = Store().log(ENVIRONMENT, MODEL)
    counts = Counter(answer for _, answer, _ in outcomes)
    errors = {answer: count for answer, count in counts.items() if answer.startswith("error")}
    won = Counter(actor for actor, answer, _ in outcomes if answer == "won")
    counted = Counter(entry.actor for entry in log.history.counted)
    final = [entry.key for entry in log.history.counted]
    agree = sum(view == final[: len(view)] for view in seen)
    title = f"{processes} processes x {changes} changes"
    yield Finding(title, "no error except lost races", _listed(counts) if not errors else str(errors), not errors)
    yield Finding(title, "entries that count = changes that won", f"{len(final)} = {won.total()}", counted == won)
    yield Finding(title, "one live deployment", f"entry {log.history.base}", log.history.live is not None)
    yield Finding(title, "all reads agree", f"{agree} of {len(seen)} views", agree == len(seen))
    marked = {entry.number for entry in log.history.lost} == log.marked
    yield Finding(title, "every lost entry is marked", f"{len(log.marked)} of {len(log.history.lost)}", marked)
    promotion.reconcile()
    drift = overview.status()[0].environments[0].drift
    yield Finding(title, "aliases match at the end", f"{len(drift)} differences", not drift)
    times = sorted(took for _, answer, took in outcomes if answer == "won")
    yield Finding(title, "-", f"{seconds:.0f} s in total, {times[len(times) // 2]:.2f} s per won change (p50)", True)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {answer}" for answer, count in counts.most_common())


def _change_until_killed(place: tuple[str, str], seed: int, started: Any) -> None:
    store, number = _enter(place), seed
    store.log(ENVIRONMENT, MODEL)  # connect first, so that kills hit changes
    started.set()
    while True:
        change(store, number, f"k{seed}")
        number += 1


def kill(context: Any, kills: int, seed: int) -> Iterator[Finding]:
    """Kill processes that change an environment at random moments, and check the log after each kill."""
    draw, store = random.Random(seed), Store()
    change(store, 0, "before")
    start = time.perf_counter()
    change(store, 0, "before")
    one = time.perf_counter() - start
    without_live = drifted = unhealed = entries = 0
    for number in range(kills):
        before = store.head(ENVIRONMENT, MODEL).history.base
        started = context.Event()
        process = context.Process(target=_change_until_killed, args=(_place(), number, started))
        process.start()
        assert started.wait(120)
        time.sleep(draw.uniform(0, 2 * one))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        log = store.log(ENVIRONMENT, MODEL)
        entries += sum(entry.number > before for entry in log.history.counted)
        # Running the recorded inputs needs another process, so only every tenth round does it.
        works = _loads(store) if number % 10 else overview.check(MODEL, ENVIRONMENT, store).met
        without_live += log.history.live is None or not works
        drifted += bool(overview.status(store)[0].environments[0].drift)
        change(store, number, "next")
        unhealed += bool(overview.status(store)[0].environments[0].drift)
    title = f"{kills} kills at random moments"
    yield Finding(title, "a working live version after every kill", f"{without_live} times without", not without_live)
    found = f"{drifted} times to repair, {unhealed} times not repaired"
    yield Finding(title, "the next command repairs aliases", found, not unhealed)
    yield Finding(title, "-", f"{entries} entries appended by killed processes", True)


def _loads(store: Store) -> bool:
    """Whether the files of the live version can be fetched unchanged."""
    target = resolve(f"{MODEL}@{ENVIRONMENT}", store)
    with tempfile.TemporaryDirectory() as temporary:
        check_folder(store.files.fetch(target.source, Path(temporary)), target.sha256)
    return True
