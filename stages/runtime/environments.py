"""Which Python runs which runtime: ONNX Runtime's builds cannot share one environment, so each has its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from registry.vocabulary import RuntimeState
from stages import paths

# What each runtime is for: the execution provider that must really run the nodes.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}

_PROBE = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"


def python(runtime: str) -> Path:
    """The interpreter of a runtime's environment: this one for cpu, `.runtimes/NAME` for the others."""
    if runtime == "cpu":
        return Path(sys.executable)
    return paths.root() / ".runtimes" / runtime / "bin" / "python"


def probe(runtime: str) -> RuntimeState:
    """Whether a runtime can be used on this host, or why not and what installs it."""
    interpreter = python(runtime)
    if not interpreter.exists():
        return RuntimeState(
            runtime=runtime,
            usable=False,
            reason=f"not installed: python -m venv .runtimes/{runtime} && "
            f".runtimes/{runtime}/bin/pip install -r runtimes/{runtime}.txt",
        )
    try:
        found = subprocess.run([interpreter, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
        version, providers = json.loads(found.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return RuntimeState(runtime=runtime, usable=False, reason=f"does not start: {words[-1] if words else error}")
    wanted = PROVIDERS[runtime]
    if wanted not in providers:
        return RuntimeState(
            runtime=runtime, usable=False, providers=providers, version=version, reason=f"offers no {wanted}"
        )
    return RuntimeState(runtime=runtime, usable=True, providers=providers, version=version)
