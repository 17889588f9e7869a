"""A stage shows what it does and how long it may take; Ctrl-C ends it with one line."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onward.stages import __main__ as entry
from onward.stages import progress
from onward.stages.progress import Step
from tests.conftest import ROOT


def shown(monkeypatch: pytest.MonkeyPatch, until: Callable[[list[str]], bool], terminal: bool = False) -> list[str]:
    """What a stage writes, with short intervals, until a condition holds."""
    written: list[str] = []
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    monkeypatch.setattr(progress, "rewrites_lines", lambda: terminal)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(os, "write", lambda _, text: written.append(text.decode()))
    with progress.started("benchmark", "cnn"):
        progress.show("cpu: round", "int8", number=1, of=4)
        for number in (2, 3):
            progress.show("cpu: round", "int8", number=number, of=4)
        deadline = time.monotonic() + 20
        while not until(written) and time.monotonic() < deadline:
            time.sleep(0.01)
            progress.show("cpu: round", "int8", number=3, of=4)
    return written


def test_plain_lines_name_stage_model_step_and_variant_and_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, lambda written: any("round 3" in line for line in written))
    (line,) = [line for line in lines if "round 3" in line]
    assert line.startswith("benchmark cnn: cpu: round 3 of 4, int8, about 0 s left (")
    assert line.endswith(")\n")
    assert "\033" not in "".join(lines)


def test_a_timer_shows_a_long_step_and_starts_no_thread(tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(
        "import os, threading, time\n"
        "from onward.stages import progress\n"
        "progress.QUIET_SECONDS = progress.TICK_SECONDS = 0.05\n"
        "with progress.started('train', 'cnn'):\n"
        "    progress.show('one long step')\n"
        "    assert threading.active_count() == 1\n"
        "    if os.fork():\n"
        "        os.wait()\n"
        "        time.sleep(0.5)\n"
        "    else:\n"
        "        time.sleep(0.5)\n"
        "        os._exit(0)\n"
        "time.sleep(0.2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["train cnn: one long step (0 s)"]


def test_on_a_terminal_one_line_is_rewritten_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, lambda written: bool(written), terminal=True)
    assert all(line.startswith("\r\033[K") and "\n" not in line for line in lines)
    assert lines[-1] == "\r\033[K"


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_no_escape_sequences_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert progress.rewrites_lines()
    monkeypatch.setenv(variable, "dumb")
    assert not progress.rewrites_lines()


def test_quick_stages_and_functions_called_directly_show_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress.show("nothing", number=1, of=2)
    with progress.started("select", "cnn"):
        progress.show("choosing")
    assert capfd.readouterr().err == ""


def test_the_time_left_follows_from_a_limit_or_from_what_is_done() -> None:
    assert Step("screening", until=160.0).words(100.0) == "screening, at most 1 min 0 s left"
    assert Step("case", number=3, of=5, begun=90.0).words(100.0) == "case 3 of 5, about 15 s left"
    assert Step("case", number=1, of=5, begun=90.0).words(100.0) == "case 1 of 5"


def test_ctrl_c_ends_a_stage_with_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runpy, "run_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["stages", "benchmark", "cnn"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted: benchmark cnn: nothing was written\n"
