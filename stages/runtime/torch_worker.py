"""The same protocol as worker.py, with the PyTorch module itself behind it: the reference that exports are held to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is started as a file, like worker.py

import numpy as np
import torch

from stages.module import load_module
from stages.runtime import worker


class TorchModel:
    """The commands that make sense for a module: load, run, measure, memory."""

    def __init__(self) -> None:
        self.module: torch.nn.Module | None = None
        self.inputs: list[str] = []
        self.outputs: list[str] = []

    def load(self, build: str, weights: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
        start = time.perf_counter()
        self.module = load_module(build, Path(weights))
        self.inputs, self.outputs = inputs, outputs
        return {"session_ms": (time.perf_counter() - start) * 1e3, "providers": ["PyTorch eager"]}

    def _arguments(self, path: str) -> list[torch.Tensor]:
        tensors = worker.read_tensors(path)
        return [torch.from_numpy(tensors[name]) for name in self.inputs]

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        assert self.module is not None
        # A module may write to its inputs; the caller's file is its own copy, so nothing is lost.
        with torch.inference_mode():
            results = self.module(*self._arguments(inputs))
        if isinstance(results, torch.Tensor):
            results = (results,)
        elif isinstance(results, dict):
            results = tuple(results.values())
        if len(results) != len(self.outputs):
            raise ValueError(f"the module returns {len(results)} outputs, params.yaml declares {len(self.outputs)}")
        arrays: dict[str, np.ndarray] = {n: t.numpy() for n, t in zip(self.outputs, results, strict=True)}
        np.savez(outputs, **arrays)  # type: ignore[arg-type]
        return {}

    def measure(self, inputs: str, seconds: float, warmup: int) -> dict[str, Any]:
        assert self.module is not None
        module, arguments = self.module, self._arguments(inputs)
        with torch.inference_mode():
            return {"latencies_ms": worker.time_runs(lambda: module(*arguments), seconds, warmup)}

    def memory(self) -> dict[str, Any]:
        return {"peak_mb": worker.peak_memory_mb()}


if __name__ == "__main__":
    worker.serve(TorchModel())
