"""Runs a version's recorded inputs on this host and compares the answers with the recorded ones.

In a process of its own (`python -m registry.replay FOLDER PROVIDER`), so that a native crash is an answer and not the
end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from registry.flavor import MODEL, VALIDATION

TIMEOUT = 120


def replay(folder: Path, provider: str) -> str:
    """Why the version in `folder` does not answer here as it did when it was recorded; empty where it does."""
    if not (folder / VALIDATION / "inputs.npz").is_file():
        return "no inputs were recorded with this version"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "registry.replay", str(folder), provider],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            cwd=Path(__file__).resolve().parent.parent,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT} s"
    if done.returncode < 0:
        return f"the process died of {signal.Signals(-done.returncode).name}"
    try:
        problem: str = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        words = done.stderr.strip().splitlines()
        return words[-1] if words else f"the process ended with code {done.returncode}"
    return problem


def _compare(folder: Path, provider: str) -> str:
    import numpy as np
    import onnxruntime

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(folder / VALIDATION / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    if provider not in onnxruntime.get_available_providers():
        return f"the onnxruntime here has no {provider}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=[provider])
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, read("inputs")), strict=True))
    tolerance = json.loads((folder / VALIDATION / "tolerance.json").read_text())
    for name, wanted in read("outputs").items():
        if name not in got or got[name].shape != wanted.shape or got[name].dtype != wanted.dtype:
            return f"the output {name} is missing, or of another shape or dtype"
        if not np.allclose(got[name], wanted, rtol=tolerance["rtol"], atol=tolerance["atol"], equal_nan=True):
            worst = float(np.nanmax(np.abs(got[name].astype(np.float64) - wanted.astype(np.float64))))
            return f"the output {name} differs from the recorded one by {worst:.3g}"
    return ""


if __name__ == "__main__":
    print(json.dumps(_compare(Path(sys.argv[1]), sys.argv[2])))
