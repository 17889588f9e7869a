"""Files and folders as wholes: what a file's bytes are, and writing either so that no reader ever sees half of it."""

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

# Linux's renameat2: the flag that swaps two names, and the folder that relative paths start from.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# What is answered where a file or a folder cannot be synced, or not by this user.
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EACCES, errno.EPERM}
# What another machine made counts as abandoned after this long: a folder that is written to, and an old one that stands
# aside for the moment between two renames. In seconds.
_DAY, _MINUTE = 86400.0, 60.0


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before, even after a power failure.

    A file that is there keeps its mode; a new one gets what the umask leaves. Where `path` is a link, the file that it
    names is replaced and the link stays.

    Raises:
        OSError: it cannot be written; the message names `path`.
    """
    target = Path(os.path.realpath(path))
    with _naming(path):
        if target.exists() and not target.is_file():  # a pipe or a device is written to, and not replaced
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
    """A fresh folder to write to, which takes `folder`'s place when all went well and vanishes when not.

    At every moment the old folder or the new one is complete: at its place where the file system can swap two names
    (Linux's renameat2); elsewhere it is beside its place for the moment between two renames, and the next call puts
    back what a process that was killed in that moment left. Other leavings of killed processes are deleted, but only
    while there is a folder at the place. A folder keeps its mode; a new one gets what the umask leaves. Where `folder`
    is a link, the folder that it names is replaced and the link stays.

    Raises:
        OSError: it cannot be written; the message names `folder`, and what was there is there.
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
        _delete(fresh)  # what was at the place before, or what was not finished
        _unlock(lock)


def _put(fresh: Path, place: Path) -> None:
    """Move a folder to its place; what was there is then at `fresh`, to be deleted."""
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
    """Swap two names in one step; False where this system or this file system cannot."""
    swap = _renameat2()
    if swap is None:
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


@functools.cache
def _renameat2() -> Any:
    """The C library's function, None where there is none."""
    try:
        found = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or a C library that does not have it
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return found


def _tidy(place: Path) -> None:
    """Put back an old folder whose process was killed between two renames; delete what else is abandoned."""
    names = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.[0-9a-f]{{16}}(\.old)?")
    left = [path for path in place.parent.iterdir() if names.fullmatch(path.name)]
    if not os.path.lexists(place):
        old = [path for path in left if path.suffix == ".old" and _is_abandoned(path)]
        if not old:
            return  # nothing is deleted while nothing is at the place
        newest = max(old, key=lambda path: path.lstat().st_ctime)
        os.rename(newest, place)
        left.remove(newest)
    for path in left:
        if _is_abandoned(path):
            _delete(path)


def _beside(place: Path) -> Path:
    """A new name beside a folder, which says which machine made it."""
    return place.with_name(f".{place.name}.{_machine()}.{secrets.token_hex(8)}")


@functools.cache
def _machine() -> str:
    """This machine since it started: all of its processes, in whatever container, see each other's locks."""
    try:
        said = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        said = platform.node()
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    """Whether no process works any more on a folder that `replacing` made.

    The process that does holds a lock on it, which ends with the process. Its id would say nothing: ids are given
    again, and differ between containers. Where another machine made the folder, or where there are no locks, its age
    decides: a folder that nothing was changed in for a day, or that was moved aside more than a minute ago.
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
    except (BlockingIOError, FileNotFoundError):  # its process holds the lock, or deletes it
        return False


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """No other process is here for the same parent folder at once, where the file system has locks."""
    lock = _lock(parent, wait=True)
    try:
        yield
    finally:
        _unlock(lock)


def _lock(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder until `_unlock`, or until this process ends; None where there are no locks.

    Raises:
        BlockingIOError: another process has it locked, and this one is not to wait.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):  # Windows; or a folder that may be written to and not read
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a network's file system
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)  # for forked processes, too, which closing leaves locked
        os.close(handle)


def _delete(path: Path) -> None:
    """Delete a file or folder, as far as that can be done. An old folder is first given a name that is never put back,
    so that no half of it is."""
    with contextlib.suppress(OSError):
        if path.suffix == ".old":
            path = path.rename(path.with_name(f"{path.name[: -len('.old') - 16]}{secrets.token_hex(8)}"))
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        path.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def _keep_mode(place: Path, fresh: Path) -> None:
    """Give `fresh` the mode of what it replaces, where both are files or both are folders."""
    with contextlib.suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if stat.S_IFMT(mode) == stat.S_IFMT(fresh.stat().st_mode):
            fresh.chmod(stat.S_IMODE(mode))


def _sync(folder: Path) -> None:
    """Have the file system write down a folder and all that is in it, so that no rename outlives what was renamed."""
    for path in folder.rglob("*"):
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            _sync_one(path)
    _sync_one(folder)


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
    """Errors of the system say which path could not be written, and not which temporary one; their number stays."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error
