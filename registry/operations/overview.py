"""What there is, looked at and never changed: status, history, check."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onward.registry.artifact.replay import measure_again
from onward.registry.errors import Refused
from onward.registry.gates import policy, signed_files
from onward.registry.log.entries import Entry, GateResult
from onward.registry.names import is_name, valid_name
from onward.registry.store import sqlite_reader
from onward.registry.store.connection import nothing_yet
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
    """What is live, and what is wrong with the log; layout.Log says what the fields mean."""

    environment: str
    live: Entry | None
    since: str
    drift: tuple[Drift, ...]
    foreign: tuple[int, ...]
    unproven: tuple[Entry, ...]
    newer: tuple[int, ...] = ()
    alarm: tuple[str, ...] = ()

    @property
    def trouble(self) -> bool:
        """Whether somebody should look at it."""
        return bool(self.drift or self.foreign or self.unproven or self.newer or self.alarm)


@dataclass(frozen=True)
class ModelStatus:
    """`newest` is the newest version, None where there is none (any more); `registered` says whether there ever was
    one. `failed` is why the newest pipeline run failed, empty where it did not. `foreign` marks a registered model that
    looks like one of ours and has a name that none of ours can have."""

    model: str
    newest: RegisteredVersion | None
    environments: tuple[EnvironmentStatus, ...]
    registered: bool = True
    failed: str = ""
    foreign: bool = False


@dataclass(frozen=True)
class Check:
    """What was found of what is live: `met` is the digest's and the replay's verdict together."""

    model: str
    environment: str
    entry: Entry
    results: tuple[GateResult, ...]

    @property
    def met(self) -> bool:
        return all(result.met for result in self.results)


def history(model: str, environment: str | None = None, store: Store | None = None) -> dict[str, Log]:
    """The log of every environment of a model, or of one.

    Raises:
        UsageError: no such environment, or nothing is known of the model.
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
    """Every model and environment at a glance, and the models whose newest pipeline run failed. Writes nothing, so that
    a user with read access can ask, and drift stays visible."""
    rules = policy.read()
    if store is None and nothing_yet():
        return []
    known, failed = (sqlite_reader.read(), sqlite_reader.failures()) if store is None else (None, None)
    store = store or Store(create=False)
    known = store.versions.everything() if known is None else known
    failed = store.failures() if failed is None else failed
    newest: dict[str, RegisteredVersion | None] = {}
    foreign = []
    for name, overview in known.items():
        environment, dot, model = name.partition(".")
        if not is_name(model if dot else name):  # another team's: no name of ours, and none for a filter
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
            tuple(_environment_status(store, known, name, model) for name in rules),
            model in registered,
            failed.get(model, ""),
        )
        for model, candidate in sorted(newest.items())
    ]


def _environment_status(store: Store, known: Mapping[str, Overview], environment: str, model: str) -> EnvironmentStatus:
    """From the newest entry alone, where nobody raced for it."""
    registered = known.get(registered_name(environment, model), Overview())
    floor = int(registered.newest[0].version) - 1 if registered.newest else 0
    log = store.parse(environment, model, registered.newest[:1], floor)
    log = store.remembered(environment, model, log) if log.settled else store.head(environment, model)
    live = log.history.live
    there = known.get(model, Overview()).aliases.get(environment)
    candidate = live.candidate_version if live else None
    if there != candidate:  # where they agree, the alias says that the version exists
        candidate = store.live_candidate(model, log)
    found = {registered_name(environment, model): registered.aliases.get(LIVE), model: there}
    drift = find_drift(environment, model, log, candidate, found)
    return EnvironmentStatus(
        environment, live, live.at if live else "", tuple(drift), log.foreign, log.unproven, log.newer, log.alarm
    )


def check(model: str, environment: str, store: Store | None = None) -> Check:
    """Check what is live: its log, every file against its digest, and the recorded inputs run on this host.

    Raises:
        Refused: nothing is live there.
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
            detail += f" in {found.source}; {target.source}, which the entry names, is lost"
        digest = GateResult(requirement="digest", met=True, detail=detail)
        signature = _signature(found.folder, target)
        met, detail = measure_again(found.folder, target.evidence)
    replayed = GateResult(requirement="replay", met=met, detail=detail)
    return Check(model, environment, entry, (*logged, digest, *signature, replayed))


def _logged(environment: str, log: Log) -> tuple[GateResult, ...]:
    """What the signatures of the log say, where the environment has signers."""
    if not policy.environment(policy.read(), environment).signers:
        return ()
    problems = "; ".join((*log.damage, *log.alarm))
    return (GateResult(requirement="log", met=not problems, detail=problems or "every entry that counts is proven"),)


def _pinned(target: Target) -> str:
    """What the entry does not pin, in words."""
    if target.manifest:
        return ""
    return (
        "; the entry is from an older Onward and pins the model files alone, not session options, recorded answers or "
        f"tolerances: `onward promote {target.model} --to {target.environment}` pins them all"
    )


def _signature(folder: Path, target: Target) -> tuple[GateResult, ...]:
    """What the signature of the files says, where the environment asks for one."""
    key = policy.environment(policy.read(), target.environment).files_key
    if not key:
        return ()
    try:
        signed_files.require(folder, target.evidence, target.environment)
    except Refused as error:
        return (GateResult(requirement="signature", met=False, detail=str(error)),)
    return (GateResult(requirement="signature", met=True, detail=f"by {key}"),)
