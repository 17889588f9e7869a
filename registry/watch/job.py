"""`onward monitor`: judges the live version of an environment by recorded requests.

Whatever can be missing (samples, a reference, evidence of this host) becomes a note of the judgement. Only a folder
that cannot be read at all is an error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onward.registry.errors import NotReady, OnwardError
from onward.registry.monitoring import drift, recorded, reference
from onward.registry.monitoring.decay import LEAST_CALLS, Call
from onward.registry.monitoring.recorded import Row
from onward.registry.monitoring.watch import LEAST_BEFORE, Counts, Deployment, Judgement, Watch, drift_window
from onward.registry.monitoring.windows import split
from onward.registry.store.download import download
from onward.registry.store.resolve import Target, resolve
from onward.registry.store.store import Store
from onward.registry.watch import evidence, response, results

# Requests that a window of drift needs.
LEAST_SAMPLES = 30


@dataclass(frozen=True)
class Result:
    """The result of one look.

    Attributes:
        judgement: what was found.
        response: what was done about the alarms.
        note: why the results could not be written to MLflow; "" if they were.
    """

    judgement: Judgement
    response: str = ""
    note: str = ""


def monitor(target: str, folder: Path, window: float, store: Store | None = None, write: bool = True) -> Result:
    """Judge the live version of an environment, write the results to MLflow, and act as the policy says.

    Args:
        target: MODEL@ENVIRONMENT.
        folder: the folder of `onward serve --record`.
        window: the length of a window, in seconds.
        store: the store; None for the store in use.
        write: whether to write results and act.

    Raises:
        UsageError: the target is not MODEL@ENVIRONMENT, or the folder does not exist or has no samples of it.
        Refused: nothing is live in the environment.
        StoreUnreachable: the store did not answer.
    """
    model, at, environment = target.partition("@")
    if not at:
        raise NotReady(f"{target!r}: only an environment can be monitored: give MODEL@ENVIRONMENT")
    store = store or Store(create=False)
    live = resolve(target, store)
    rows, problems = recorded.read(folder, target, tensors=False)
    if not rows and not problems:
        others = ", ".join(recorded.targets(folder)) or "no other target"
        raise NotReady(
            f"{folder}: has no recorded requests of {target}; it has those of {others}. `onward serve {target} "
            f"--record {folder}` records them"
        )
    judgement = judge(store, live, folder, rows, window, problems)
    kept = response.wanted(judgement.alarms, environment)
    judgement = replace(judgement, alarms=tuple(kept))
    if not write:
        return Result(judgement)
    done = response.respond(store, model, environment, live.entry, judgement.alarms)
    try:
        results.write(store, model, environment, judgement, 0.0, done.text)
    except OnwardError as error:
        return Result(judgement, done.text, f"the results could not be written to MLflow: {error}")
    return Result(judgement, done.text)


def judge(
    store: Store, live: Target, folder: Path, rows: Sequence[Row], window: float, problems: Iterable[str] = ()
) -> Judgement:
    """Judge a deployment by recorded requests.

    Args:
        store: the store.
        live: the version that is live.
        folder: the folder with the recorded requests.
        rows: the requests of the target, without tensors, in the order of time.
        window: the length of a window, in seconds.
        problems: what could not be read.
    """
    notes = list(problems)
    answered = [row for row in rows if row.cause == "live"]
    own = [row for row in answered if row.entry == live.entry and row.sha256 == live.sha256]
    deployment = Deployment(str(live), str(live.version), live.sha256, live.entry)
    history = store.log(live.environment, live.model).history
    watch = Watch(
        deployment, _before(answered, live.entry, {entry.base for entry in response.by_monitor(history)}), window
    )
    if not own:
        versions = sorted({f"version {row.version} (entry {row.entry})" for row in answered})
        seen = f"; there are some of {', '.join(versions[-3:])}" if versions else ""
        return watch.judgement(notes=[*notes, f"no recorded request is of the live version, entry {live.entry}{seen}"])
    hosts = {row.host for row in own}
    here = evidence.parse_host(hosts.pop()) if len(hosts) == 1 else None
    if here is not None:
        watch.baseline, watch.baseline_note = evidence.baseline(store, live.evidence, here)
    elif hosts:
        notes.append(f"latency: the requests are from {len(hosts)} kinds of host, so they have no common benchmark")
    for row in own:
        if row.outcome == "success":
            watch.add(row.arrived, "success", Call(row.size, row.compute_us / 1000))
        elif row.outcome in ("failed", "invalid"):
            watch.add(row.arrived, "failed" if row.outcome == "failed" else "invalid")
    watch.flush(own[-1].arrived + window)
    if not watch.periods:
        notes.append(f"too few requests: {len(own)} are recorded, and a window needs {LEAST_CALLS}")
    notes += _drift(watch, store, live, folder, own, window)
    return watch.judgement(notes=notes)


def _before(rows: Sequence[Row], entry: int, failed: Collection[int]) -> Counts | None:
    """What is recorded of the newest deployment before with enough requests that no monitor rolled back, or None."""
    outcomes: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if 0 < row.entry < entry and row.entry not in failed:
            outcomes[row.entry][row.outcome] += 1
    enough = [number for number, found in outcomes.items() if found["success"] + found["failed"] >= LEAST_BEFORE]
    if not outcomes:
        return None
    found = outcomes[max(enough or outcomes)]
    return Counts(found["success"] + found["failed"], found["failed"], found["invalid"])


def _drift(watch: Watch, store: Store, live: Target, folder: Path, own: Sequence[Row], window: float) -> list[str]:
    """Judge the drift of the last windows, and return what could not be judged."""
    answered = [row for row in own if row.outcome == "success"]
    windows = split(answered, window, LEAST_SAMPLES)[-drift.LAST :]
    if len(windows) < drift.NEEDED:
        return [
            f"drift: {len(answered)} answered requests make {len(windows)} windows of {window:g} s with at least "
            f"{LEAST_SAMPLES} requests, and an alarm needs {drift.NEEDED}"
        ]
    try:
        known = reference.read(download(live, store).parent)
    except OnwardError as error:
        return [f"drift: the version's reference cannot be read: {error}"]
    if known is None or drift.explain(known):
        return [f"drift: {drift.explain(known)}"]
    first, last = windows[0][0].arrived, windows[-1][-1].arrived
    full, problems = recorded.read(folder, str(live), since=first)
    fitting = [
        row
        for row in full
        if row.entry == live.entry and row.cause == "live" and row.outcome == "success" and row.arrived <= last
    ]
    again = split(fitting, window, LEAST_SAMPLES)[-drift.LAST :]
    found = [
        drift_window([(row.arrived, recorded.arrays(row.inputs), recorded.arrays(row.outputs)) for row in rows])
        for rows in again
    ]
    watch.features = tuple(drift.judge(known, found))
    return problems
