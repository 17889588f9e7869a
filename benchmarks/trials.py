"""Runs tests in a forked process, with one module's text exchanged for another: what benchmarks/mutants.py tries."""

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


@dataclass
class Watch:
    """A pytest plugin: runs the tests of `wanted` (all where empty) in that order. Keeps how long each ran, and which
    lines of `paths`."""

    database: str
    wanted: list[str] = field(default_factory=list)
    paths: tuple[str, ...] = ()
    ran: dict[str, tuple[float, dict[str, list[int]]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        factory: Any = sys.modules.get("tests.store_factory")
        if factory is not None:  # making an empty database takes seconds: all share one
            factory._empty_database = lambda: Path(self.database)
        if self.wanted:
            place = {name: number for number, name in enumerate(self.wanted)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
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
        if report.failed:
            self.failed.append(report.nodeid)


class _Loader(importlib.machinery.SourceFileLoader):
    text: str

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder:
    """Imports of one module, from a text instead of its file."""

    def __init__(self, path: Path, text: str) -> None:
        self._name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        self._loader = _Loader(self._name, str(path))
        self._loader.text = text

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> Any:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._loader.path, loader=self._loader)


def apart(work: Callable[[], int], seconds: float) -> int | None:
    """The exit code of `work`, done in a forked process with whatever it starts; None where it was out of time."""
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
    """The exit code of pytest over these files, with the text of one module exchanged."""
    if mutated is not None:
        sys.meta_path.insert(0, _Finder(*mutated))
    options = ["-q", "--assert=plain", *(["-x"] if watch.wanted else [])]
    for plugin in ("cacheprovider", "unraisableexception", "threadexception", "warnings"):
        options += ["-p", f"no:{plugin}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(pytest.main([*options, *files], plugins=[watch]))
