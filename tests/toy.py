"""A quickly trained model, written into the project of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import read
from onward.stages.data import data
from onward.stages.export import export
from onward.stages.optimize import optimize
from onward.stages.params import sections
from onward.stages.quantize import quantize
from onward.stages.train import train
from onward.stages.verify import verify

SOURCE = """
import numpy as np
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

def samples(split):
    rng = np.random.default_rng({"evaluation": 1, "calibration": 2}[split])
    x = rng.standard_normal((96, 6)).astype(np.float32)
    return {"x": x, "label": (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0).astype(np.int64)}

def accuracy(outputs, labels):
    return float((outputs["y"].argmax(1) == labels).mean())
"""

# The same model, large enough for int8 to be faster.
WIDE = SOURCE.replace(
    "torch.nn.Linear(16, 3)", "torch.nn.Linear(16, 256), torch.nn.ReLU(), torch.nn.Linear(256, 3)"
).replace("Linear(6, 16)", "Linear(6, 256), torch.nn.ReLU(), torch.nn.Linear(256, 16)")


STAGES: dict[str, Any] = {
    "train": train,
    "data": data,
    "export": export,
    "verify": verify,
    "optimize": optimize,
    "quantize": quantize,
}


def one(stage: str, model: str, compute: Any) -> Any:
    """Run a stage of a model in the current project with the current params.yaml, and return its report."""
    write_settings()
    return command.one(stage, model, compute)


def write_settings() -> None:
    """Write the settings as the params stage does, without importing the models of the project."""
    for name, content in sections(read()).items():
        path = paths.root() / "build" / "params" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def through(*stages: str) -> dict[str, Any]:
    """Run stages of the toy in the current project, and return their reports."""
    return {stage: one(stage, "toy", STAGES[stage]) for stage in stages}


def toy_params(**changes: Any) -> dict[str, Any]:
    """params.yaml with one model, `toy`, with short measurements; `changes` are merged in, and None drops a key."""
    model: dict[str, Any] = {
        "build": "models.toy:net",
        "samples": "models.toy:samples",
        "quality": "models.toy:accuracy",
        "inputs": {"x": {"shape": ["batch", 6]}},
        "outputs": {"y": {"shape": ["batch", 3]}},
        "dims": {"batch": {"max": 16, "typical": [1, 4]}},
        "benchmark": {"rounds": 3, "round_seconds": 0.01, "race_seconds": 2, "warmup_runs": 2},
    }
    model |= changes
    return {"models": {"toy": {key: value for key, value in model.items() if value is not None}}}


def many_rows(**changes: Any) -> dict[str, Any]:
    """Params of WIDE with a batch large enough for quantization to be worthwhile."""
    return toy_params(dims={"batch": {"max": 16, "typical": [1, 16]}}, **changes)


def write_project(root: Path, source: str = SOURCE, params: dict[str, Any] | None = None) -> Path:
    """Write models/toy.py and params.yaml."""
    (root / "models" / "toy.py").write_text(source)
    (root / "params.yaml").write_text(yaml.safe_dump(params or toy_params(), sort_keys=False))
    return root
