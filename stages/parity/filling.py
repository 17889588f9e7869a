"""Fills arrays up to a common shape, where a size depends on the data or grows from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def fill_up(parts: Sequence[Array]) -> list[Array]:
    """Fill arrays up to the largest size of each axis but the first.

    Args:
        parts: Arrays of the same rank.

    Returns:
        The arrays, filled with NaN, -1 (unsigned: the largest number), or False.
    """
    if len({part.shape[1:] for part in parts}) < 2:
        return list(parts)
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return [_filled(part, largest) for part in parts]


def _filled(values: Array, shape: Sequence[int]) -> Array:
    kind = values.dtype.kind
    filler: Any = np.nan if kind == "f" else -1 if kind == "i" else np.iinfo(values.dtype).max if kind == "u" else False
    room = [(0, 0), *((0, most - size) for size, most in zip(values.shape[1:], shape, strict=True))]
    return np.pad(values, room, constant_values=filler)
