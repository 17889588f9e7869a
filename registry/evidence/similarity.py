"""Similarity of answers to the original's, without labels: cosine, signal-to-noise ratio, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


class Fidelity(NamedTuple):
    """The similarity of a graph's float outputs to the reference's; null if no float output has a signal.

    Attributes:
        snr_db: The signal-to-noise ratio over all samples, of the float output with the lowest one.
        cosine: The cosine similarity of the worst sample of any float output, each sample as one vector.
    """

    snr_db: float | None
    cosine: float | None


def fidelity(wanted: Arrays, got: Arrays) -> Fidelity:
    """Compare float outputs with the reference's.

    If the batch size is fixed, `got` may lack the samples of an incomplete last batch; these samples are ignored.

    Args:
        wanted: The reference's outputs by name, [samples, ...] each.
        got: The outputs to compare, by name, [samples, ...] each.

    Returns:
        The lowest similarity over all float outputs. If `got` has NaN or infinity where the reference is finite, the
        result is the worst possible: a cosine of -1 and a signal-to-noise ratio of minus infinity.
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
        angles += [cosine(sample.ravel(), answer.ravel()) for sample, answer in zip(expected, actual, strict=True)]
    return Fidelity(_least(ratios), _least(angles))


def _least(values: list[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def agreement(reference: Array, got: Array, axis: int = -1) -> float | None:
    """Compute the share of rows whose largest entry along `axis` is at the same index.

    Args:
        reference: The reference's answers, [samples, ...].
        got: The answers to compare, of the same shape.
        axis: The axis of the classes.

    Returns:
        The share; None if there is no class axis, there are no entries, or the shapes differ.
    """
    if reference.ndim < 2 or reference.shape[axis] < 2 or reference.shape != got.shape or reference.size == 0:
        return None
    return float(np.mean(reference.argmax(axis) == got.argmax(axis)))


def cosine(wanted: Array, actual: Array) -> float | None:
    """Compute the cosine of the angle between two vectors; None if one of them is zero or the result is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = float(np.linalg.norm(wanted) * np.linalg.norm(actual))
        value = float(wanted @ actual / lengths) if lengths else np.nan
    return min(1.0, value) if np.isfinite(value) else None


def signal_to_noise(wanted: Array, difference: Array) -> float | None:
    """Compute 10 log10 of signal power over noise power.

    Args:
        wanted: The signal.
        difference: The noise.

    Returns:
        The ratio in dB: infinite without noise, None without a finite signal.
    """
    signal, noise = float(np.square(wanted).sum()), float(np.square(difference).sum())
    if signal == 0.0 or not np.isfinite(signal):
        return None
    return float(10 * np.log10(signal / noise)) if noise else float("inf")
