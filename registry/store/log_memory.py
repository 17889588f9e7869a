"""Remember the newest live entry of each signed log, to detect that the end of a log was deleted.

Each signed entry names the entries before it, so a deletion in the middle of a log is noticed. No entry names the
newest one. If the newest entry is deleted, the deployment before it becomes live again, and a reader that sees the log
for the first time cannot notice that. Therefore a small file in the cache, one for each log, records the newest entry
that was seen live. This works because only newer entries can become live. If other users can write to the cache,
nothing is recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from onward.registry.files import write_atomically
from onward.registry.store.cache import cache, is_private
from onward.registry.store.schema import Log
from onward.registry.trust.entry_signatures import digest
from onward.registry.uri import without_credentials


def gone(uri: str, registered: str, log: Log) -> str:
    """Compare a signed log with the remembered live entry, and remember the entry that is live now.

    Args:
        uri: the store's URI, including credentials.
        registered: the name of the log.
        log: the log, read far enough to say what is live.

    Returns:
        a message if the remembered entry was deleted or changed; otherwise "".
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
            f"entry {number} was live when this machine read the log before, and now an older or a different entry is "
            f"live: entry {number} was deleted or changed, or its signer was removed. If that was intended, delete "
            f"{file}"
        )
    return ""


def _file(uri: str, registered: str) -> Path:
    name = hashlib.sha256(f"{uri}\n{registered}".encode()).hexdigest()[:32]
    return cache() / "logs" / f"{name}.json"


def _read(file: Path) -> tuple[int, str]:
    """The number and the digest of the remembered entry; 0 and "" if there is none."""
    try:
        remembered = json.loads(file.read_bytes())
        return int(remembered["number"]), str(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _write(file: Path, uri: str, registered: str, number: int, known: str) -> None:
    remembered = {"store": without_credentials(uri), "log": registered, "number": number, "digest": known}
    try:
        cache().mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(cache(), os.W_OK):
            write_atomically(file, json.dumps(remembered).encode() + b"\n")
    except OSError:
        return  # the cache cannot be written (a read-only container, for example): nothing is remembered
