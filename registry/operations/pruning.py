"""Delete old candidates: versions that the pipeline registered and that are not needed any more.

Versions that are live, or were live within the given time, stay. So do the newest version and versions with an alias.
A rollback still works after a deletion, because each environment keeps its own copy of deployed files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from onward.registry.errors import UsageError, saying
from onward.registry.log.entries import last_live
from onward.registry.names import valid_name
from onward.registry.store.resolve import require_model
from onward.registry.store.schema import RegisteredVersion
from onward.registry.store.store import Store

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Pruned:
    """The result of a deletion.

    Attributes:
        model: the model's name.
        deleted: the versions that were deleted, or would be deleted in a dry run.
        kept: the other versions, and why each one stays.
        dry_run: whether nothing was deleted.
    """

    model: str
    deleted: tuple[RegisteredVersion, ...]
    kept: tuple[tuple[RegisteredVersion, str], ...]
    dry_run: bool


def prune(model: str, older_than: str, *, dry_run: bool = False, store: Store | None = None) -> Pruned:
    """Delete the old candidates of a model. Their runs stay, and `mlflow gc` frees the disk space of the files.

    Args:
        model: the model's name.
        older_than: the minimum age, as a number and a unit: 12h, 30d, 2w.
        dry_run: whether to report the versions without deleting them.
        store: the store; None for the store in use.

    Raises:
        UsageError: there is no such model, or `older_than` is malformed.
        StoreUnreachable: the store did not answer. Versions deleted before that stay deleted, and the next call deletes
            the rest.
    """
    valid_name(model, "a model")
    before = datetime.now(UTC) - _duration(older_than)
    store = store or Store(create=False)
    require_model(store, model)
    candidates = [candidate for candidate in store.candidates(model) if candidate.sha256]
    reasons = _reasons(store, model, candidates, before)
    deleted = [candidate for candidate in candidates if candidate.version not in reasons]
    if not dry_run:
        _delete(store, deleted)
    kept = [(candidate, reasons[candidate.version]) for candidate in candidates if candidate.version in reasons]
    return Pruned(model, tuple(deleted), tuple(kept), dry_run)


def _delete(store: Store, candidates: Iterable[RegisteredVersion]) -> None:
    done: list[str] = []
    current = ""

    def words() -> str:
        before = f"Deleted before that: {', '.join(done) or 'none'}"
        return f"{before}; version {current} may be partly deleted. Run the command again to delete the rest"

    with saying(words):
        for candidate in candidates:
            current = str(candidate.version)
            store.delete_candidate(candidate)
            done.append(current)


def _reasons(store: Store, model: str, candidates: Iterable[RegisteredVersion], before: datetime) -> dict[int, str]:
    """Why each version that is kept stays."""
    reasons: dict[int, str] = {}
    used: dict[str, str] = {}
    for environment in store.environments(model):
        for sha256, end in last_live(store.log(environment, model).history).items():
            if not end:
                used[sha256] = f"live in {environment}"
            elif datetime.fromisoformat(end) >= before:
                used.setdefault(sha256, f"was live in {environment} until {end}")
    named = {version: alias for alias, version in store.versions.aliases(model).items()}
    for position, candidate in enumerate(candidates):
        if candidate.sha256 in used:
            reasons[candidate.version] = used[candidate.sha256]
        elif position == 0:
            reasons[candidate.version] = "the newest"
        elif candidate.version in named:
            reasons[candidate.version] = f"has the alias {named[candidate.version]}"
        elif candidate.created >= before:
            reasons[candidate.version] = f"was registered at {candidate.created.isoformat(timespec='seconds')}"
    return reasons


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if not match:
        raise UsageError(f"--older-than {text}: give a number and a unit, h(ours), d(ays) or w(eeks), e.g. 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
