"""Computes digests of files, and writes files and folders atomically: readers never see a part of them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# For Linux's renameat2: the flag that swaps two names, and the code of the working directory.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# From this number of files on, flushing the whole file system is quicker than flushing each file: 0.1 s instead of 2 s
# for 9,000 files of 5 kB.
MANY = 500
# The errors of fsync if a file or folder does not support it, or this user may not do it.
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EACCES, errno.EPERM}
# The age in seconds from which another machine's folder counts as abandoned: a day for a folder that is being written,
# a minute for an old folder that was moved aside between two renames.
_DAY, _MINUTE = 86400.0, 60.0


def sha256_file(path: Path) -> str:
    """Compute the sha256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder.

    Args:
        folder: The folder; it may be missing.

    Returns:
        The content of each file, by its path in the folder, with forward slashes.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it has either the new or the old content, even after a power failure.

    An existing file keeps its mode; a new one gets the mode that the umask permits. If `path` is a link, its target is
    replaced and the link stays.

    Args:
        path: The file. Missing parent folders are made.
        content: The new content.

    Raises:
        OSError: The file cannot be written; the message names `path`.
    """
    target = Path(os.path.realpath(path))
    with _naming(path):
        if target.exists() and not target.is_file():  # a pipe or a device must not be replaced
            target.write_bytes(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                _keep_mode(target, temporary)
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_one(target.parent)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Replace a folder atomically.

    The new folder replaces the old one if the block succeeds, and is deleted if it fails.

    At every moment the old or the new folder is complete. If the file system can swap two names (Linux's renameat2), it
    is always at its place. Otherwise the old folder is beside its place between two renames. If the process is killed
    at that moment, the next call moves the old folder back. Other remains of killed processes are deleted, but only
    while there is a folder at the place.

    An existing folder keeps its mode; a new one gets the mode that the umask permits. If `folder` is a link, its target
    is replaced and the link stays.

    Args:
        folder: The folder to replace. Missing parent folders are made.

    Yields:
        An empty folder to write to.

    Raises:
        OSError: The folder cannot be written; the message names `folder`, and the old folder is unchanged.
    """
    place = Path(os.path.realpath(folder))
    with _naming(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(place.parent):
            _tidy(place)
            fresh = _beside(place)
            fresh.mkdir()
            lock = _lock(fresh)
    try:
        yield fresh
        with _naming(folder):
            _sync(fresh)
            with _alone_in(place.parent):
                _keep_mode(place, fresh)
                _put(fresh, place)
                _tidy(place)
                _sync_one(place.parent)
    finally:
        _delete(fresh)  # the old folder, or an incomplete new one
        _unlock(lock)


def _put(fresh: Path, place: Path) -> None:
    """Move a folder to its place. The old folder is deleted, or is at `fresh` afterwards and can be deleted."""
    if not os.path.lexists(place):
        os.rename(fresh, place)
    elif not _exchange(fresh, place):
        old = fresh.with_name(f"{fresh.name}.old")
        os.rename(place, old)
        try:
            os.rename(fresh, place)
        except BaseException:
            os.rename(old, place)
            raise
        _delete(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False if the system or the file system does not support it."""
    swap = _renameat2()
    if swap is None:
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


@functools.cache
def _renameat2() -> Any:
    """The C library's function; None if it is missing."""
    found = _of_c("renameat2")
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return found


def _of_c(name: str) -> Any:
    """A function of the C library; None if it is missing."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # not Linux, or the C library lacks it
        return None


def _tidy(place: Path) -> None:
    """Move back an old folder whose process was killed between two renames, and delete other abandoned folders."""
    names = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.[0-9a-f]{{16}}(\.old)?")
    left = [path for path in place.parent.iterdir() if names.fullmatch(path.name)]
    if not os.path.lexists(place):
        old = [path for path in left if path.suffix == ".old" and _is_abandoned(path)]
        if not old:
            return  # nothing is deleted while there is no folder at the place
        newest = max(old, key=lambda path: path.lstat().st_ctime)
        os.rename(newest, place)
        left.remove(newest)
    for path in left:
        if _is_abandoned(path):
            _delete(path)


def _beside(place: Path) -> Path:
    """A new name beside a folder, with the machine that made it."""
    return place.with_name(f".{place.name}.{_machine()}.{secrets.token_hex(8)}")


@functools.cache
def _machine() -> str:
    """An id of this machine since its start. All its processes, in all containers, see each other's locks."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        machine = platform.node()
    return hashlib.sha256(machine.encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    """Whether no process works on a folder that `replacing` made.

    A process holds a lock on its folder until the process ends. (Process ids are no alternative: they are reused and
    differ between containers.) If another machine made the folder, or there are no locks, its age decides: nothing in
    it changed for a day, or it was moved aside more than a minute ago.
    """
    try:
        if f".{_machine()}." in path.name:
            lock = _lock(path)
            if lock is not None:
                _unlock(lock)
                return True
        if path.suffix == ".old":
            return time.time() - path.lstat().st_ctime > _MINUTE
        newest = max((entry.lstat().st_ctime for entry in path.rglob("*")), default=0.0)
        return time.time() - max(newest, path.lstat().st_ctime) > _DAY
    except (BlockingIOError, FileNotFoundError):  # its process holds the lock, or is deleting it
        return False


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Exclude other processes from the same parent folder, if the file system supports locks."""
    lock = _lock(parent, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


def _lock(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder until `_unlock`, or until this process ends; None if locks are not supported.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is False.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows, or a folder with write but not read permission
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a network file system without locks
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would leave the lock with forked processes
        os.close(handle)


def _delete(path: Path) -> None:
    """Delete a file or folder as far as possible.

    An old folder is first renamed, so that `_tidy` cannot move a partly deleted folder back.
    """
    with contextlib.suppress(OSError):
        if path.suffix == ".old":
            path = path.rename(path.with_name(f"{path.name[: -len('.old') - 16]}{secrets.token_hex(8)}"))
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        path.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def _keep_mode(place: Path, fresh: Path) -> None:
    """Give `fresh` the mode of what it replaces, if both are files or both are folders."""
    with contextlib.suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if stat.S_IFMT(mode) == stat.S_IFMT(fresh.stat().st_mode):
            fresh.chmod(stat.S_IMODE(mode))


def _sync(folder: Path) -> None:
    """Flush a folder and its content to disk, so that a rename is never on disk before the renamed content."""
    paths = list(folder.rglob("*"))
    if len(paths) > MANY and _sync_file_system(folder):
        return
    for path in paths:
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            _sync_one(path)
    _sync_one(folder)


def _sync_file_system(folder: Path) -> bool:
    """Flush the file system that a folder is on, with Linux's syncfs; False if that is not possible."""
    flush = _of_c("syncfs")
    if flush is None:
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # flushing each file reports it, if it matters
        return False
    try:
        return bool(flush(handle) == 0)
    finally:
        os.close(handle)


def _sync_one(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors of the system name `path` instead of a temporary file; their errno stays."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error
