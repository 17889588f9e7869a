"""Runs a module of the registry in a separate process, because a model can abort the process that runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Died(Exception):
    """The process gave no answer; the message says why.

    Attributes:
        last: The last line that the process printed.
    """

    def __init__(self, reason: str, last: str = "") -> None:
        super().__init__(reason)
        self.last = last


def ask(module: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run `python -m onward.registry.MODULE ARGUMENTS`.

    Args:
        module: The module's name below onward.registry.
        *arguments: Its arguments.
        timeout_s: The longest acceptable duration in seconds.

    Returns:
        The JSON object on the last line of its output.

    Raises:
        Died: It was killed by a signal, did not finish within `timeout_s`, or printed no JSON object.
    """
    package = str(Path(__file__).absolute().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            # -P: modules in the working directory must not be imported.
            [sys.executable, "-P", "-m", f"onward.registry.{module}", *arguments],
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise Died(f"did not finish within {timeout_s:g} s", _last(expired.stdout)) from None
    last = _last(done.stdout)
    if done.returncode < 0:
        raise Died(f"the runtime died of {signal.Signals(-done.returncode).name} on the recorded inputs", last)
    try:
        answer = json.loads(last)
        if isinstance(answer, dict):
            return answer
    except ValueError:
        pass  # it ended before it could answer; the last line on stderr is the reason
    raise Died(f"could not be run: {_last(done.stderr)[:300] or 'no output'}", last)


def _last(output: bytes | None) -> str:
    return ((output or b"").decode(errors="replace").strip().splitlines() or [""])[-1]
