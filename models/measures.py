"""Measures of quality that several models share: higher is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def accuracy(outputs: Arrays, labels: Array) -> float:
    """Share of samples whose largest entry of the first output [batch, classes] is at the label [batch]."""
    scores = next(iter(outputs.values()))
    return float(np.mean(scores.argmax(axis=1) == labels))
