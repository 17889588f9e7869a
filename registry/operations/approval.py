"""What people put their names to, beside deploying: an approval of a version, its files, a history never signed."""

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
    """Approve that the bytes of a version are promoted to an environment, now or later, by somebody else.

    Returns:
        the approval as it stands in the environment's log, and in words what went wrong in telling others, if anything.

    Raises:
        UsageError: no such model, version or environment, or no reason.
        Refused: the environment has signers, and the key of one of them is not here.
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
    """Sign entries that are in a log already and not proven, so that they count, and return them.

    Without `entries`: everything before the first proven entry, which is the history from before the environment had
    signers. With them: those of these numbers, for example the last one of a signer who has left. Whoever does this
    vouches for the entries as they stand: look at them first.

    Raises:
        UsageError: no such environment; no entry of such a number, or one that is proven.
        Refused: the environment has no signers, or the key of none of them is here.
    """
    wanted = policy.environment(policy.read(), environment)
    valid_name(model, "a model")
    if not wanted.signers:
        raise Refused(f"{environment} has no signers in params.yaml, so that nothing there has to be signed")
    key = entry_signatures.own_key(wanted.signers, environment)
    store = store or Store(create=False)
    registered = registered_name(environment, model)
    log = store.log(environment, model)
    unsigned = {entry.number: entry for entry in log.unproven}
    for number in entries:
        if number not in unsigned:
            raise UsageError(
                f"{registered}: there is no entry {number} that is not proven; see `onward history {model}`"
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
    """Sign all files of a version, keep the signature with it, and return the sha256 that was signed.

    Raises:
        UsageError: no such model, version or key, or model-signing is not installed.
        Refused: the files are not those that were published, or the server does not allow it.
    """
    valid_name(model, "a model")
    store = store or Store(create=False)
    candidate = find_candidate(store, model, version)
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        folder = store.files.fetch(candidate.source, Path(temporary) / "files")
        check_folder(folder, candidate.sha256, candidate.manifest)
        store.tag(model, version, file_signatures.TAG, file_signatures.sign(folder, key))
    return candidate.sha256
