"""Runs small models on one execution provider, in whatever Python holds it, and says what really ran where.

    python runtime_probe.py PROVIDER FOLDER

FOLDER holds pairs NAME.onnx, NAME.npz: inputs by name, and `expected`, the first output. Prints one JSON object:
{"version", "available", "graphs": {NAME: {"nodes": {provider: count}, "off": largest difference over the largest
expected magnitude} or {"reason": ...}}}. Stand-alone: needs numpy and onnxruntime and nothing of ours.
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
    """Run one model, and count its nodes by the provider that they were given to, where that one really ran."""
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
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
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
    os.dup2(2, 1)  # what native code prints goes to stderr
    onnxruntime.set_default_logger_severity(4)
    wanted, folder = sys.argv[1], Path(sys.argv[2])
    if wanted in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        onnxruntime.preload_dlls()  # NVIDIA's wheels lie where no linker looks
    available = onnxruntime.get_available_providers()
    found = {p.stem: graph(p, wanted) for p in sorted(folder.glob("*.onnx"))} if wanted in available else {}
    json.dump({"version": onnxruntime.__version__, "available": available, "graphs": found}, answers)
    answers.close()
