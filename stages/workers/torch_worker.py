"""The same protocol as worker.py, with the PyTorch module itself behind it: the reference that exports are held to.

run      inputs, outputs, [truth] (.npz paths)   with `truth`, the same in float64 (empty where there is none)
shake    seed                                    from now on with every weight moved by an ulp; with null, exactly again
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))  # it is started as a file, like onnx_worker.py

import numpy as np
import torch

from onward.stages.workers import onnx_worker
from onward.stages.workers.torch_reference import Original


class TorchModel:
    """The commands that make sense for a module: load, run, shake, measure, memory."""

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
    ) -> dict[str, Any]:
        if threads is not None:
            torch.set_num_threads(threads)
        start = time.perf_counter()
        self.original = Original(build, Path(weights), inputs, outputs)
        if compiled:
            self.original.module.compile(dynamic=True)
        return {
            "session_ms": (time.perf_counter() - start) * 1e3,
            "providers": ["torch.compile" if compiled else "PyTorch eager"],
            "widens": not compiled,
            "shakes": not compiled,
        }

    def run(self, inputs: str, outputs: str, truth: str = "") -> dict[str, Any]:
        assert self.original is not None
        tensors = onnx_worker.read_tensors(inputs)
        start = time.perf_counter()
        answers, wide = self.original.answer(tensors) if truth else (self.original.run(tensors), {})
        seconds = time.perf_counter() - start
        np.savez(outputs, **answers)  # type: ignore[arg-type]
        if truth:
            np.savez(truth, **wide)  # type: ignore[arg-type]
        return {"seconds": seconds, "why_not_wide": self.original.why_not_wide}

    def shake(self, seed: int | None) -> dict[str, Any]:
        assert self.original is not None
        self.original.shake(seed)
        return {}

    def measure(self, inputs: str, seconds: float, warmup: int) -> dict[str, Any]:
        assert self.original is not None
        module = self.original.module
        positional, keywords = self.original.arguments(onnx_worker.read_tensors(inputs))
        with torch.inference_mode():
            return {"latencies_ms": onnx_worker.time_runs(lambda: module(*positional, **keywords), seconds, warmup)}

    def memory(self) -> dict[str, Any]:
        return {"peak_mb": onnx_worker.peak_memory_mb()}


if __name__ == "__main__":
    onnx_worker.serve(TorchModel())
