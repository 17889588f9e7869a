"""What the command line does, for Python: promote, roll back, and say what is live. Every function needs a `Store`."""

from __future__ import annotations

import getpass
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

from registry.deployments import Entry, Line
from registry.errors import LostRace, Refused, UsageError
from registry.gates import judge, summary
from registry.integrity import check_folder
from registry.policy import CANDIDATE, Environment, environments
from registry.replay import replay
from registry.store import Store, environment_model

# What a version's tags say of its evidence, and an entry carries on: the rest is MLflow's and stays behind.
EVIDENCE = (
    "variant",
    "runtime",
    "provider",
    "precision",
    "opset",
    "verdict",
    "parity",
    "data",
    "quality",
    "quality_drop",
    "quality_budget",
    "latency_ratio",
    "size_mb",
    "cpu",
    "run_id",
)


@dataclass(frozen=True)
class Plan:
    """What a promotion or rollback would append. `verdicts`: per requirement, why it is not met, or an empty text."""

    entry: Entry
    verdicts: dict[str, str]
    already_live: bool = False


def promote(
    store: Store,
    model: str,
    to: str,
    reason: str,
    version: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    actor: str | None = None,
) -> Plan:
    """Deploy a version to an environment: what is live in the one before it, or a candidate.

    Raises:
        UsageError: there is no such model, version or environment.
        Refused: a gate said no (every unmet requirement is listed), or the bytes are not those published.
        LostRace: another entry was appended first.
    """
    known = environments()
    environment = _environment(to, known)
    _required(reason)
    store.heal(model, known)
    evidence, source, number, sha256 = _promotable(store, model, environment, to, version)
    line = store.line(model, to)
    own = store.own_copy(model, to, source, sha256) if not dry_run else source
    with store.files(own) as folder:
        check_folder(folder, sha256)
        verdicts = judge(environment.require, evidence, folder)
    entry = Entry(
        model=model,
        environment=to,
        kind="promote",
        sha256=sha256,
        candidate_version=number,
        base=line.base,
        source=own,
        actor=actor or who(),
        reason=reason,
        at=_now(),
        gates=summary(verdicts),
        forced=force and any(verdicts.values()),
        evidence=evidence,
    )
    if line.live and line.live.sha256 == sha256:
        return Plan(line.live, verdicts, already_live=True)
    unmet = [f"{name}: {why}" for name, why in verdicts.items() if why]
    if unmet and not force:
        raise Refused(
            f"version {number} of {model} may not go to {to}: {'; '.join(unmet)}. "
            "Mend it and publish again, or use --force, which history shows for ever"
        )
    return Plan(entry if dry_run else _append(store, entry, known), verdicts)


def rollback(
    store: Store,
    model: str,
    env: str,
    reason: str,
    to: int | None = None,
    dry_run: bool = False,
    actor: str | None = None,
) -> Plan:
    """Deploy again what was live before, or what entry `to` deployed. Nothing is asked of what is being left.

    Raises:
        UsageError: there is no such environment or entry.
        Refused: nothing was live before.
        LostRace: another entry was appended first.
    """
    known = environments()
    _environment(env, known)
    _required(reason)
    line = store.line(model, env)
    target = line.rollback_target(to)
    entry = target.model_copy(
        update={
            "number": 0,
            "kind": "rollback",
            "restores": target.number,
            "base": line.base,
            "actor": actor or who(),
            "reason": reason,
            "at": _now(),
            "gates": "",
            "forced": False,
        }
    )
    return Plan(entry if dry_run else _append(store, entry, known), {})


@dataclass(frozen=True)
class State:
    """One model at a glance: its newest candidate, what is live where, and aliases that say otherwise."""

    model: str
    newest: str
    live: dict[str, Entry | None]
    drift: list[str]


def status(store: Store) -> list[State]:
    """Every model: what is live in each environment."""
    known = environments()
    states = []
    for model in store.models():
        versions = store.candidates(model)
        states.append(
            State(
                model=model,
                newest=str(versions[-1].version) if versions else "",
                live={name: store.line(model, name).live for name in known},
                drift=[f"{name}@{alias}" for name, alias in store.drift(model, known)],
            )
        )
    return states


