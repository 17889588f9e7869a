"""Microsoft's DNSMOS: three opinion scores of 1 to 5 for 9 s of speech."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models import inputs  # type: ignore[attr-defined]  # benchmarks/zoo.py copies both into one project

Arrays = dict[str, npt.NDArray[np.float32]]
SAMPLES = 144160  # 9.01 s at 16 kHz
NOTICEABLE = 0.1  # on the scale of 1 to 5


def samples(split: str) -> Arrays:
    """Clips, [56, 144160]."""
    return {"input_1": inputs.clips(split, 56, SAMPLES)}


def changed(original: Arrays, released: Arrays) -> float:
    """The share of scores that change by 0.1 or more."""
    return float(np.mean(np.abs(original["Identity:0"] - released["Identity:0"]) >= NOTICEABLE))
