"""The operations that change what is live: promote, rollback, reconcile.

    from onward.registry.operations import promotion
    promotion.promote("cnn", to="staging", reason="better on night scenes")
    promotion.rollback("cnn", "production", reason="wrong on sevens")

Each operation reads the log, decides (registry/log/entries.py, registry/operations/choice.py), appends at most one
entry, and corrects the views.
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
    """The result of a promotion or a rollback.

    Attributes:
        model: the model's name.
        environment: the environment.
        version: the number of the deployed version.
        sha256: the digest of its model.
        changed: whether an entry was appended.
        dry_run: whether this was a dry run, which changes nothing.
        entry: the live entry; None after a dry run.
        gates: the result of each requirement.
        note: a message if the entry counts, but its aliases could not be written or its hook failed; else "".
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
    """Deploy a version to an environment.

    If the version is already live there, no entry is appended.

    Args:
        model: the model's name.
        to: the environment.
        version: the version's number. None for the version that is live in the environment before `to`, or for the
            newest version that meets the requirements if `to` takes candidates.
        reason: why, in one line.
        force: whether to deploy despite unmet requirements or a broken order of environments. The log records this. A
            wrong digest is never ignored.
        dry_run: whether to check the requirements without changing anything.
        actor: who promotes; None for the current user. With signers, the owner of the signing key.
        store: the store; None for the store in use.

    Raises:
        Refused: requirements are not met (the message lists all of them), or files differ from the published ones.
        UsageError: there is no such model, version or environment, or the reason is missing.
        LostRace: another command appended an entry meanwhile.
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
            raise Refused(
                f"{model} version {chosen.version} does not meet the requirements of {to}; nothing was changed:{listed}"
            )
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
    expected: int | None = None,
    store: Store | None = None,
) -> Outcome:
    """Deploy the previous version again, or the one that an earlier entry deployed.

    A second rollback goes one version further back. It uses the environment's own copy of the files, so it works even
    if the candidate and its run were deleted.

    Args:
        model: the model's name.
        environment: the environment.
        reason: why, in one line.
        to: the number of the entry to return to; None for the deployment before the live one.
        actor: who rolls back; None for the current user. With signers, the owner of the signing key.
        expected: the number of the entry that must be live; None for any.
        store: the store; None for the store in use.

    Raises:
        Refused: there is no earlier deployment, or its files differ from the published ones.
        UsageError: there is no such environment or entry, or the reason is missing.
        LostRace: another command appended an entry meanwhile.
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
    if expected is not None and log.history.base != expected:
        raise LostRace(
            f"{registered_name(environment, model)}: entry {log.history.base} is live, not entry {expected}; nothing "
            f"was changed. Look at `onward history {model}`"
        )
    try:
        target = plan_rollback(live, find, None if to is None else log.history.find(to))
    except OnwardError as error:
        raise type(error)(f"{registered_name(environment, model)}: {error}") from None
    assert live is not None
    if live.number == target.number or live.restores == target.number:
        note = _stay(store, rules, model, environment, log, live)
        return Outcome(model, environment, live.candidate_version, live.sha256, changed=False, entry=live, note=note)
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        what, origin = f"{model} as deployed by entry {target.number}", rules[environment].source
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
    """Correct every alias, mark and mirrored stage that disagrees with the logs.

    A log is skipped if unproven rows follow its last proven entry. Then the log itself may have been tampered with, and
    its aliases may be right.

    Args:
        store: the store; None for the store in use.

    Returns:
        the views that were corrected.

    Raises:
        Refused: a log was skipped; the message says which one and why, and what was corrected in the other logs.
    """
    store = store or Store(create=False)
    rules = policy.read()
    healed: list[Drift | StageDrift] = []
    skipped = []
    with saying(lambda: f"Corrected before that: {'; '.join(map(str, healed))}" if healed else ""):
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
            skipped += alarms
    if skipped:
        done = "".join(f"\n  corrected in other logs: {drift}" for drift in healed)
        raise Refused(f"these logs were not touched, look at `onward history`:{''.join(skipped)}{done}")
    return healed


def create_environments(models: Iterable[str], store: Store | None = None) -> list[str]:
    """Create everything that the environments of params.yaml need for some models, if it does not exist yet.

    On a server with users, the creator of a registered model owns it. So an administrator should call this before the
    first promotion, and then grant EDIT to the users who may deploy.

    Args:
        models: the names of the models.
        store: the store; None for the store in use.

    Returns:
        the names of the experiments, registered models and webhooks that were created or changed now.

    Raises:
        UsageError: a name is invalid, an experiment of that name was deleted, or the server rejects a webhook.
        Refused: the server does not allow it.
    """
    rules = policy.read()
    names = [valid_name(model, "a model") for model in models]
    store = store or Store()
    made: list[str] = []
    with saying(lambda: f"Created before that: {', '.join(made) or 'nothing'}. Run the command again for the rest"):
        for name, wanted in rules.items():
            made += store.files.prepare(name)
            made += store.prepare(name, names)
            if wanted.notify is not None and wanted.notify.server_webhook is not None:
                made += store.prepare_webhook(name, notification.resolved(wanted.notify.server_webhook))
    return made


def author(wanted: policy.Environment, environment: str, actor: str | None) -> tuple[str, entry_signatures.Key | None]:
    """The author of an entry, and the key to sign it with.

    Args:
        wanted: the environment.
        environment: the environment's name.
        actor: the author's name; None for the current user. With signers, the owner of the key is the author.

    Returns:
        the author's name, and the key; None without signers.

    Raises:
        Refused: the environment has signers, and this machine has no key of theirs.
    """
    if not wanted.signers:
        return named(actor or "") or who(), None
    key = entry_signatures.own_key(wanted.signers, environment)
    return key.name, key


