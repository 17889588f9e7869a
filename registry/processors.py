"""Counts the processors that this process may use, by its affinity and the quotas of its cgroups."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def usable() -> set[int]:
    """Return the processors that this process may run on, numbered from 1."""
    try:
        return {number + 1 for number in os.sched_getaffinity(0)}
    except AttributeError:  # not available on macOS and Windows
        return set(range(1, (os.cpu_count() or 1) + 1))


def count(root: Path = Path("/")) -> int:
    """Count the processors that this process may use at once.

    Args:
        root: The folder that contains `proc` and `sys`.

    Returns:
        The number of processors that it may run on, or the smallest quota of its cgroups if that is lower.
    """
    return min([len(usable()), *_quotas(root)])


def fewer(root: Path = Path("/")) -> int | None:
    """Compute a number of threads if this process may use fewer processors than the machine has.

    Libraries that count the machine's processors themselves start too many threads in a container.

    Args:
        root: The folder that contains `proc` and `sys`.

    Returns:
        The number of threads; None if this process may use all processors.
    """
    import psutil

    available = count(root)
    if available >= (os.cpu_count() or 1):
        return None
    return min(available, psutil.cpu_count(logical=False) or available)


@contextmanager
def reserved(wanted: int) -> Iterator[set[int] | None]:
    """Reserve processors of this machine for the length of the context.

    Libraries start as many threads as there are processors that they may use. Processes side by side that each keep to
    reserved processors do not disturb each other. A reservation ends with its process, however that ends.

    Args:
        wanted: The number of processors.

    Yields:
        The reserved processors, numbered from 0 as in `os.sched_setaffinity`; None if fewer than `wanted` are free.
    """
    import fcntl

    folder = Path(tempfile.gettempdir()) / f"onward-processors-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    held: dict[int, int] = {}
    try:
        for number in sorted(usable()):
            if len(held) == wanted:
                break
            handle = os.open(folder / str(number), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[number - 1] = handle
            except BlockingIOError:
                os.close(handle)
        yield set(held) if len(held) == wanted else None
    finally:
        for handle in held.values():
            os.close(handle)


def _quotas(root: Path) -> Iterator[int]:
    """The limits of this process's cgroups and all their parents, in processors, rounded up.

    A container may see its own cgroup as the top one, so the limit is there, and the path in /proc may not exist.
    """
    mounted = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:  # version 2, with or without version 1
            bases = [mounted, mounted / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mounted / name for name in dict.fromkeys((controllers, "cpu", "cpu,cpuacct"))]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for base in bases:
            for depth in range(len(parts) + 1):
                yield from _quota(base.joinpath(*parts[:depth]))


def _quota(cgroup: Path) -> Iterator[int]:
    """The limit of one cgroup, if it has one."""
    limit = _text(cgroup / "cpu.max").split() or [
        *_text(cgroup / "cpu.cfs_quota_us").split(),
        *_text(cgroup / "cpu.cfs_period_us").split(),
    ]
    if len(limit) == 2 and all(number.isdecimal() and int(number) for number in limit):  # else "max", or -1
        quota, period = map(int, limit)
        yield -(-quota // period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
