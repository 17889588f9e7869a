"""silero-vad: the probability of speech, chunk by chunk, with a state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models import inputs  # type: ignore[attr-defined]  # benchmarks/zoo.py copies both into one project

Arrays = dict[str, npt.NDArray[np.float32]]
CHUNK, CONTEXT, STEPS = 512, 64, 48


def samples(split: str) -> Arrays:
    """Chunks of running speech, [24, steps, 576]."""
    speech = inputs.clips(split, 24, STEPS * CHUNK)
    padded = np.pad(speech, ((0, 0), (CONTEXT, 0)))
    chunks = [padded[:, step * CHUNK : step * CHUNK + CONTEXT + CHUNK] for step in range(STEPS)]
    return {"input": np.stack(chunks, axis=1)}


def changed(original: Arrays, released: Arrays) -> float:
    """The share of chunks whose decision changes."""
    return float(np.mean((original["output"] > 0.5) != (released["output"] > 0.5)))
