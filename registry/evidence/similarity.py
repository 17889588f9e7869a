"""How near answers are to the original's, where no label says what is right: cosine, signal to noise, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


class Fidelity(NamedTuple):
    """`snr_db`: signal over noise across all samples, of the float output that has the least. `cosine`: of the worst
    sample and float output, each taken as one vector. Null where no output is float, or none has a signal."""

    snr_db: float | None
    cosine: float | None


def fidelity(wanted: Arrays, got: Arrays) -> Fidelity:
    """Compare outputs by name, samples on the first axis, with the reference's.

    Where the batch is fixed, `got` may lack the samples of a last batch that was not full; they are left out. NaN or
    infinity where the reference has none is the worst there is: a cosine of -1 and an SNR of minus infinity.
    """
    ratios, angles = [], []
    for name, reference in wanted.items():
        if reference.dtype.kind != "f":
            continue
        actual = got[name].astype(np.float64)
        expected = reference[: len(actual)].astype(np.float64)
        finite = np.isfinite(expected)
        if not np.isfinite(actual[finite]).all():
            return Fidelity(-np.inf, -1.0)
        expected, actual = np.where(finite, expected, 0.0), np.where(finite, actual, 0.0)
        ratios.append(signal_to_noise(expected.ravel(), (actual - expected).ravel()))
        angles += [cosine(one.ravel(), other.ravel()) for one, other in zip(expected, actual, strict=True)]
    return Fidelity(_least(ratios), _least(angles))


def _least(values: list[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def agreement(reference: Array, got: Array, axis: int = -1) -> float | None:
    """Share of rows whose largest entry along `axis` is the same one; null where there is no such axis of classes."""
    if reference.ndim < 2 or reference.shape[axis] < 2 or reference.shape != got.shape or reference.size == 0:
        return None
    return float(np.mean(reference.argmax(axis) == got.argmax(axis)))


def cosine(wanted: Array, actual: Array) -> float | None:
    """Cosine of the angle between the two as vectors; null where one of them is zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = float(np.linalg.norm(wanted) * np.linalg.norm(actual))
        value = float(wanted @ actual / lengths) if lengths else np.nan
    return min(1.0, value) if np.isfinite(value) else None


def signal_to_noise(wanted: Array, difference: Array) -> float | None:
    """10 log10 of signal power over noise power; infinite without noise, null without signal."""
    signal, noise = float(np.square(wanted).sum()), float(np.square(difference).sum())
    if signal == 0.0 or not np.isfinite(signal):
        return None
    return float(10 * np.log10(signal / noise)) if noise else float("inf")
