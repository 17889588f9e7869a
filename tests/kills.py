"""Kill `replacing` before each of its disk operations, or make that operation fail, and check what is left.

    python -m tests.kills FOLDER WAY FAULT START

WAY: `exchange` (swap two names in one operation) or `renames` (for systems that cannot). FAULT: `kill` or `fail`
before the n-th Python call, for every n; or `strace-kill` and `strace-fail` before every system call. START is the
initial state: `old` (the folder exists), `none`, or `between` (the state after a kill between two renames); `removed`
is `old`, and the folder is deleted after the fault, as DVC deletes the output of a stage before running it.
Prints the number of tried steps, and exits with a message at the first step that loses data.
"""

from __future__ import annotations

import errno
import fcntl  # noqa: F401  loaded before the steps are counted
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onward.registry import files

NAMES = ("a.txt", "sub/b.txt", "sub/deeper/c.txt")
SYSTEM_CALLS = "rename,renameat2,mkdir,unlink,unlinkat,rmdir,chmod,fchmodat,openat,write,fsync,flock"


def fill(folder: Path, word: str) -> None:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(word)


def state(folder: Path) -> str:
    """The word in a complete folder; `none` if there is no folder, `broken` if a file is missing."""
    if not folder.exists():
        return "none"
    words = {(folder / name).read_text() if (folder / name).is_file() else "" for name in NAMES}
    return words.pop() if len(words) == 1 and "" not in words else "broken"


def replace(folder: Path, word: str) -> None:
    with files.replacing(folder) as fresh:
        fill(fresh, word)


def recover(folder: Path) -> None:
    """Run the next replacement, whose body fails, so that it only recovers the old state."""
    try:
        with files.replacing(folder):
            raise KeyError
    except KeyError:
        pass


def prepare(folder: Path, start: str) -> None:
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir(parents=True)
    if start in ("old", "removed"):
        fill(folder, "old")
    elif start == "between":
        fresh = files._beside(folder)
        fill(fresh, "lost")
        fill(fresh.with_name(f"{fresh.name}.old"), "old")


def hooked(at: int, action: Callable[[], None]) -> list[int]:
    """Run `action` before the `at`-th system call made by Python; returns the call counter."""
    count = [0]

    def step(event: str, _: Any = None) -> None:
        if event.startswith(("os.", "open", "shutil.", "fcntl.")):
            count[0] += 1
            if count[0] == at:
                action()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            step(name)
            return call(*arguments)

        return wrapped

    sys.addaudithook(step)
    os.fsync = counted("os.fsync", os.fsync)  # these two raise no audit event
    found = files._renameat2()
    if found is not None:
        swap = counted("os.renameat2", found)
        files._renameat2 = lambda: swap  # type: ignore[assignment]
    return count


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failed() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; returns 0, 1 for OSError, 2 for any other error."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            work()
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return pid


def by_python(folder: Path, fault: str, at: int) -> bool:
    """Return whether such a step exists."""

    def work() -> None:
        count = hooked(at, killed if fault == "kill" else failed)
        try:
            replace(folder, "new")
        finally:
            if count[0] < at:
                os._exit(9)

    code = os.waitstatus_to_exitcode(os.waitpid(child(work), 0)[1])
    assert code in ((-signal.SIGKILL,) if fault == "kill" else (0, 1)) or code == 9, f"step {at}: ended with {code}"
    return code != 9


def by_strace(folder: Path, inject: str) -> str:
    """The strace output of one run with the option `inject`."""

    def work() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        replace(folder, "new")

    pid, log = child(work), folder.parent.with_name("strace.log")
    os.waitpid(pid, os.WUNTRACED)
    command = ["strace", "-p", str(pid), "-o", str(log), "-e", f"trace={SYSTEM_CALLS}"]
    command += ["-e", f"inject={inject}"] if inject else []
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)
    tracer.communicate()
    if "attached" not in said:
        sys.exit(f"untraceable: {said}")
    return log.read_text()


def steps(folder: Path, fault: str, start: str) -> Any:
    """Make the run fail at each step in turn; yields a description of the step."""
    if not fault.startswith("strace"):
        at = 1
        while True:
            prepare(folder, start)
            if not by_python(folder, fault, at):
                return
            yield f"step {at}"
            at += 1
    prepare(folder, start)
    calls = re.findall(r"^(\w+)\(", by_strace(folder, ""), re.MULTILINE)
    does = "signal=KILL" if fault == "strace-kill" else "error=EIO"
    for call in sorted(set(calls)):
        for at in range(1, calls.count(call) + 1):
            prepare(folder, start)
            by_strace(folder, f"{call}:{does}:when={at}")
            yield f"{call} {at}"


def main() -> None:
    base, way, fault, start = sys.argv[1:]
    folder = Path(base) / "parent" / "kept.dir"
    if way == "renames":
        files._renameat2 = lambda: None  # type: ignore[assignment]
    files._machine()
    allowed = {"new", "none"} if start == "none" else {"new", "old"}
    tried = 0
    for step in steps(folder, fault, start):
        found = state(folder)
        if start == "removed":
            shutil.rmtree(folder, ignore_errors=True)
            recover(folder)
            assert state(folder) in ("old", "none"), f"{step}: {state(folder)} is put back"
            replace(folder, "old")
        elif way == "exchange" and start == "old":
            assert found in allowed, f"{step}: {found} is at the place"
        assert found in allowed | {"none"}, f"{step}: {found} is at the place"
        recover(folder)
        assert state(folder) in allowed, f"{step}: {state(folder)} after the next call, {found} before it"
        replace(folder, "third")
        assert state(folder) == "third", f"{step}: {state(folder)} after a whole call"
        recover(folder)
        left = sorted(path.name for path in folder.parent.iterdir())
        assert left == [folder.name], f"{step}: {left} are left"
        tried += 1
    print(tried)


if __name__ == "__main__":
    main()
