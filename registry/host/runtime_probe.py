"""Runs small models on one execution provider and reports which provider really ran each node.

    python runtime_probe.py PROVIDER FOLDER

FOLDER contains pairs NAME.onnx and NAME.npz; the .npz has the inputs by name, and `expected`, the first output. The
script prints one JSON object: {"version", "available", "graphs": {NAME: {"nodes": {provider: count}, "off": largest
difference over the largest expected magnitude} or {"reason": ...}}, "precisions": lower precisions that the provider
can be set to}.

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

OPENVINO = "OpenVINOExecutionProvider"


def graph(path: Path, provider: str, configuration: dict[str, str] | None = None) -> dict[str, Any]:
    """Run one model and count its nodes by provider. A provider counts only if the profile shows that it ran.

    Args:
        path: The model; its inputs and expected output are in the .npz beside it.
        provider: The execution provider.
        configuration: Its options.

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
        session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, configuration or {})])
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


def precisions(provider: str, folder: Path) -> list[str]:
    """List the lower precisions that the provider can be set to. It must still run the float32 model.

    Whether the CPU computes them natively is not known here.
    """
    if provider != OPENVINO:
        return []
    bfloat16 = {"load_config": json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})}
    found = graph(folder / "float32.onnx", provider, bfloat16)
    return ["bfloat16"] if found.get("nodes", {}).get(provider) and found["off"] < 0.02 else []


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
    lower = precisions(wanted, folder) if models else []
    answer = {"version": onnxruntime.__version__, "available": available, "graphs": found, "precisions": lower}
    json.dump(answer, answers)
    answers.close()
