"""Runs one ONNX model with OpenVINO itself, with the protocol of onnx_worker.py.

It runs in the environment of the runtime `openvino-native` and is stand-alone, except for two files that it loads by
their paths: onnx_worker.py for the protocol, and registry/artifact/openvino_session.py, which also serves the model.

    load     model, provider, [threads, streams, precision, performance]  -> session_ms, providers, inputs, outputs
    run, measure, callers, memory                                          -> as in onnx_worker.py
    profile  inputs                                                        -> number of operations of the compiled model

Either OpenVINO runs the whole graph, or `load` fails: there is no fallback to another runtime.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import onnx_worker

_SESSION = Path(__file__).resolve().parents[2] / "registry" / "artifact" / "openvino_session.py"


def _session_module() -> Any:
    spec = importlib.util.spec_from_file_location("openvino_session", _SESSION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OpenvinoModel(onnx_worker.OnnxModel):  # type: ignore[misc]  # onnx_worker is not a module of the package here
    """The commands of this worker. Those of its base call `session.run` and work as they are."""

    def load(self, **request: Any) -> dict[str, Any]:
        """Compile the model, and time that without the import of openvino."""
        import openvino  # noqa: F401  before the clock starts

        model, provider = request.pop("model"), request.pop("provider")
        start = time.perf_counter()
        self.session = _session_module().OpenvinoSession(model, **request)
        return {
            "session_ms": (time.perf_counter() - start) * 1e3,
            "providers": [provider],
            "inputs": self.session.inputs,
            "outputs": self.session.outputs,
        }

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        """Run the model once and write its outputs to a file."""
        answer: dict[str, Any] = self.run_named(inputs, outputs, [name for name, _, _ in self.session.outputs])
        return answer

    def profile(self, inputs: str) -> dict[str, Any]:
        """Run the model once, and count the operations of the compiled model."""
        self.session.run(None, onnx_worker.read_tensors(inputs))
        return {"nodes": {"OpenVINO": self.session.operations()}}

    def times(self, inputs: str) -> dict[str, Any]:
        """Nothing: OpenVINO fuses operators under other names."""
        return {"times": {}}


if __name__ == "__main__":
    # Import now, so that several workers import at the same time. `load` reports a failed import.
    with contextlib.suppress(ImportError):
        import openvino  # noqa: F401
    onnx_worker.serve(OpenvinoModel())
