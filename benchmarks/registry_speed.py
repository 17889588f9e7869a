"""The latency of registry commands, by the length of the log and the number of models, and from a cold start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.findings import Finding
from onward.registry.operations import overview, promotion
from onward.registry.store.schema import registered_name
from onward.registry.store.store import Store
from tests.store_factory import add_candidate

ENVIRONMENT = "staging"


def grow(store: Store, model: str, entries: int) -> None:
    """Make a log of `entries` entries for two versions of a model."""
    for version in (1, 2):
        add_candidate(store, model, version)
        promotion.promote(model, ENVIRONMENT, version, reason="benchmark", store=store)
    line = store.log(ENVIRONMENT, model).history
    first, base = line.counted, line.base
    for number in range(entries - 2):
        draft = first[number % 2].model_copy(update={"base": base, "key": uuid.uuid4().hex})
        store._try_append(registered_name(ENVIRONMENT, model), draft)
        base += 1
    assert store.head(ENVIRONMENT, model).history.base == entries
    promotion.reconcile(store)


def latencies(lengths: tuple[int, ...], rounds: int) -> Iterator[Finding]:
    """Time rollback and promote, gates included, in one process. The logs take turns, so machine noise is shared.

    CPU time is reported as well, because it varies less on a shared machine.
    """
    store, times = Store(), dict[tuple[str, int], list[tuple[float, float]]]()
    for length in lengths:
        grow(store, f"long{length}", length)
    for _ in range(rounds):
        for length in lengths:
            model = f"long{length}"
            took = _both(partial(promotion.rollback, model, ENVIRONMENT, reason="benchmark", store=store))
            times.setdefault(("rollback", length), []).append(took)
            live = store.head(ENVIRONMENT, model).history.live
            other = 3 - live.candidate_version if live else 1
            took = _both(partial(promotion.promote, model, ENVIRONMENT, other, reason="benchmark", store=store))
            times.setdefault(("promote", length), []).append(took)
    for command, limit in (("rollback", 0.15), ("promote", 1.0)):
        p50 = {length: statistics.median(wall for wall, _ in times[command, length]) for length in lengths}
        for length, seconds in p50.items():
            processor = statistics.median(cpu for _, cpu in times[command, length])
            found = f"{seconds * 1000:.0f} ms, {processor * 1000:.0f} ms CPU"
            yield Finding(f"{command} on a log of {length}", f"p50 under {limit:g} s", found, seconds < limit)
        ratio = p50[lengths[-1]] / p50[lengths[0]]
        grown = f"{lengths[-1]} entries over {lengths[0]}"
        yield Finding(f"{command}, {grown}", "at most 1.25 times", f"{ratio:.2f} times", ratio <= 1.25)


def status_of_many(models: int) -> Iterator[Finding]:
    """Time `status` with `models` models, each live in two environments."""
    store = Store()
    for number in range(models):
        model = f"many{number}"
        add_candidate(store, model, 1)
        for environment in ("staging", "production"):
            promotion.promote(model, environment, 1, reason="benchmark", force=True, store=store)
    took = min(_seconds(lambda: overview.status(store)) for _ in range(3))
    yield Finding(f"status of {models} models", "under 3 s", f"{took:.2f} s", took < 3)


def cold_starts() -> Iterator[Finding]:
    """Time whole commands, from start to end, on an empty store."""
    Store().versions.everything()  # creates the store; commands that only read do not
    for arguments, limit in (("--help", 0.3), ("status", 2.0)):
        took = min(_seconds(partial(_command, arguments)) for _ in range(5))
        yield Finding(f"onward {arguments}, cold", f"under {limit} s", f"{took:.2f} s", took < limit)


def _command(arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "onward.cli", arguments], check=True, capture_output=True)


def _both(call: Callable[[], object]) -> tuple[float, float]:
    """The wall-clock seconds and the CPU seconds of a call."""
    start = time.process_time()
    return _seconds(call), time.process_time() - start


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
