"""Runs small models with OpenVINO itself, and reports what it can do here, in the form of runtime_probe.py.

    python openvino_probe.py PROVIDER FOLDER

The script runs in the environment of the runtime `openvino-native`, so it imports numpy and openvino but no code of
Onward, except for registry/artifact/openvino_session.py, which it loads by its path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino

_SESSION = Path(__file__).resolve().parents[1] / "artifact" / "openvino_session.py"


def _session_module() -> Any:
    spec = importlib.util.spec_from_file_location("openvino_session", _SESSION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def graph(path: Path, provider: str, module: Any) -> dict[str, Any]:
    """Run one model.

    Args:
        path: The model; its inputs and expected output are in the .npz beside it.
        provider: The name under which its operations are counted.
        module: openvino_session.py.

    Returns:
        `nodes` and `off`, or `reason` if the model cannot run.
    """
    with np.load(path.with_suffix(".npz")) as stored:
        feed = {name: stored[name] for name in stored.files}
    expected = feed.pop("expected")
    try:
        session = module.OpenvinoSession(str(path))
        got = session.run(None, feed)[0]
    except Exception as error:  # OpenVINO's exceptions have no other common base
        return {"reason": " ".join(str(error).split())[:300]}
    off = np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max()
    return {"nodes": {provider: session.operations()}, "off": float(off)}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout carries the JSON only; output of native code goes to stderr
    wanted, folder = sys.argv[1], Path(sys.argv[2])
    session_module = _session_module()
    found = {path.stem: graph(path, wanted, session_module) for path in sorted(folder.glob("*.onnx"))}
    version = openvino.__version__.partition("-")[0]
    answer = {"version": version, "available": [wanted], "graphs": found, "precisions": session_module.precisions()}
    json.dump(answer, answers)
    answers.close()
