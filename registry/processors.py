"""How many processors this process may use: those that it may run on, within the quotas of its cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable() -> set[int]:
    """The processors that this process may run on, counted from 1."""
    try:
        return {number + 1 for number in os.sched_getaffinity(0)}
    except AttributeError:  # neither macOS nor Windows says
        return set(range(1, (os.cpu_count() or 1) + 1))


def count(root: Path = Path("/")) -> int:
    """How many processors this process may use at once: those that it may run on, and no more than its cgroups give.

    `root` is the folder that holds `proc` and `sys`.
    """
    return min([len(usable()), *_quotas(root)])


def fewer(root: Path = Path("/")) -> int | None:
    """How many threads compute well here, where that is fewer than the machine has processors; None where it is not.

    Libraries that count the machine's processors themselves start too many threads in a container.
    """
    import psutil

    available = count(root)
    if available >= (os.cpu_count() or 1):
        return None
    return min(available, psutil.cpu_count(logical=False) or available)


def _quotas(root: Path) -> Iterator[int]:
    """The limits of this process's cgroups and of all cgroups around them, in processors, rounded up.

    A container that sees its own cgroup as the topmost one finds its limit there; the path that /proc names may then
    not be there at all.
    """
    mounted = root / "sys" / "fs" / "cgroup"
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:  # version 2, alone or beside version 1
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
    """The limit of one cgroup, where it has one."""
    said = _text(cgroup / "cpu.max").split() or [
        *_text(cgroup / "cpu.cfs_quota_us").split(),
        *_text(cgroup / "cpu.cfs_period_us").split(),
    ]
    if len(said) == 2 and all(figure.isdecimal() and int(figure) for figure in said):  # else "max", or -1
        quota, period = map(int, said)
        yield -(-quota // period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
