"""Hashes that are the same on every machine and in every version of NumPy.

NumPy does not promise that a seed gives the same numbers in its next version, and a reference is read by later ones.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Buckets of categories, token ids and words. The last one also takes empty samples and values out of range.
BUCKETS = 64
# Words of one text that are counted.
MOST_WORDS = 256


def splitmix(values: Array) -> Array:
    """Hash integers to 64 bits (SplitMix64: Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed = _integers(values).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _integers(values: Array) -> Array:
    """The values as integers of 64 bits. Floats without such an integer become the smallest one on every machine."""
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        values = np.where(np.abs(values) < 2.0**63, values, -(2.0**63))
    with np.errstate(over="ignore"):
        found: Array = values.astype(np.int64)
    return found


def buckets(values: Array, lowest: int | None, size: int = BUCKETS) -> Array:
    """Put integers into buckets.

    Args:
        values: The integers, of any shape. Integers of 64 bits without a sign wrap around.
        lowest: The smallest value, if each value has a bucket of its own; None if values are hashed.
        size: Number of buckets.

    Returns:
        The bucket of each value, from 0 to `size` - 1. If each value has its own, others are in the last bucket.
    """
    if lowest is None:
        return (splitmix(values) % np.uint64(size)).astype(np.int64)
    values = _integers(values)
    in_range = (values >= lowest) & (values <= lowest + size - 2)
    return np.where(in_range, values, lowest) - lowest + np.where(in_range, 0, size - 1)


def word_buckets(text: str) -> Array:
    """The bucket of each of the first words of a text."""
    words = text.split(maxsplit=MOST_WORDS)[:MOST_WORDS]
    codes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    return buckets(np.asarray(codes, np.int64), None)


@lru_cache(maxsize=8)
def signs(size: int, count: int) -> Array:
    """Random projections: `count` vectors of +1 and -1, divided by the square root of `size`.

    Returns:
        The vectors, [size, count], count at most 64.
    """
    bits = splitmix(np.arange(size, dtype=np.int64))[:, None] >> np.arange(count, dtype=np.uint64)
    found: Array = ((bits & np.uint64(1)).astype(np.float64) * 2 - 1) / np.sqrt(max(size, 1))
    return found


@lru_cache(maxsize=8)
def frequencies(dimensions: int, count: int) -> Array:
    """Standard normal numbers, [dimensions, count], for random Fourier features."""
    size = dimensions * count
    uniform = (splitmix(np.arange(1, 2 * size + 1) * 0x10001) >> np.uint64(11)).astype(np.float64) / 2.0**53
    radius = np.sqrt(-2 * np.log1p(-uniform[:size]))
    found: Array = (radius * np.cos(2 * np.pi * uniform[size:])).reshape(dimensions, count)
    return found


def shuffled(count: int) -> Array:
    """A fixed order of `count` samples that has nothing to do with their own order."""
    return np.argsort(splitmix(np.arange(count, dtype=np.int64)), kind="stable")
