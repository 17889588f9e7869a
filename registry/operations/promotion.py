"""What the `onward` command changes, as functions: promote, rollback, reconcile.

    from registry import operations
    operations.promote("cnn", to="staging", reason="better on night scenes")
    operations.rollback("cnn", "production", reason="wrong on sevens")

Each reads the log, decides (registry/log/entries.py, registry/operations/choice.py), appends at most one entry, heals
the views.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from onward.registry.artifact.manifest import manifest_digest
from onward.registry.errors import LostRace, MachineFault, OnwardError, Refused, StoreUnreachable, UsageError, saying
from onward.registry.gates import four_eyes, policy, signed_files
from onward.registry.gates.policy import CANDIDATE, Policy
from onward.registry.log.entries import Draft, Entry, GateResult, plan_rollback
from onward.registry.names import valid_name
from onward.registry.operations import notification
from onward.registry.operations.choice import Deployable, choose, judge, proof, second_person
from onward.registry.operations.overview import status
from onward.registry.store import stage_mirror
from onward.registry.store.artifacts import Found
from onward.registry.store.schema import Drift, Log, registered_name
from onward.registry.store.stage_mirror import StageDrift
from onward.registry.store.store import Store
from onward.registry.text import is_unicode, one_line
from onward.registry.trust import chain, entry_signatures
from onward.registry.trust.identity import named, who

_LONGEST_REASON = 1000


@dataclass(frozen=True)
class Outcome:
    """What a promotion or a rollback did.

    entry: what is live now; None after a dry run. changed: whether an entry was appended. version, sha256: what was to
    be deployed. gates: what each requirement said. note: what is left to do, where the entry counts but its aliases
    could not be written or its hook failed.
    """

    model: str
    environment: str
    version: int
    sha256: str
    changed: bool
    dry_run: bool = False
    entry: Entry | None = None
    gates: tuple[GateResult, ...] = ()
    note: str = ""


def promote(
    model: str,
    to: str,
    version: int | None = None,
    *,
    reason: str,
    force: bool = False,
    dry_run: bool = False,
    actor: str | None = None,
    store: Store | None = None,
) -> Outcome:
    """Deploy a version to environment `to`.

    Without `version`: what is live in the environment before it, or, where that is the candidates, the newest version
    that meets what `to` requires. What is live already stays, and no entry is appended. `force` deploys against the
    order of environments and unmet requirements, never against a digest, and is kept in the log.

    Raises:
        Refused: requirements are not met (all of them are listed), or files are not those that were published.
        UsageError: no such model, version or environment, or no reason.
        LostRace: somebody else's entry was appended meanwhile.
        StoreUnreachable: the store did not answer.
    """
    rules = policy.read()
    wanted = policy.environment(rules, to)
    valid_name(model, "a model")
    reason = valid_reason(reason)
    store = store or Store(create=False)
    actor, key = author(wanted, to, actor)
    log = store.head(to, model)
    log.require_known(registered_name(to, model))
    live = log.history.live
    chosen, order = choose(store, rules, model, to, version, force, live)
    if live is not None and chosen.is_live_as(live):
        note = "" if dry_run else _stay(store, rules, model, to, log, live)
        return Outcome(
            model, to, live.candidate_version, live.sha256, changed=False, dry_run=dry_run, entry=live, note=note
        )
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        what = f"{model} version {chosen.version}"
        found = _obtain(store, model, to, chosen, Path(temporary) / "files", rules[to].source, what)
        manifest = manifest_digest(found.folder)
        judged, pages = judge(store, wanted, chosen.evidence, live, found.folder)
        second = second_person(store, wanted, model, to, chosen, manifest, actor, now())
        results = (*order, *second, *judged, *proof(log, wanted))
        unmet = [result for result in results if not result.met]
        if unmet and not (force and _forcible(wanted, unmet)):
            listed = "".join(f"\n  {result}" for result in unmet)
            raise Refused(f"{model} version {chosen.version} is not fit for {to}; nothing was changed:{listed}")
        if dry_run:
            return Outcome(model, to, chosen.version, chosen.sha256, changed=False, dry_run=True, gates=results)
        source = _keep(store, model, to, chosen, found, Path(temporary) / "copy")
        gates_run = store.files.keep_gates(to, model, results, pages) if pages else ""
    draft = Draft(
        kind="promote",
        key=uuid.uuid4().hex,
        base=log.history.base,
        sha256=chosen.sha256,
        manifest=manifest,
        candidate_version=chosen.version,
        source=source,
        actor=actor,
        reason=reason,
        at=_after(live),
        forced=bool(unmet),
        gates=results,
        gates_run=gates_run,
        evidence=dict(chosen.evidence),
    )
    return _append(store, rules, model, to, log, draft, key)


def rollback(
    model: str,
    environment: str,
    *,
    reason: str,
    to: int | None = None,
    actor: str | None = None,
    store: Store | None = None,
) -> Outcome:
    """Bring back what was live before, or what entry `to` deployed. A second rollback goes one further back.

    Needs neither the candidate nor its run: an environment has its own copies.

    Raises:
        Refused: there is nothing to roll back to, or its files are not those that were published.
        UsageError: no such environment or entry, or no reason.
        LostRace: somebody else's entry was appended meanwhile.
        StoreUnreachable: the store did not answer.
    """
    rules = policy.read()
    wanted = policy.environment(rules, environment)
    valid_name(model, "a model")
    reason = valid_reason(reason)
    store = store or Store(create=False)
    actor, key = author(wanted, environment, actor)
    log = store.head(environment, model, down_to=to)
    log.require_known(registered_name(environment, model))
    live, find = log.history.live, partial(store.entry, environment, model)
    try:
        target = plan_rollback(live, find, None if to is None else log.history.find(to))
    except OnwardError as error:
        raise type(error)(f"{registered_name(environment, model)}: {error}") from None
    assert live is not None
    if live.number == target.number or live.restores == target.number:
        note = _stay(store, rules, model, environment, log, live)
        return Outcome(model, environment, live.candidate_version, live.sha256, changed=False, entry=live, note=note)
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        what, origin = f"{model} as entry {target.number} has it", rules[environment].source
        found = _obtain(store, model, environment, target, Path(temporary) / "files", origin, what)
        manifest = manifest_digest(found.folder)
        source = _keep(store, model, environment, target, found, Path(temporary) / "copy")
    draft = Draft(
        kind="rollback",
        key=uuid.uuid4().hex,
        base=log.history.base,
        sha256=target.sha256,
        manifest=manifest,
        candidate_version=target.candidate_version,
        source=source,
        actor=actor,
        reason=reason,
        at=_after(live),
        restores=target.number,
        evidence=target.evidence,
    )
    return _append(store, rules, model, environment, log, draft, key)


def reconcile(store: Store | None = None) -> list[Drift | StageDrift]:
    """Make every alias, mark and mirrored stage agree with the logs, and return what had to be written.

    A log with rows that are not proven after its last proven entry is left alone: its aliases may be right, and what
    its proven entries say may be what somebody wanted to bring about.

    Raises:
        Refused: a log was left alone; the message says which, why, and what was written elsewhere.
    """
    store = store or Store(create=False)
    rules = policy.read()
    healed: list[Drift | StageDrift] = []
    left = []
    with saying(lambda: f"Put right before that: {'; '.join(map(str, healed))}" if healed else ""):
        for found in status(store):
            alarms = []
            for environment in found.environments:
                log = store.log(environment.environment, found.model)
                if log.alarm or log.newer:
                    words = "; ".join(log.alarm) or f"entry {log.newer[-1]} was written by a newer Onward"
                    alarms.append(f"\n  {registered_name(environment.environment, found.model)}: {words}")
                elif log.history.entries():
                    healed += store.heal(environment.environment, found.model, log)
            if not found.foreign and not alarms:
                healed += stage_mirror.mirror(store, rules, found.model)
            left += alarms
    if left:
        done = "".join(f"\n  put right elsewhere: {drift}" for drift in healed)
        raise Refused(f"these logs were left alone, look at `onward history`:{''.join(left)}{done}")
    return healed


def create_environments(models: Iterable[str], store: Store | None = None) -> list[str]:
    """Make what every environment of params.yaml needs for these models, and return the names of what was made.

    On a server with users, whoever makes a registered model owns it: an administrator does this before anybody
    promotes, and then grants EDIT to those who may.

    Raises:
        UsageError: a name is none, an experiment of that name was deleted, or the server sends no webhook there.
        Refused: the server does not allow it.
    """
    rules = policy.read()
    names = [valid_name(model, "a model") for model in models]
    store = store or Store()
    made: list[str] = []
    with saying(
        lambda: f"Made before that: {', '.join(made) or 'nothing'}. The same command again makes what is missing"
    ):
        for name, wanted in rules.items():
            made += store.files.prepare(name)
            made += store.prepare(name, names)
            if wanted.notify is not None and wanted.notify.server_webhook is not None:
                made += store.prepare_webhook(name, notification.resolved(wanted.notify.server_webhook))
    return made


def author(wanted: policy.Environment, environment: str, actor: str | None) -> tuple[str, entry_signatures.Key | None]:
    """Who writes an entry of an environment; where it has signers, the one whose key is here, and that key.

    Raises:
        Refused: the environment has signers, and the key of one of them is not here.
    """
    if not wanted.signers:
        return named(actor or "") or who(), None
    key = entry_signatures.own_key(wanted.signers, environment)
    return key.name, key


def _forcible(wanted: policy.Environment, unmet: Iterable[GateResult]) -> bool:
    """A second person who has to sign is no gate that one person may force."""
    return not wanted.signers or all(result.requirement != four_eyes.REQUIREMENT for result in unmet)


def _obtain(
    store: Store, model: str, environment: str, wanted: Deployable | Entry, folder: Path, origin: str, what: str
) -> Found:
    """The files of `wanted`: the environment's own copy, or, where that is lost, the same bytes from wherever they are.

    Raises:
        Refused: they are nowhere; the message says where they were looked for.
    """
    try:
        places = _places(store, model, environment, wanted, origin)
        found = store.files.obtain(places, wanted, folder)
        signed_files.require(found.folder, wanted.evidence, environment)
    except Refused as error:
        raise Refused(f"{what}: {error}") from None
    return found


def _places(store: Store, model: str, environment: str, wanted: Deployable | Entry, origin: str) -> Iterator[str]:
    """Where the files of these bytes may be, the best place first; a later one is looked for when it is needed."""
    sha256 = wanted.sha256
    if isinstance(wanted, Entry):  # of this environment: names its copy
        yield wanted.source
    yield from store.files.own_copies(environment, model, sha256)
    yield wanted.source
    if origin != CANDIDATE:
        yield from store.files.own_copies(origin, model, sha256)
    yield from (candidate.source for candidate in store.candidates(model) if candidate.sha256 == sha256)


def _keep(store: Store, model: str, environment: str, wanted: Deployable | Entry, found: Found, scratch: Path) -> str:
    """The environment's own copy: where the files were found, if that is one, else a new one of these files."""
    if found.source in store.files.own_copies(environment, model, wanted.sha256):
        return found.source
    return store.files.keep(environment, model, wanted.sha256, found.folder, scratch)


