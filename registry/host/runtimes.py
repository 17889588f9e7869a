"""What the runtimes can do on this host.

A runtime is a build of ONNX Runtime with its execution provider, or OpenVINO itself (`openvino-native`), each in an
environment of its own (environments.py). A probe runs small models to find out what a runtime can do here: a provider
in ONNX Runtime's list may still leave every node to the CPU. A successful probe is cached under a digest of the
environment and the machine; a failed one is repeated the next time.

    state("openvino", root)     # a RuntimeState: usable, or why not and what installs it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onward.registry.evidence.records import Record, RuntimeState
from onward.registry.evidence.session_options import CPU, CUDA, OPENVINO, OPENVINO_NATIVE, TENSORRT
from onward.registry.files import sha256_file, write_atomically
from onward.registry.host import hardware
from onward.registry.host.environments import FOLDER, SHARED, TOOLS, made_of, python, wanted

# The execution provider that must really run the nodes, by runtime, in the order in which `runtimes: auto` measures.
PROVIDERS = {
    "cpu": CPU,
    "openvino": OPENVINO,
    "openvino-native": OPENVINO_NATIVE,
    "cuda": CUDA,
    "tensorrt": TENSORRT,
}
_NVIDIA = ("cuda", "tensorrt")
# Graphs are made for these runtimes if params.yaml names none (`auto`), on every machine the same.
CPU_RUNTIMES = ("cpu", "openvino", "openvino-native")
# The value of `runtimes` in params.yaml that stands for every runtime.
AUTO = "auto"
# The CPU's instruction sets that compute in bfloat16.
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
_HERE = Path(__file__).resolve().parent
_SESSION = _HERE.parent / "artifact" / "openvino_session.py"
_PROBE_S = 180
# The largest acceptable error of a small model, relative to the largest magnitude. Correct runtimes have errors of 1e-7
# (float32) or 1e-3 (float16, int8).
_NEAR = 0.02


class _Kept(Record):
    """A cached result of a probe; `key` is the digest of the environment and the machine."""

    key: str
    state: RuntimeState


def named(runtimes: Iterable[str]) -> list[str]:
    """Replace `auto` by every runtime.

    Args:
        runtimes: The runtimes of params.yaml.
    """
    return [name for given in runtimes for name in (PROVIDERS if given == AUTO else [given])]


def state(name: str, root: Path) -> RuntimeState:
    """Determine whether a runtime can be used on this host, with the cached probe if there is one.

    Args:
        name: The runtime's name.
        root: The project's folder.

    Returns:
        What the runtime can do, or why it cannot be used and what installs it.
    """
    machine = hardware.describe()
    if name in _NVIDIA and not machine.accelerators:
        return _absent(name, "no NVIDIA GPU: nvidia-smi is missing or lists none")
    made = made_of(name, root)
    if made is None:
        return _absent(name, f"not installed: onward runtimes install {SHARED.get(name, name)}")
    if name != "cpu" and made != wanted(name, root):
        return _absent(name, f"installed from other pins than {name}.txt now has: onward runtimes install {name}")
    host = [machine.cpu, *machine.instruction_sets, *machine.accelerators]
    code = [sha256_file(path) for path in (Path(__file__), *sorted(_HERE.glob("*_probe.py")), _SESSION)]
    key = hashlib.sha256(json.dumps([name, made, host, code], sort_keys=True).encode()).hexdigest()
    kept = root / FOLDER / f"{name}.json"
    try:
        found = _Kept.model_validate_json(kept.read_bytes())
        if found.key == key:
            return found.state
    except (FileNotFoundError, ValidationError):
        pass  # there is no cached probe, or another release wrote it
    probed = _probe(name, root)
    if name == "openvino" and not BFLOAT16 & set(machine.instruction_sets):
        probed.precisions = []  # the plug-in would emulate it, which is 40 times slower than float32
    if probed.usable:
        with contextlib.suppress(PermissionError):  # a checkout of another user: the next call probes again
            write_atomically(kept, (_Kept(key=key, state=probed).model_dump_json(indent=2) + "\n").encode())
    return probed


def _absent(name: str, reason: str) -> RuntimeState:
    return RuntimeState(runtime=name, usable=False, reason=reason)


def _tool(name: str, root: Path) -> RuntimeState:
    """Whether a tool can be imported in its environment."""
    code = f"import importlib.metadata, {name}; print(importlib.metadata.version('{name}'))"
    try:
        done = subprocess.run(
            [str(python(name, root)), "-c", code], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return _absent(name, f"does not start: {error}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return _absent(name, f"does not start: {lines[-1]}")
    return RuntimeState(runtime=name, usable=True, version=done.stdout.split()[-1])


def _probe(name: str, root: Path) -> RuntimeState:
    if name in TOOLS:
        return _tool(name, root)
    provider = PROVIDERS[name]
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        _write_models(Path(temporary))
        script = "openvino_probe.py" if provider == OPENVINO_NATIVE else "runtime_probe.py"
        command = [str(python(name, root)), str(_HERE / script), provider, temporary]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
        except (subprocess.TimeoutExpired, OSError) as error:
            return _absent(name, f"does not start: {error}")
    if done.returncode < 0:
        return _absent(name, f"died of {signal.Signals(-done.returncode).name} on a small model")
    if done.returncode:
        last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return _absent(name, f"does not start: {last[-1]}")
    answer = json.loads(done.stdout)
    found = RuntimeState(runtime=name, usable=False, providers=answer["available"], version=answer["version"])
    if provider not in found.providers:
        found.reason = f"this build of ONNX Runtime has no {provider}"
        return found
    graphs: dict[str, dict[str, Any]] = answer["graphs"]
    found.node_share = {kind: _share(graph, provider) for kind, graph in graphs.items() if kind != "saturation"}
    found.precisions = answer["precisions"]
    exact = graphs["saturation"]
    if found.node_share["int8"] > 0 and "off" in exact:
        found.int8_exact = exact["off"] < _NEAR
    found.usable = found.node_share["float32"] > 0
    if not found.usable:
        plain = graphs["float32"]
        fell = f"fell back to CPU: no node ran on {provider}"
        wrong = f"computes wrong numbers: the error is {plain.get('off', 0):.1%} of the largest value"
        found.reason = plain.get("reason") or (fell if provider not in plain["nodes"] else wrong)
    return found


def _share(graph: dict[str, Any], provider: str) -> float:
    """The share of a graph's nodes that ran on the provider; 0 if it cannot run the graph or gives wrong numbers."""
    nodes = graph.get("nodes", {})
    return nodes.get(provider, 0) / sum(nodes.values()) if nodes and graph["off"] < _NEAR else 0.0


