"""Download versions to the user's cache on this machine.

    path = download(target, store)          # the .onnx file of a registered version, in the cache and checked

Each version has its own folder, named after the digest of its manifest (or after its sha256, if an older Onward pinned
only that). The folder is checked against these digests before each use, because it may be damaged. Only the user, or
root (for a cache inside a container image), may have write access: others could change a file after the check. If the
cache is not writable, a missing version is downloaded to a temporary folder that exists until the process ends.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from onward.registry.artifact.manifest import check_folder
from onward.registry.artifact.serving_plan import MODEL
from onward.registry.errors import Refused, UsageError
from onward.registry.gates import signed_files
from onward.registry.store.artifacts import SERVED_AS

if TYPE_CHECKING:
    from onward.registry.store.resolve import Target
    from onward.registry.store.store import Store

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def cache() -> Path:
    """The folder that contains downloaded versions."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onward"


def download(target: Target, store: Store) -> Path:
    """Download a registered version to the cache, if it is not there yet, and check its files.

    Args:
        target: the version.
        store: the store that contains it.

    Returns:
        the path of its .onnx file in the cache.

    Raises:
        Refused: the store no longer has the files, they differ from the published ones, or the environment requires a
            signature that they lack.
        UsageError: other users can write to the cache.
        StoreUnreachable: the store did not answer.
    """
    name = _name(target)
    folder = cache() / name
    _require_private(cache())
    if not os.path.lexists(folder):
        try:
            cache().mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = _fill(folder, target, store)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            folder = _fill(_for_this_process() / name, target, store)
    try:
        _require_own(folder)
        check_folder(folder, target.sha256, target.manifest)
    except Refused as error:
        raise Refused(f"{target}: {error}. Delete {folder} to download it again") from None
    try:
        signed_files.require(folder, target.evidence, target.environment)
    except Refused as error:
        raise Refused(f"{target}: {error}") from None
    return folder / MODEL


def _name(target: Target) -> str:
    """The name of a version's folder.

    Versions of an older Onward have no manifest. Their name contains the digest of serving.json, if it is known.
    """
    way = target.evidence.get(SERVED_AS, "")
    return target.manifest or (f"{target.sha256}-{way[:16]}" if way else target.sha256)


def _fill(folder: Path, target: Target, store: Store) -> Path:
    """Download a version to `folder` atomically: the folder appears complete or not at all."""
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        files = store.files.copy_of(target.environment, target.model, target, Path(temporary) / "files").folder
        _restrict_writing(files)
        try:
            os.replace(files, folder)
        except OSError:  # another process has just written the same files
            if not folder.is_dir():
                raise
    return folder


def _restrict_writing(folder: Path) -> None:
    """Remove the write permission of the group and of others, which an artifact store or the umask may have left."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)


_processes: list[Path] = []


def _for_this_process() -> Path:
    """A temporary folder that is deleted when the process ends."""
    if not _processes:
        _processes.append(Path(tempfile.mkdtemp(prefix="onward-cache-")))
        atexit.register(shutil.rmtree, _processes[0], ignore_errors=True)
    return _processes[0]


def is_private(folder: Path) -> bool:
    """Whether the cache does not exist yet, or only its user can write to it."""
    try:
        _require_private(folder)
    except (UsageError, OSError):
        return False
    return True


def _require_private(folder: Path) -> None:
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


def _require_own(folder: Path) -> None:
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
