"""A worker that runs the original PyTorch module, the reference for exports, with the protocol of onnx_worker.py.

load     build, weights, inputs, outputs, [compiled, threads, precision]
                                                -> session_ms, providers, widens, shakes
run      inputs, outputs, [truth] (.npz paths)  -> seconds, why_not_wide, chooses; float64 outputs go to `truth`
shake    seed                                   -> only ok; moves every weight by one ulp (null: back)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))  # started by file path, like onnx_worker.py

import numpy as np
import torch

from onward.stages.workers import onnx_worker
from onward.stages.workers.torch_reference import Original


class TorchModel:
    """The commands of this worker: load, run, shake, measure, memory."""

    def __init__(self) -> None:
        self.original: Original | None = None

    def load(
        self,
        build: str,
        weights: str,
        inputs: list[str],
        outputs: list[str],
        compiled: bool = False,
        threads: int | None = None,
        precision: str = "float32",
    ) -> dict[str, Any]:
        """Load the module. `widens` and `shakes` say whether it can run in float64 and with perturbed weights."""
        if threads is not None:
            torch.set_num_threads(threads)
        start = time.perf_counter()
        self.original = Original(build, Path(weights), inputs, outputs)
        if precision == "bfloat16":
            self.original.lower(torch.bfloat16)
        if compiled:
            self.original.module.compile(dynamic=True)
        return {
            "session_ms": (time.perf_counter() - start) * 1e3,
            "providers": ["torch.compile" if compiled else "PyTorch eager"],
            "widens": not compiled,
            "shakes": not compiled,
        }

    def run(self, inputs: str, outputs: str, truth: str = "") -> dict[str, Any]:
        """Run the module once; with `truth`, also write its float64 outputs (none if `why_not_wide` is set)."""
        assert self.original is not None
        tensors = onnx_worker.read_tensors(inputs)
        start = time.perf_counter()
        answers, wide = self.original.answer(tensors) if truth else (self.original.run(tensors), {})
        seconds = time.perf_counter() - start
        np.savez(outputs, **answers)  # type: ignore[arg-type]
        if truth:
            np.savez(truth, **wide)  # type: ignore[arg-type]
        chooses = bool(self.original.met)
        return {"seconds": seconds, "why_not_wide": self.original.why_not_wide, "chooses": chooses}

    def shake(self, seed: int | None) -> dict[str, Any]:
        """Perturb the weights for all later runs, or restore them (`Original.shake`)."""
        assert self.original is not None
        self.original.shake(seed)
        return {}

    def measure(self, inputs: str, seconds: float, warmup: int) -> dict[str, Any]:
        """Time repeated runs (`onnx_worker.time_runs`)."""
        assert self.original is not None
        module = self.original.module
        positional, keywords = self.original.arguments(onnx_worker.read_tensors(inputs))
        with torch.inference_mode():
            return {"latencies_ms": onnx_worker.time_runs(lambda: module(*positional, **keywords), seconds, warmup)}

    def memory(self) -> dict[str, Any]:
        """Peak memory of this process, in MiB."""
        return {"peak_mb": onnx_worker.peak_memory_mb()}


if __name__ == "__main__":
    onnx_worker.serve(TorchModel())