def _write_models(folder: Path) -> None:
    """Write the models of the probe, each with inputs and expected output.

    They are a convolution with a matrix product in float32 and float16, a matrix product in int8 (QDQ, uint8 x int8),
    and the same with the largest possible numbers ("saturation"). On a CPU without VNNI, sums of two such products
    overflow int16.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)

    def write(name: str, nodes: list[Any], given: Any, expected: Any, **weights: Any) -> None:
        kind = helper.np_dtype_to_tensor_dtype(given.dtype)
        inputs = [helper.make_tensor_value_info("x", kind, given.shape)]
        outputs = [helper.make_tensor_value_info("y", kind, expected.shape)]
        stored = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
        graph = helper.make_graph(nodes, name, inputs, outputs, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", x=given, expected=expected)

    image, kernel = rng.random((1, 3, 8, 8)), rng.standard_normal((8, 3, 1, 1)) / 2
    matrix = rng.standard_normal((512, 16)) / 16
    hidden = np.maximum(np.einsum("nchw,kc->nkhw", image, kernel[:, :, 0, 0]), 0)
    for dtype in (np.float32, np.float16):
        write(
            np.dtype(dtype).name,
            [
                helper.make_node("Conv", ["x", "kernel"], ["c"]),
                helper.make_node("Relu", ["c"], ["r"]),
                helper.make_node("Flatten", ["r"], ["f"]),
                helper.make_node("MatMul", ["f", "matrix"], ["y"]),
            ],
            image.astype(dtype),
            (hidden.reshape(1, -1) @ matrix).astype(dtype),
            kernel=kernel.astype(dtype),
            matrix=matrix.astype(dtype),
        )
    quantised = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero_w"], ["v"]),
        helper.make_node("MatMul", ["d", "v"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "scale", "middle"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "scale", "middle"], ["y"]),
    ]
    largest = np.full((64, 16), 127, np.int8)
    small = rng.integers(-60, 60, (64, 16)).astype(np.int8)
    for name, given, weights in (
        ("int8", rng.integers(0, 120, (4, 64)).astype(np.float32), small),
        ("saturation", np.full((4, 64), 255, np.float32), largest),
    ):
        exact = given @ weights.astype(np.float32)
        scale = np.float32(np.abs(exact).max() / 120)
        write(
            name, quantised, given, exact, w=weights, one=np.float32(1), zero=np.uint8(0), zero_w=np.int8(0),
            scale=scale, middle=np.uint8(128),
        )  # fmt: skip
