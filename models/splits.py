"""Splits of a data set by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def part_of(splits: Mapping[str, T], split: str) -> T:
    """Look up what defines a split.

    Args:
        splits: What defines each split, such as a range of rows, by name.
        split: Name of the split.

    Raises:
        ValueError: There is no such split.
    """
    if split not in splits:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(splits)}")
    return splits[split]
