"""The same protocol as worker.py, with a float64 evaluation behind it: load and run, node by node.

    load  model                                -> why float64 says nothing of it, empty where it does
    run   inputs, outputs (.npz), seed         -> seconds, operators that computed in float32 nonetheless

With a seed, every operand of every node is moved by up to a float32 ulp at random.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is started as a file, like worker.py

import numpy as np

from stages.runtime import evaluator, worker


class EvaluatedModel:
    """The commands that an evaluator can answer: it is no runtime to be measured."""

    def __init__(self) -> None:
        self.wide: evaluator.Wide | None = None

    def load(self, model: str) -> dict[str, Any]:
        read = evaluator.read(model)
        self.wide = evaluator.Wide(read)
        return {"against": evaluator.reason_against_float64(read)}

    def run(self, inputs: str, outputs: str, seed: int | None = None) -> dict[str, Any]:
        assert self.wide is not None
        start = time.perf_counter()
        self.wide.shake = None if seed is None else np.random.default_rng(seed)
        results = self.wide.run(worker.read_tensors(inputs))
        plain = {name: value for name, value in results.items() if isinstance(value, np.ndarray)}
        np.savez(outputs, **plain)  # type: ignore[arg-type]
        return {"seconds": time.perf_counter() - start, "narrow": sorted(self.wide.narrow)}


if __name__ == "__main__":
    worker.serve(EvaluatedModel())
