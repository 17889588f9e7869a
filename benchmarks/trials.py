"""Run tests in a forked process with a changed text of one module, for benchmarks/mutants.py."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Onward's package: `registry/` and `stages/` are imported through the links in it.
PACKAGE = ROOT / "onward"


@dataclass
class Watch:
    """A pytest plugin that runs the tests of `wanted` in that order, or all tests, and records them.

    Attributes:
        database: path of an empty store, which all tests copy.
        wanted: node ids of tests; all tests if empty.
        paths: files of which executed lines are recorded.
        ran: seconds and executed lines by file, by the test's node id.
        failed: node ids of the tests that failed.
    """

    database: str
    wanted: list[str] = field(default_factory=list)
    paths: tuple[str, ...] = ()
    ran: dict[str, tuple[float, dict[str, list[int]]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Select and order the tests."""
        factory: Any = sys.modules.get("tests.store_factory")
        if factory is not None:  # making an empty database takes seconds, so all tests share one
            factory._empty_database = lambda: Path(self.database)
        if self.wanted:
            place = {name: number for number, name in enumerate(self.wanted)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Record the time and the lines of a test."""
        if self.wanted:
            return (yield)
        lines: dict[str, set[int]] = {path: set() for path in self.paths}

        def line(frame: FrameType, event: str, _: object) -> Any:
            lines[frame.f_code.co_filename].add(frame.f_lineno)
            return line

        def call(frame: FrameType, event: str, _: object) -> Any:
            return line if frame.f_code.co_filename in lines else None

        start = time.perf_counter()
        threading.settrace(call)
        sys.settrace(call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.ran[item.nodeid] = time.perf_counter() - start, {path: sorted(run) for path, run in lines.items()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a failure."""
        if report.failed:
            self.failed.append(report.nodeid)


class _Loader(importlib.machinery.SourceFileLoader):
    text: str

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder:
    """Import one module from a text instead of its file."""

    def __init__(self, path: Path, text: str) -> None:
        self._name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        self._loader = _Loader(self._name, str(path))
        self._loader.text = text

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> Any:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._loader.path, loader=self._loader)


def apart(work: Callable[[], int], seconds: float) -> int | None:
    """Run `work` in a forked process group.

    Args:
        work: a function that returns an exit code.
        seconds: its time limit.

    Returns:
        the exit code; None after the time limit.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            silent = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silent, stream)
            code = work()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def run_tests(files: list[str], watch: Watch, mutated: tuple[Path, str] | None = None) -> int:
    """Run pytest on `files`.

    Args:
        files: of the tests, relative to the repository.
        watch: the plugin that selects and records tests.
        mutated: path of a module below PACKAGE, and the text that replaces it.

    Returns:
        pytest's exit code.
    """
    if mutated is not None:
        sys.meta_path.insert(0, _Finder(*mutated))
    options = ["-q", "--assert=plain", *(["-x"] if watch.wanted else [])]
    for plugin in ("cacheprovider", "unraisableexception", "threadexception", "warnings"):
        options += ["-p", f"no:{plugin}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(pytest.main([*options, *files], plugins=[watch]))