def _forcible(wanted: policy.Environment, unmet: Iterable[GateResult]) -> bool:
    """Whether --force may override these gates. It cannot override a signed approval by a second person."""
    return not wanted.signers or all(result.requirement != four_eyes.REQUIREMENT for result in unmet)


def _obtain(
    store: Store, model: str, environment: str, wanted: Deployable | Entry, folder: Path, origin: str, what: str
) -> Found:
    """Download the environment's own copy of the files, or, if that is lost, the same files from another place.

    Raises:
        Refused: no place has them; the message lists the places.
    """
    try:
        places = _places(store, model, environment, wanted, origin)
        found = store.files.obtain(places, wanted, folder)
        signed_files.require(found.folder, wanted.evidence, environment)
    except Refused as error:
        raise Refused(f"{what}: {error}") from None
    return found


def _places(store: Store, model: str, environment: str, wanted: Deployable | Entry, origin: str) -> Iterator[str]:
    """The sources that may have the files, the best first. Later ones are searched only if they are needed."""
    sha256 = wanted.sha256
    if isinstance(wanted, Entry):  # an entry of this environment names its copy
        yield wanted.source
    yield from store.files.own_copies(environment, model, sha256)
    yield wanted.source
    if origin != CANDIDATE:
        yield from store.files.own_copies(origin, model, sha256)
    yield from (candidate.source for candidate in store.candidates(model) if candidate.sha256 == sha256)


def _keep(store: Store, model: str, environment: str, wanted: Deployable | Entry, found: Found, scratch: Path) -> str:
    """The source of the environment's own copy of these files, which is created if it does not exist."""
    if found.source in store.files.own_copies(environment, model, wanted.sha256):
        return found.source
    return store.files.keep(environment, model, wanted.sha256, found.folder, scratch)


def _stay(store: Store, rules: Policy, model: str, environment: str, log: Log, live: Entry) -> str:
    """Repair the views of a version that is live already, and its copy if that was lost. Return a message."""
    restored = ""
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        try:
            store.files.copy_of(environment, model, live, Path(temporary) / "live")
        except Refused as lost:
            what, origin = f"{model} version {live.candidate_version}, which is live", rules[environment].source
            found = _obtain(store, model, environment, live, Path(temporary) / "files", origin, what)
            store.files.keep(environment, model, live.sha256, found.folder, Path(temporary) / "copy")
            restored = f"{environment} had lost its copy, which was restored from {found.source} ({lost})"
    notes = (restored, _heal(store, rules, model, environment, log), _describe(store, model, environment, log))
    return "; ".join(filter(None, notes))


def _heal(store: Store, rules: Policy, model: str, environment: str, log: Log) -> str:
    """Correct the views. If that fails, return a message: the entry counts anyway, because the log decides."""
    try:
        store.heal(environment, model, log)
        stage_mirror.mirror(store, rules, model)
    except (StoreUnreachable, MachineFault):
        return "the entry counts, but the aliases could not be written: run `onward reconcile` later"
    except Refused as error:
        return f"the entry counts, but not all aliases could be written: {error}"
    return ""


def _describe(store: Store, model: str, environment: str, log: Log) -> str:
    """Write the descriptions in MLflow. If that fails, return a message: nothing depends on them."""
    if log.alarm:
        return ""
    try:
        store.describe(environment, model, log)
    except (StoreUnreachable, MachineFault, Refused) as error:
        return f"the entry counts, but MLflow's descriptions of it could not be written: {error}"
    return ""


def _append(
    store: Store, rules: Policy, model: str, environment: str, seen: Log, draft: Draft, key: entry_signatures.Key | None
) -> Outcome:
    """Sign and append an entry, correct the views, and run the environment's hook."""
    registered = registered_name(environment, model)
    try:
        log = store.append(environment, model, draft := tied(draft, registered, seen, key))
    except LostRace:
        # A signed entry does not count if a row before it is missing or unsigned. If nothing else was deployed
        # meanwhile, this row existed before. A second entry then records that its author saw the row, and counts.
        seen = store.head(environment, model)
        if key is None or seen.history.base != draft.base:
            raise
        again = draft.model_copy(update={"key": uuid.uuid4().hex})
        log = store.append(environment, model, draft := tied(again, registered, seen, key))
    entry = log.history.won(draft.key)
    assert entry is not None
    notes = [_heal(store, rules, model, environment, log), _describe(store, model, environment, log)]
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
    """Link a draft to the log that its author saw, and sign it. Without a key, return it unchanged.

    Args:
        draft: the entry.
        registered: the name of the log's registered model.
        seen: the log that the author saw.
        key: the author's key.
    """
    if key is None:
        return draft
    return entry_signatures.sign(chain.follow(draft, registered, seen.newest, seen.entries()), registered, key)


def valid_reason(text: str) -> str:
    """Check a reason, and bring it to one line.

    Args:
        text: the reason.

    Raises:
        UsageError: it has no visible characters, is too long, or is not UTF-8.
    """
    if not is_unicode(text):
        raise UsageError("--reason: the text is not valid UTF-8: set the terminal to UTF-8 and type it again")
    reason = one_line(text)
    if not reason:
        raise UsageError("--reason: is empty: say why, for the readers of the history")
    if len(reason) > _LONGEST_REASON:
        raise UsageError(
            f"--reason: {len(reason)} characters are too many, at most {_LONGEST_REASON} are allowed: link to a longer "
            "text"
        )
    return reason


def _after(live: Entry | None) -> str:
    """The current time, or the live entry's time if that is later, because the clocks of two machines may differ."""
    moment = now()
    if live is None or datetime.fromisoformat(live.at) <= datetime.fromisoformat(moment):
        return moment
    return live.at


def now() -> str:
    """The current time in UTC, in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
