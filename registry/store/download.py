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
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from onward.registry.artifact.manifest import check_folder
from onward.registry.artifact.serving_plan import MODEL
from onward.registry.errors import Refused
from onward.registry.gates import signed_files
from onward.registry.store.artifacts import SERVED_AS
from onward.registry.store.cache import cache, require_own, require_private, restrict_writing

if TYPE_CHECKING:
    from onward.registry.store.resolve import Target
    from onward.registry.store.store import Store

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_cached(target: Target) -> bool:
    """Whether the cache contains a folder for a version. Its files may have changed; `download` checks them.

    Args:
        target: the version.
    """
    return (cache() / _name(target)).is_dir()


def download(target: Target, store: Store | None = None) -> Path:
    """Download a registered version to the cache, if it is not there yet, and check its files.

    Args:
        target: the version.
        store: the store that contains it; None if the cache does (`is_cached`).

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
    require_private(cache())
    if store is not None and not os.path.lexists(folder):
        try:
            cache().mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = _fill(folder, target, store)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            folder = _fill(_for_this_process() / name, target, store)
    try:
        require_own(folder)
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
        restrict_writing(files)
        try:
            os.replace(files, folder)
        except OSError:  # another process has just written the same files
            if not folder.is_dir():
                raise
    return folder


_processes: list[Path] = []


def _for_this_process() -> Path:
    """A temporary folder that is deleted when the process ends."""
    if not _processes:
        _processes.append(Path(tempfile.mkdtemp(prefix="onward-cache-")))
        atexit.register(shutil.rmtree, _processes[0], ignore_errors=True)
    return _processes[0]
