"""The cache folder of this machine, which belongs to one user: what others can write, they can change after a check."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onward.registry.errors import Refused, UsageError


def cache() -> Path:
    """The folder that contains downloaded versions."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onward"


def is_private(folder: Path) -> bool:
    """Whether the cache does not exist yet, or only its user can write to it."""
    try:
        require_private(folder)
    except (UsageError, OSError):
        return False
    return True


def require_private(folder: Path) -> None:
    """Check that only the user, or root, can write to the cache.

    Raises:
        UsageError: other users can.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise UsageError(
            f"the cache {folder} belongs to another user (uid {found.st_uid}), who could change a model after it was "
            "checked: set XDG_CACHE_HOME to a folder of your own"
        )
    if found.st_mode & 0o022:
        raise UsageError(
            f"other users can write to the cache {folder}, and could change a model after it was checked: "
            f"run `chmod 700 {folder}`"
        )
    above = folder.resolve().parent
    mode = above.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise UsageError(
            f"all users can write to {above}, and could replace the cache in it with another folder: "
            f"run `chmod o-w {above}`, or set XDG_CACHE_HOME to a folder of your own"
        )


def require_own(folder: Path) -> None:
    """Check that only the user, or root, can change the files of a version.

    Raises:
        Refused: other users can, or a file is a link.
    """
    for path in (folder, *folder.rglob("*")):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise Refused(f"{path.name} is a link, and a version must contain regular files only")
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
            raise Refused(f"users other than the cache's owner can write to {path.name}")


def restrict_writing(folder: Path) -> None:
    """Remove the write permission of the group and of others, which an artifact store or the umask may have left."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)
