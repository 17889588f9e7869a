"""The same protocol as worker.py, with an evaluation of the graph behind it, node by node (evaluator.py).

load  model                   -> unable: why the model cannot be evaluated; why_not_wide: why not in float64
run   inputs, outputs (.npz)  -> nothing but ok; in float64 where that says something, else as the file has it
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))  # it is started as a file, like onnx_worker.py

import numpy as np

from onward.stages.workers import evaluator, onnx_worker


class EvaluatedModel:
    """The commands that an evaluator can answer: it is no runtime to be measured."""

    def __init__(self) -> None:
        self.evaluation: evaluator.Evaluation | None = None

    def load(self, model: str) -> dict[str, Any]:
        try:
            read = evaluator.read(model)
            reason = evaluator.why_not_wide(read)
            self.evaluation = (evaluator.Evaluation if reason else evaluator.Wide)(read)
        except evaluator.Unsupported as error:
            return {"unable": str(error), "why_not_wide": str(error)}
        return {"unable": "", "why_not_wide": reason}

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        assert self.evaluation is not None
        results = self.evaluation.run(onnx_worker.read_tensors(inputs))
        plain = {n: v for n, v in results.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}
        np.savez(outputs, **plain)  # type: ignore[arg-type]
        return {}


if __name__ == "__main__":
    onnx_worker.serve(EvaluatedModel())
