"""Measures of quality that several models share: higher is better."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]


def accuracy(outputs: Arrays, labels: npt.NDArray[np.generic]) -> float:
    """Share of samples whose largest entry of the first output [batch, classes] is at the label [batch]."""
    scores = next(iter(outputs.values()))
    return float(np.mean(scores.argmax(axis=1) == labels))
