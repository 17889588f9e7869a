"""Read the state of models and environments, without changing it: status, history, check."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from onward.registry.artifact.replay import measure_again
from onward.registry.errors import Refused
from onward.registry.gates import policy, signed_files
from onward.registry.log.entries import Entry, GateResult
from onward.registry.names import is_name, valid_name
from onward.registry.store import refused, sqlite_reader
from onward.registry.store.connection import nothing_yet
from onward.registry.store.monitor_tags import Recorded, about
from onward.registry.store.refused import Refusal
from onward.registry.store.resolve import Target, require_model, resolve
from onward.registry.store.schema import (
    LIVE,
    Drift,
    Log,
    Overview,
    RegisteredVersion,
    find_drift,
    registered_name,
    to_registered_version,
)
from onward.registry.store.store import Store


@dataclass(frozen=True)
class EnvironmentStatus:
    """The live entry of an environment, and the problems of its log.

    Attributes:
        environment: the environment.
        live: the live entry, or None.
        since: when it was deployed, in ISO 8601; "" if nothing is live.
        drift: the views that disagree with the log.
        foreign: as in schema.Log.
        unproven: as in schema.Log.
        newer: as in schema.Log.
        alarm: as in schema.Log.
        decay: what the monitor found about the live deployment; None if there is no alarm.
        refused: the servers that do not serve the live version, and why.
    """

    environment: str
    live: Entry | None
    since: str
    drift: tuple[Drift, ...]
    foreign: tuple[int, ...]
    unproven: tuple[Entry, ...]
    newer: tuple[int, ...] = ()
    alarm: tuple[str, ...] = ()
    decay: Recorded | None = None
    refused: tuple[Refusal, ...] = ()

    @property
    def trouble(self) -> bool:
        """Whether there is any problem that a person should look at."""
        return bool(
            self.drift or self.foreign or self.unproven or self.newer or self.alarm or self.decay or self.refused
        )


@dataclass(frozen=True)
class ModelStatus:
    """The state of a model.

    Attributes:
        model: the model's name.
        newest: the newest version; None if there is none (any more).
        environments: the state of each environment.
        registered: whether a version was ever registered or deployed.
        failed: why the newest pipeline run failed; "" if it passed.
        foreign: whether this is a registered model of another team, whose name resembles a log of Onward's.
    """

    model: str
    newest: RegisteredVersion | None
    environments: tuple[EnvironmentStatus, ...]
    registered: bool = True
    failed: str = ""
    foreign: bool = False


@dataclass(frozen=True)
class Check:
    """The result of checking the live version of an environment.

    Attributes:
        model: the model's name.
        environment: the environment.
        entry: the live entry.
        results: the result of each check.
    """

    model: str
    environment: str
    entry: Entry
    results: tuple[GateResult, ...]

    @property
    def met(self) -> bool:
        """Whether all checks passed."""
        return all(result.met for result in self.results)


def history(model: str, environment: str | None = None, store: Store | None = None) -> dict[str, Log]:
    """The logs of a model, by environment.

    Args:
        model: the model's name.
        environment: one environment; None for all of them.
        store: the store; None for the store in use.

    Raises:
        UsageError: there is no such environment, or no version of the model.
    """
    rules = policy.read()
    valid_name(model, "a model")
    names = [environment] if environment else list(rules)
    for name in names:
        policy.environment(rules, name)
    store = store or Store(create=False)
    logs = {name: store.log(name, model) for name in names}
    if not any(log.entries() for log in logs.values()):
        require_model(store, model)
    return logs


def status(store: Store | None = None) -> list[ModelStatus]:
    """The state of every model and environment, and the models whose newest pipeline run failed.

    Nothing is written, so read access is enough, and views that disagree with the log stay visible.

    Args:
        store: the store; None for the store in use.
    """
    rules = policy.read()
    if store is None and nothing_yet():
        return []
    fast = store is None
    known, failed = (sqlite_reader.read(), sqlite_reader.failures()) if fast else (None, None)
    store = store or Store(create=False)
    known = store.versions.everything() if known is None else known
    failed = store.failures() if failed is None else failed
    alarms = sqlite_reader.alarms() if fast else None
    alarms = store.alarms() if alarms is None else alarms
    newest: dict[str, RegisteredVersion | None] = {}
    foreign = []
    for name, overview in known.items():
        environment, dot, model = name.partition(".")
        if not is_name(model if dot else name):  # another team's model: its name may not be valid in MLflow's filters
            foreign += [ModelStatus(name, None, (), foreign=True)] if dot and environment in rules else []
        elif dot and environment in rules:
            newest.setdefault(model, None)
        elif not dot:
            published = [candidate for candidate in map(to_registered_version, overview.newest) if candidate.sha256]
            if published:
                newest[name] = published[0]
    registered = set(newest)
    newest |= {model: None for model in failed if model not in newest}
    return foreign + [
        ModelStatus(
            model,
            candidate,
            tuple(_environment_status(store, known, name, model, alarms.get((name, model), ())) for name in rules),
            model in registered,
            failed.get(model, ""),
        )
        for model, candidate in sorted(newest.items())
    ]


def _environment_status(
    store: Store, known: Mapping[str, Overview], environment: str, model: str, alarms: Sequence[Recorded]
) -> EnvironmentStatus:
    """The state of one environment, from the newest entry alone if that is enough."""
    registered = known.get(registered_name(environment, model), Overview())
    floor = int(registered.newest[0].version) - 1 if registered.newest else 0
    log = store.parse(environment, model, registered.newest[:1], floor)
    log = store.remembered(environment, model, log) if log.settled else store.head(environment, model)
    live = log.history.live
    alias = known.get(model, Overview()).aliases.get(environment)
    candidate = live.candidate_version if live else None
    if alias != candidate:  # if they agree, the alias proves that the version exists
        candidate = store.live_candidate(model, log)
    found = {registered_name(environment, model): registered.aliases.get(LIVE), model: alias}
    drift = find_drift(environment, model, log, candidate, found)
    since, refusals = live.at if live else "", refused.read(registered.tags, live.number if live else 0)
    return EnvironmentStatus(
        environment,
        live,
        since,
        tuple(drift),
        log.foreign,
        log.unproven,
        log.newer,
        log.alarm,
        about(alarms, live.number, datetime.now(UTC)) if live else None,
        refusals,
    )


def check(model: str, environment: str, store: Store | None = None) -> Check:
    """Check the live version of an environment: its log, its files, and its answers on this host.

    Every file is compared with its digest, and the recorded inputs are run again.

    Args:
        model: the model's name.
        environment: the environment.
        store: the store; None for the store in use.

    Raises:
        Refused: nothing is live in the environment.
    """
    store = store or Store(create=False)
    target = resolve(f"{model}@{environment}", store)
    log = store.log(environment, model)
    entry = log.history.find(target.entry)
    logged = _logged(environment, log)
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        try:
            found = store.files.copy_of(environment, model, target, Path(temporary))
        except Refused as error:
            failed = GateResult(requirement="digest", met=False, detail=str(error))
            return Check(model, environment, entry, (*logged, failed))
        size = sum(file.size_bytes for file in found.model)
        detail = f"sha256 {target.sha256}, {size:,} bytes{_pinned(target)}"
        if found.source != target.source:
            detail += f" in {found.source}; the files in {target.source}, which the entry names, are lost"
        digest = GateResult(requirement="digest", met=True, detail=detail)
        signature = _signature(found.folder, target)
        met, detail = measure_again(found.folder, target.evidence)
    replayed = GateResult(requirement="replay", met=met, detail=detail)
    return Check(model, environment, entry, (*logged, digest, *signature, replayed))


def _logged(environment: str, log: Log) -> tuple[GateResult, ...]:
    """The check of the log's signatures, if the environment has signers."""
    if not policy.environment(policy.read(), environment).signers:
        return ()
    problems = "; ".join((*log.damage, *log.alarm))
    return (GateResult(requirement="log", met=not problems, detail=problems or "every entry that counts is proven"),)


def _pinned(target: Target) -> str:
    """A note if the entry pins only the files of the model; otherwise empty."""
    if target.manifest:
        return ""
    return (
        "; an older Onward wrote the entry, and pinned only the model files, not session options, recorded answers or "
        f"tolerances: `onward promote {target.model} --to {target.environment}` pins all of them"
    )


def _signature(folder: Path, target: Target) -> tuple[GateResult, ...]:
    """The check of the files' signature, if the environment requires one."""
    key = policy.environment(policy.read(), target.environment).files_key
    if not key:
        return ()
    try:
        signed_files.require(folder, target.evidence, target.environment)
    except Refused as error:
        return (GateResult(requirement="signature", met=False, detail=str(error)),)
    return (GateResult(requirement="signature", met=True, detail=f"by {key}"),)
