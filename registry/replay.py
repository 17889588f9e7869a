"""Runs the recorded inputs of a version on this host and compares the answers with those recorded.

    python -m registry.replay FOLDER [PROVIDER]

prints one JSON object, {"met": ..., "detail": ...}. It is a process of its own because a model can abort the one that
runs it: then that is the finding, and not the end of the command that asked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

TIMEOUT_S = 120.0
CPU = "CPUExecutionProvider"


def replay_in_subprocess(folder: Path, provider: str = "", timeout_s: float = TIMEOUT_S) -> tuple[bool, str]:
    """Replay the version in `folder`; an abort or a hang is an answer too.

    Returns:
        whether the answers agree, and in words what was compared or what went wrong.
    """
    package = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            # -P: a folder that the command happens to run in must not lend its modules.
            [sys.executable, "-P", "-m", "registry.replay", str(folder), provider],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"did not finish within {timeout_s:g} s"
    if done.returncode < 0:
        return False, f"the runtime died of {signal.Signals(-done.returncode).name} on the recorded inputs"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return bool(answer["met"]), str(answer["detail"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return False, f"could not be run: {last[:300]}"


def replay(folder: Path, provider: str = "") -> tuple[bool, str]:
    """Replay in this process; see replay_in_subprocess.

    `provider` is the one that the version was measured on; where this host lacks it, the CPU answers.
    """
    import numpy as np
    import onnxruntime as ort

    bundle = folder / "validation"
    missing = [name for name in ("inputs.npz", "outputs.npz", "tolerance.json") if not (bundle / name).is_file()]
    if missing:
        return False, f"no evidence recorded (validation/{missing[0]} is missing)"
    tolerance = json.loads((bundle / "tolerance.json").read_text())
    with np.load(bundle / "inputs.npz", allow_pickle=False) as stored:
        inputs = dict(stored)
    with np.load(bundle / "outputs.npz", allow_pickle=False) as stored:
        expected = dict(stored)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    used = provider if provider in ort.get_available_providers() else CPU
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=list(dict.fromkeys((used, CPU))))
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, inputs), strict=True))
    problems = []
    for name, reference in expected.items():
        problem = "is missing" if name not in got else _differs(got[name], reference, *_limits(tolerance, name))
        if problem:
            problems.append(f"output {name} {problem}")
    if problems:
        return False, f"{'; '.join(problems)} (on {used})"
    return True, f"{len(expected)} recorded output{'s' if len(expected) != 1 else ''} repeated on {used}"


def _limits(tolerance: dict[str, Any], output: str) -> tuple[float, float]:
    """(rtol, atol) of an output: its own, where it has any, else the model's."""
    own = tolerance.get("outputs", {}).get(output, {})
    return tuple(float(tolerance[key] if own.get(key) is None else own[key]) for key in ("rtol", "atol"))  # type: ignore[return-value]


def _differs(got: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> str:
    import numpy as np

    got = np.asarray(got)
    if got.shape != expected.shape:
        return f"has shape {list(got.shape)}, {list(expected.shape)} was recorded"
    if got.dtype.kind != expected.dtype.kind:
        return f"is {got.dtype}, {expected.dtype} was recorded"
    if expected.dtype.kind not in "fc":
        return (
            "" if np.array_equal(got, expected) else f"differs at {int(np.sum(got != expected))} of {got.size} places"
        )
    close = np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    worst = float(np.nanmax(np.abs(got.astype(np.float64) - expected.astype(np.float64))))
    return f"is off by up to {worst:.3g} at {int((~close).sum())} of {got.size} places (rtol {rtol:g}, atol {atol:g})"


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    met, detail = replay(Path(arguments[0]), arguments[1])
    print(json.dumps({"met": met, "detail": detail}))
