"""Quality measures that several models share; higher is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def accuracy(outputs: Arrays, labels: Array) -> float:
    """Compute the share of samples for which the largest entry of the first output is at the label.

    Args:
        outputs: Outputs by name; the first one has shape [n, classes].
        labels: Class numbers, shape [n].
    """
    scores = next(iter(outputs.values()))
    return float(np.mean(scores.argmax(axis=1) == labels))
