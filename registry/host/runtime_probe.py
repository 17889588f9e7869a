"""Runs small models on one execution provider and reports which provider really ran each node.

    python runtime_probe.py PROVIDER FOLDER

FOLDER contains pairs NAME.onnx and NAME.npz; the .npz has the inputs by name, and `expected`, the first output. The
script prints one JSON object: {"version", "available", "graphs": {NAME: {"nodes": {provider: count}, "off": largest
difference over the largest expected magnitude} or {"reason": ...}}}.

The script runs in each runtime's own Python environment, so it imports numpy and onnxruntime but no code of Onward.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def graph(path: Path, provider: str) -> dict[str, Any]:
    """Run one model and count its nodes by provider. A provider counts only if the profile shows that it ran.

    Args:
        path: The model; its inputs and expected output are in the .npz beside it.
        provider: The execution provider.

    Returns:
        `nodes` and `off`, or `reason` if the model cannot run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with np.load(path.with_suffix(".npz")) as stored:
        feed = {name: stored[name] for name in stored.files}
    expected = feed.pop("expected")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        got = session.run(None, feed)[0]
    except Exception as error:  # ONNX Runtime's exceptions have no other common base
        return {"reason": " ".join(str(error).split())[:300]}
    with open(session.end_profiling()) as file:
        ran = {event.get("args", {}).get("provider") for event in json.load(file)}
    nodes: collections.Counter[str] = collections.Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name in ran:
            nodes[part.ep_name] += len(part.get_nodes())
    off = np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max()
    return {"nodes": dict(nodes), "off": float(off)}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout carries the JSON only; output of native code goes to stderr
    onnxruntime.set_default_logger_severity(4)
    wanted, folder = sys.argv[1], Path(sys.argv[2])
    if wanted in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        onnxruntime.preload_dlls()  # NVIDIA's wheels are not on the linker's path
    available = onnxruntime.get_available_providers()
    models = sorted(folder.glob("*.onnx")) if wanted in available else []
    found = {path.stem: graph(path, wanted) for path in models}
    json.dump({"version": onnxruntime.__version__, "available": available, "graphs": found}, answers)
    answers.close()
