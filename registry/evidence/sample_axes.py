"""Moves the axis that counts samples to the front of an array and back, and takes samples along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def to_front(values: Array, axis: int | None) -> Array:
    """Move the axis of samples to the front.

    Args:
        values: The array in the model's own layout.
        axis: Its axis of samples; None if it has none. Then it belongs to one sample, and gets a new axis.
    """
    if axis is None:
        return values[np.newaxis]
    return np.moveaxis(values, axis, 0) if axis and values.ndim > axis else values


def from_front(values: Array, axis: int | None) -> Array:
    """Move the axis of samples from the front to its place in the model's own layout.

    Args:
        values: The array, samples on axis 0.
        axis: The axis of samples; None if the model has none. Then the first sample's array is returned.
    """
    if axis is None:
        found: Array = values[0]
        return found
    return np.ascontiguousarray(np.moveaxis(values, 0, axis)) if axis else values


def part(values: Array, axis: int | None, start: int, size: int) -> Array:
    """Take samples of an array.

    Args:
        values: The array in the model's own layout.
        axis: Its axis of samples; None if it has none. Then the whole array is returned.
        start: The first sample.
        size: Number of samples.
    """
    return values if axis is None else values[(slice(None),) * axis + (slice(start, start + size),)]
