"""The cache of downloaded versions on this machine, which belongs to one user: what lies in it is loaded.

    path = download(target, store)          # the .onnx file of a registered version, in the cache and checked

Each version has a folder of its own, named by the digest of its manifest (by its sha256, where an older Onward pinned
nothing else). A folder is checked against these digests each time, because it may have been damaged meanwhile. Only its
user (or root, for a cache that is part of a container's image) may be able to write to it: what others can write, they
can change after it was checked. Where the cache cannot be written, a version that it lacks is kept for the life of the
process in a temporary folder.
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
    """The folder that holds downloaded versions."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onward"


def download(target: Target, store: Store) -> Path:
    """The .onnx file of a registered version, in the cache and checked.

    Raises:
        Refused: the store no longer has the files, or they are not those that were published (or signed, where the
            environment asks for that).
        UsageError: others than its user can write to the cache.
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
    """The name of a version's folder. An older Onward pinned no manifest, but the evidence may say how it is served."""
    way = target.evidence.get(SERVED_AS, "")
    return target.manifest or (f"{target.sha256}-{way[:16]}" if way else target.sha256)


def _fill(folder: Path, target: Target, store: Store) -> Path:
    """Download what `target` names to `folder`, which appears there whole or not at all."""
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        files = store.files.copy_of(target.environment, target.model, target, Path(temporary) / "files").folder
        _shut(files)
        try:
            os.replace(files, folder)
        except OSError:  # somebody else was quicker with the same bytes
            if not folder.is_dir():
                raise
    return folder


def _shut(folder: Path) -> None:
    """Take away from others what an artifact store and the umask left them of writing."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)


_processes: list[Path] = []


def _for_this_process() -> Path:
    """A folder that goes when the process ends."""
    if not _processes:
        _processes.append(Path(tempfile.mkdtemp(prefix="onward-cache-")))
        atexit.register(shutil.rmtree, _processes[0], ignore_errors=True)
    return _processes[0]


def is_private(folder: Path) -> bool:
    """Whether nobody but its user can put anything into the cache, if it is there."""
    try:
        _require_private(folder)
    except (UsageError, OSError):
        return False
    return True


def _require_private(folder: Path) -> None:
    """Check that nobody but its user can put anything into the cache.

    Raises:
        UsageError: others can.
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
            f"the cache {folder} can be written by others, who could change a model after it was checked: "
            f"`chmod 700 {folder}`"
        )
    above = folder.resolve().parent
    mode = above.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise UsageError(
            f"{above} can be written by everybody, who could put another folder in the place of the cache in it: "
            f"`chmod o-w {above}`, or set XDG_CACHE_HOME to a folder of your own"
        )


def _require_own(folder: Path) -> None:
    """Check that nobody else can change the files of a version.

    Raises:
        Refused: somebody can.
    """
    for path in (folder, *folder.rglob("*")):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise Refused(f"{path.name} is a link; a version holds regular files alone")
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
            raise Refused(f"{path.name} can be written by others than the cache's user")
