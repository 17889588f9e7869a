"""The same protocol as worker.py, with ONNX's reference evaluator behind it: load and run, in plain NumPy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is started as a file, like worker.py

import numpy as np
from onnx.reference import ReferenceEvaluator

from stages.runtime import worker


class EvaluatedModel:
    """The commands that an evaluator can answer: it is no runtime to be measured."""

    def __init__(self) -> None:
        self.evaluator: ReferenceEvaluator | None = None

    def load(self, model: str) -> dict[str, Any]:
        self.evaluator = ReferenceEvaluator(model)
        return {}

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        assert self.evaluator is not None
        results = self.evaluator.run(None, worker.read_tensors(inputs))
        np.savez(outputs, **dict(zip(self.evaluator.output_names, results, strict=True)))
        return {}


if __name__ == "__main__":
    worker.serve(EvaluatedModel())
