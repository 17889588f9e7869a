"""Approve a version for an environment, and sign log entries or the files of a version."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from onward.registry.artifact.manifest import check_folder
from onward.registry.errors import Refused, UsageError
from onward.registry.gates import policy
from onward.registry.log.entries import Draft, Entry
from onward.registry.names import valid_name
from onward.registry.operations import notification
from onward.registry.operations.promotion import author, now, tied, valid_reason
from onward.registry.store.resolve import find_candidate
from onward.registry.store.schema import approval_source, registered_name
from onward.registry.store.store import Store
from onward.registry.trust import entry_signatures, file_signatures


def approve(
    model: str, version: int, environment: str, *, reason: str, actor: str | None = None, store: Store | None = None
) -> tuple[Entry, str]:
    """Approve that another person promotes a version to an environment, now or later.

    Args:
        model: the model's name.
        version: the version's number. The approval is for its files, identified by their digests.
        environment: the environment.
        reason: why, in one line.
        actor: who approves; None for the current user. With signers, the owner of the signing key.
        store: the store; None for the store in use.

    Returns:
        the approval, as it is in the environment's log, and a message if the notification hook failed, else "".

    Raises:
        UsageError: there is no such model, version or environment, or the reason is missing.
        Refused: the environment has signers, and this machine has no key of theirs.
        StoreUnreachable: the store did not answer.
    """
    wanted = policy.environment(policy.read(), environment)
    valid_name(model, "a model")
    reason = valid_reason(reason)
    store = store or Store(create=False)
    actor, key = author(wanted, environment, actor)
    candidate = find_candidate(store, model, version)
    draft = Draft(
        kind="approve",
        key=uuid.uuid4().hex,
        base=0,
        sha256=candidate.sha256,
        manifest=candidate.manifest,
        candidate_version=version,
        source=approval_source(candidate.sha256),
        actor=actor,
        reason=reason,
        at=now(),
    )
    draft = tied(draft, registered_name(environment, model), store.head(environment, model), key)
    approval = store.approve(environment, model, draft)
    note = notification.announce(wanted.notify, model, environment, approval) if wanted.notify else ""
    return approval, note


def sign(
    model: str, environment: str, *, entries: Sequence[int] = (), dry_run: bool = False, store: Store | None = None
) -> list[Entry]:
    """Sign entries that are already in a log and not proven, so that they count.

    The signer vouches for the content of these entries, and should read them first.

    Args:
        model: the model's name.
        environment: the environment.
        entries: the numbers of the entries to sign, for example the last one of a removed signer. If empty, all
            entries before the first proven one are signed: the history from before the environment had signers.
        dry_run: whether to return the entries without storing their signatures.
        store: the store; None for the store in use.

    Returns:
        the signed entries.

    Raises:
        UsageError: there is no such environment, or a number names no entry or a proven one.
        Refused: the environment has no signers, or this machine has no key of theirs.
    """
    wanted = policy.environment(policy.read(), environment)
    valid_name(model, "a model")
    if not wanted.signers:
        raise Refused(f"{environment} has no signers in params.yaml, so its entries need no signature")
    key = entry_signatures.own_key(wanted.signers, environment)
    store = store or Store(create=False)
    registered = registered_name(environment, model)
    log = store.log(environment, model)
    unsigned = {entry.number: entry for entry in log.unproven}
    for number in entries:
        if number not in unsigned:
            raise UsageError(
                f"{registered}: no entry {number} needs a signature: look at `onward history {model}`, and give the "
                "number of an entry that is not proven"
            )
    if entries:
        chosen = [unsigned[number] for number in sorted(set(entries))]
    else:
        first = min((entry.number for entry in log.history.entries()), default=log.newest + 1)
        chosen = [entry for number, entry in sorted(unsigned.items()) if number < first]
    signed = [entry_signatures.sign(entry, registered, key) for entry in chosen]
    if not dry_run:
        for entry in signed:
            store.sign(environment, model, entry)
        store.heal(environment, model)
    return signed


def sign_files(model: str, version: int, key: Path, *, store: Store | None = None) -> str:
    """Sign all files of a version, and store the signature as a tag of the version.

    Args:
        model: the model's name.
        version: the version's number.
        key: the path of the private key.
        store: the store; None for the store in use.

    Returns:
        the sha256 of the signed model.

    Raises:
        UsageError: there is no such model, version or key, or model-signing is not installed.
        Refused: the files differ from the published ones, or the server does not allow the change.
    """
    valid_name(model, "a model")
    store = store or Store(create=False)
    candidate = find_candidate(store, model, version)
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        folder = store.files.fetch(candidate.source, Path(temporary) / "files")
        check_folder(folder, candidate.sha256, candidate.manifest)
        store.tag(model, version, file_signatures.TAG, file_signatures.sign(folder, key))
    return candidate.sha256
