"""PP-OCRv6: the text of a line, at a fixed width of 320."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models import inputs  # type: ignore[attr-defined]  # benchmarks/zoo.py copies both into one project

Arrays = dict[str, npt.NDArray[np.float32]]
BLANK = 0


def samples(split: str) -> Arrays:
    """Pictures of lines, [64, 3, 48, 320]."""
    rng = np.random.default_rng(inputs.SEEDS[split] * 11)
    pictures = np.stack([inputs.line_of_text(rng) for _ in range(64)]).astype(np.float32)
    return {"x": ((pictures / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(0, 3, 1, 2)}


def changed(original: Arrays, released: Arrays) -> float:
    """The share of lines whose text changes."""
    pairs = zip(original["fetch_name_0"], released["fetch_name_0"], strict=True)
    return float(np.mean([_text(one) != _text(other) for one, other in pairs]))


def _text(steps: npt.NDArray[np.float32]) -> list[int]:
    """Decode probabilities [steps, characters]: the best character of each step, without repetitions and blanks."""
    best = steps.argmax(1)
    return [int(c) for c, before in zip(best, [BLANK, *best[:-1]], strict=True) if c not in (BLANK, before)]
