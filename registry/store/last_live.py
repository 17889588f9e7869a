"""Remembers on this machine which version was live, so that a service can start while the registry cannot be reached.

    remember(target)                 # after a look at the registry
    recall("cnn@production")         # the Target of the last look; None if there was none

The record is in the user's cache, beside the version's files. It contains the digests that the files are checked
against, so only the user may be able to write there (registry/store/cache.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from onward.registry.files import write_atomically
from onward.registry.store.cache import cache, require_private
from onward.registry.store.resolve import Target

_FOLDER = "live"


def remember(target: Target, store: str) -> None:
    """Record the version that is live in an environment. If the cache is not writable, nothing is recorded.

    Args:
        target: the version.
        store: the address of the store that named it.
    """
    file = _file(str(target), store)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(target) | {"evidence": dict(target.evidence)}).encode())
    except OSError:
        return


def recall(target: str, store: str) -> Target | None:
    """Read the version that was live in an environment at the last look.

    Args:
        target: MODEL@ENVIRONMENT.
        store: the address of the store in use.

    Raises:
        UsageError: other users can write to the cache.
    """
    require_private(cache())
    try:
        found = json.loads(_file(target, store).read_bytes())
        return Target(**found | {"alarm": tuple(found["alarm"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _file(target: str, store: str) -> Path:
    name = hashlib.sha256(f"{store}\n{target}".encode()).hexdigest()[:32]
    return cache() / _FOLDER / f"{name}.json"