def history(store: Store, model: str, env: str | None = None) -> dict[str, Line]:
    """The whole line of each environment, or of one.

    Raises:
        UsageError: there is no such model or environment.
    """
    known = environments()
    wanted = [env] if env else list(known)
    for name in wanted:
        _environment(name, known)
    lines = {name: store.line(model, name) for name in wanted}
    if not any(line.counted or line.lost for line in lines.values()) and not store.candidates(model):
        raise UsageError(f"there is no registered model {model!r}; `onward status` lists what there is")
    return lines


def reconcile(store: Store) -> list[str]:
    """Set every alias to what the logs say; returns what was changed."""
    known = environments()
    return [change for model in store.models() for change in store.heal(model, known)]


def check(store: Store, model: str, env: str) -> Entry:
    """Check what is live: every byte against its manifest and its sha256, and the recorded inputs, run on this host.

    Raises:
        Refused: nothing is live, a file has changed, or the answers differ.
    """
    live = live_entry(store, model, env)
    with store.files(live.source) as folder:
        check_folder(folder, live.sha256)
        problem = replay(folder, live.evidence.get("provider", "CPUExecutionProvider"))
    if problem:
        raise Refused(f"{model}@{env}: the recorded inputs do not give the recorded outputs on this host: {problem}")
    return live


def live_entry(store: Store, model: str, env: str) -> Entry:
    """What is live in an environment.

    Raises:
        Refused: nothing is.
    """
    _environment(env, environments())
    live = store.line(model, env).live
    if live is None:
        raise Refused(f"nothing is live in {env} for {model}: `onward promote {model} --to {env} --reason ...`")
    return live


def who() -> str:
    """Who acts: ONWARD_ACTOR, else git's user.email, else the operating system's user. A claim, no proof."""
    if os.environ.get("ONWARD_ACTOR"):
        return os.environ["ONWARD_ACTOR"]
    try:
        found = subprocess.run(["git", "config", "user.email"], capture_output=True, text=True, timeout=5)
        if found.stdout.strip():
            return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass  # no git here: the operating system's user will do
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return f"uid {os.getuid()}"


def _append(store: Store, entry: Entry, known: dict[str, Environment]) -> Entry:
    appended = store.append(entry)
    line = store.line(entry.model, entry.environment)
    if all(counted.number != appended.number for counted in line.counted):
        store.mark_lost(appended)
        winner = next(e for e in line.counted if e.base == appended.base)
        raise LostRace(
            f"someone else got there first (entry {winner.number} of "
            f"{environment_model(entry.model, entry.environment)}: {winner}); nothing of yours was deployed. "
            "Look at `onward status`, and try again if it is still wanted"
        )
    store.heal(entry.model, known)
    return appended


def _promotable(
    store: Store, model: str, environment: Environment, to: str, version: str | None
) -> tuple[dict[str, str], str, str, str]:
    """(evidence, source, candidate version, sha256) of what is to be promoted."""
    if environment.from_ == CANDIDATE:
        fit = [c for c in store.candidates(model) if c.tags.get("sha256")]
        if version is None and not fit:
            raise UsageError(f"{model} has no registered version to promote; `dvc repro` registers one that is fit")
        candidate = store.candidate(model, version) if version is not None else fit[-1]
        evidence = {key: candidate.tags[key] for key in EVIDENCE if key in candidate.tags}
        number = str(candidate.version)
        return evidence, f"models:/{model}/{number}", number, candidate.tags.get("sha256", "")
    live = store.line(model, environment.from_).live
    if live is None:
        raise Refused(
            f"nothing is live in {environment.from_} for {model}, and {to} takes only what is; promote there first"
        )
    if version is not None and version != live.candidate_version:
        raise Refused(
            f"{to} takes only what is live in {environment.from_}, which is version {live.candidate_version} of "
            f"{model}, not {version}; promote that to {environment.from_} first"
        )
    return live.evidence, live.source, live.candidate_version, live.sha256


def _environment(name: str, known: dict[str, Environment]) -> Environment:
    if name not in known:
        raise UsageError(f"there is no environment {name!r}; params.yaml has {', '.join(known)}")
    return known[name]


def _required(reason: str) -> None:
    if not reason.strip():
        raise UsageError("--reason must say why: it is what history shows")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
