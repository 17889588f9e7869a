"""Traffic for benchmarks/drift.py. Needs NumPy and SciPy only, because the peer's environment has no Onward."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

Array = npt.NDArray[Any]
NUMBERS = ("normal", "lognormal", "logistic", "bimodal", "heavy")
CATEGORY = "category"
# The quantiles of the standard normal distribution at 0.4, 0.7, 0.85 and 0.95: five categories, from 40 % to 5 %.
_LIMITS = np.array([-0.253347103, 0.524400513, 1.036433389, 1.644853627])


def gaussian(count: int, columns: int, correlation: float, rng: np.random.Generator) -> Array:
    """Standard normal columns, each an AR(1) process.

    Args:
        count: Number of samples.
        columns: Number of columns.
        correlation: Of neighbouring samples; 0 for independent ones.
        rng: The source of chance.

    Returns:
        [count, columns].
    """
    noise = rng.standard_normal((count, columns))
    if not correlation:
        return noise
    noise[1:] *= np.sqrt(1 - correlation**2)
    found: Array = lfilter([1.0], [1.0, -correlation], noise, axis=0)
    return found


def traffic(
    count: int, rng: np.random.Generator, shift: float = 0.0, moved: float = 0.0, correlation: float = 0.0
) -> dict[str, Array]:
    """One window.

    Args:
        count: Number of samples.
        rng: The source of chance.
        shift: Of the column "normal", in standard deviations.
        moved: The share of the first category that becomes the second, in shares of all samples.
        correlation: Of neighbouring samples.

    Returns:
        The columns by name, and "scores", [count, 3].
    """
    z = gaussian(count, len(NUMBERS) + 1, correlation, rng)
    category = np.searchsorted(_LIMITS, z[:, 5])
    if moved:
        category = np.where((category == 0) & (rng.random(count) < moved / 0.4), 1, category)
    return {
        "normal": z[:, 0] + shift,
        "lognormal": np.exp(z[:, 1]),
        "logistic": 1 / (1 + np.exp(-z[:, 2])),
        "bimodal": z[:, 3] + 2 * np.sign(z[:, 3]),
        "heavy": np.sinh(1.5 * z[:, 4]),
        CATEGORY: category.astype(np.int64),
        "scores": np.stack([z[:, 0] + z[:, 1], z[:, 2], z[:, 3] - z[:, 4]], axis=1).astype(np.float32),
    }