def _stay(store: Store, rules: Policy, model: str, environment: str, log: Log, live: Entry) -> str:
    """Heal what is live already: its views, and its files where the environment lost them. Returns what to say."""
    restored = ""
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        try:
            store.files.copy_of(environment, model, live, Path(temporary) / "live")
        except Refused as lost:
            what, origin = f"{model} version {live.candidate_version}, which is live", rules[environment].source
            found = _obtain(store, model, environment, live, Path(temporary) / "files", origin, what)
            store.files.keep(environment, model, live.sha256, found.folder, Path(temporary) / "copy")
            restored = f"the copy that {environment} had was lost and was made again from {found.source} ({lost})"
    return "; ".join(filter(None, (restored, _heal(store, rules, model, environment, log))))


def _heal(store: Store, rules: Policy, model: str, environment: str, log: Log) -> str:
    """Make the views agree with the log, which says what is live whatever becomes of them; else say what is left."""
    try:
        store.heal(environment, model, log)
        stage_mirror.mirror(store, rules, model)
    except (StoreUnreachable, MachineFault):
        return "the entry counts, but the aliases could not be written: `onward reconcile` does that later"
    except Refused as error:
        return f"the entry counts, but not all aliases could be written: {error}"
    return ""


def _append(
    store: Store, rules: Policy, model: str, environment: str, seen: Log, draft: Draft, key: entry_signatures.Key | None
) -> Outcome:
    registered = registered_name(environment, model)
    try:
        log = store.append(environment, model, draft := tied(draft, registered, seen, key))
    except LostRace:
        # A signed entry does not count where a row before it is missing or unsigned. Where nothing else was deployed
        # meanwhile, that row was there before, and the next entry says that its author saw it.
        seen = store.head(environment, model)
        if key is None or seen.history.base != draft.base:
            raise
        again = draft.model_copy(update={"key": uuid.uuid4().hex})
        log = store.append(environment, model, draft := tied(again, registered, seen, key))
    entry = log.history.won(draft.key)
    assert entry is not None
    notes = [_heal(store, rules, model, environment, log)]
    hook = rules[environment].notify
    if hook is not None:
        notes.append(notification.announce(hook, model, environment, entry))
    return Outcome(
        model,
        environment,
        draft.candidate_version,
        draft.sha256,
        changed=True,
        entry=entry,
        gates=draft.gates,
        note="; ".join(filter(None, notes)),
    )


def tied(draft: Draft, registered: str, seen: Log, key: entry_signatures.Key | None) -> Draft:
    """`draft` with its links to the log that its author saw, and signed; as it is where there is no key."""
    if key is None:
        return draft
    return entry_signatures.sign(chain.follow(draft, registered, seen.newest, seen.entries()), registered, key)


def valid_reason(text: str) -> str:
    """A reason in one line.

    Raises:
        UsageError: there is none that shows, it is too long, or it is no UTF-8.
    """
    if not is_unicode(text):
        raise UsageError("--reason: holds bytes that are no UTF-8: set the terminal to UTF-8 and type it again")
    reason = one_line(text)
    if not reason:
        raise UsageError("--reason: say why, for whoever reads the history")
    if len(reason) > _LONGEST_REASON:
        raise UsageError(f"--reason: {len(reason)} characters, {_LONGEST_REASON} at most; link to the long story")
    return reason


def _after(live: Entry | None) -> str:
    """This moment, but never one before that of the entry which is replaced: clocks of two machines differ."""
    moment = now()
    if live is None or datetime.fromisoformat(live.at) <= datetime.fromisoformat(moment):
        return moment
    return live.at


def now() -> str:
    """This moment, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
