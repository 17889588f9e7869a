"""What this user saw of signed logs, so that a log cannot be cut off at its end unnoticed.

Each signed entry names those before it, so that a deleted one is missed by the next. Nothing names the newest entry. If
it is deleted, what was live before is live again, and a reader that sees the log for the first time cannot know. One
that saw it before can: the newest entry that was live is kept in a small file in the cache, one for each log. What is
live in a log only ever moves to newer entries. Where others can write to the cache, nothing is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from onward.registry.files import write_atomically
from onward.registry.store.download import cache, is_private
from onward.registry.store.schema import Log
from onward.registry.trust.entry_signatures import digest
from onward.registry.uri import without_credentials


def gone(uri: str, registered: str, log: Log) -> str:
    """Compare a signed log with what was seen of it before, and remember what is live now.

    Args:
        uri: the store's, credentials included.
        registered: the name of the log.
        log: the log, read far enough to say what is live.

    Returns:
        in words, that an entry which counted is gone or another one; empty where all is there.
    """
    file = _file(uri, registered)
    if not is_private(cache()) or file.is_symlink() or file.parent.is_symlink():
        return ""
    number, known = _read(file)
    live = log.history.live
    if live is not None and live.number > number:
        _write(file, uri, registered, live.number, digest(live, registered))
    elif number and (live is None or (live.number, digest(live, registered)) != (number, known)):
        return (
            f"entry {number} was seen here as live, and now an older entry, or another one, is: it was deleted or "
            f"changed, or its signer was removed. If that is right, delete {file}"
        )
    return ""


def _file(uri: str, registered: str) -> Path:
    name = hashlib.sha256(f"{uri}\n{registered}".encode()).hexdigest()[:32]
    return cache() / "logs" / f"{name}.json"


def _read(file: Path) -> tuple[int, str]:
    """The number and the digest of what was live; 0 where nothing is known."""
    try:
        said = json.loads(file.read_bytes())
        return int(said["number"]), str(said["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _write(file: Path, uri: str, registered: str, number: int, known: str) -> None:
    said = {"store": without_credentials(uri), "log": registered, "number": number, "digest": known}
    try:
        cache().mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(cache(), os.W_OK):
            write_atomically(file, json.dumps(said).encode() + b"\n")
    except OSError:
        return  # a host that can write nothing remembers nothing
