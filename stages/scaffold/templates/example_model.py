"""The example of `onward init`: a small classifier on data that it makes itself.

`params.yaml` names these functions. Replace them with your own, from any module of your repository.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

FEATURES, CLASSES = 16, 4
SEEDS = {"train": 0, "calibration": 1, "evaluation": 2}


def net() -> torch.nn.Module:
    """Build the module: [batch, 16] to logits [batch, 4]."""
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, CLASSES),
    )


def train(seed: int) -> torch.nn.Module:
    """Train the module; the same seed gives the same weights."""
    torch.manual_seed(seed)
    module, data = net(), samples("train")
    features, label = torch.from_numpy(data["features"]), torch.from_numpy(data["label"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(features), label).backward()
        optimizer.step()
    return module


def samples(split: str) -> dict[str, npt.NDArray[np.generic]]:
    """Return inputs by name, and `label`, of the split "train", "calibration" or "evaluation"."""
    centres = np.random.default_rng(17).standard_normal((CLASSES, FEATURES)) * 1.5
    rng = np.random.default_rng(SEEDS[split])
    label = rng.integers(0, CLASSES, 512)
    features = centres[label] + rng.standard_normal((512, FEATURES))
    return {"features": features.astype(np.float32), "label": label.astype(np.int64)}


def accuracy(outputs: dict[str, npt.NDArray[np.generic]], labels: npt.NDArray[np.generic]) -> float:
    """Return the share of right answers; higher is better."""
    return float((outputs["logits"].argmax(axis=1) == labels).mean())
