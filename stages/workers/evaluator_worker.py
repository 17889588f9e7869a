"""A worker that evaluates an ONNX graph node by node (evaluator.py), with the protocol of onnx_worker.py.

load  model                   -> unable: why the model cannot be evaluated; why_not_wide: why not in float64
run   inputs, outputs (.npz)  -> only ok; computes in float64, or in the file's own types if why_not_wide is set
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))  # started by file path, like onnx_worker.py

import numpy as np

from onward.stages.workers import evaluator, onnx_worker


class EvaluatedModel:
    """The commands of this worker. It measures nothing, because an evaluator is not a runtime."""

    def __init__(self) -> None:
        self.evaluation: evaluator.Evaluation | None = None

    def load(self, model: str) -> dict[str, Any]:
        """Load an ONNX file; the answer says whether it can be evaluated, and whether in float64."""
        try:
            graph = evaluator.read(model)
            reason = evaluator.why_not_wide(graph)
            self.evaluation = (evaluator.Evaluation if reason else evaluator.Wide)(graph)
        except evaluator.Unsupported as error:
            return {"unable": str(error), "why_not_wide": str(error)}
        return {"unable": "", "why_not_wide": reason}

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        """Evaluate the graph on the inputs of one .npz file, and write the numeric outputs to another."""
        assert self.evaluation is not None
        results = self.evaluation.run(onnx_worker.read_tensors(inputs))
        plain = {
            name: value
            for name, value in results.items()
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        }
        np.savez(outputs, **plain)  # type: ignore[arg-type]
        return {}


if __name__ == "__main__":
    onnx_worker.serve(EvaluatedModel())
