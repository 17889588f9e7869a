"""States latency ratios in words that show how certain they are."""

from __future__ import annotations

from onward.registry.evidence.records import Ratio

# The ends of an interval must differ by more than this factor before the interval is written out.
WIDE = 1.5

# An interval with ends that differ by more than this factor says nothing about the size of an effect.
USELESS = 10.0

NOISY = "too noisy to say"


def speed(ratio: Ratio, interval: bool = True) -> str:
    """Format a latency ratio as a speed.

    Args:
        ratio: A latency relative to another one.
        interval: Whether to add a narrow interval. A wide one is always shown.

    Returns:
        How many times as fast it is: "1.52 ±3%" with a narrow interval, "about 4 (2 to 9)" with a wide one, and
        "too noisy to say" if a wide interval contains 1 or its ends differ by more than the factor USELESS.
    """
    if too_noisy(ratio):
        return NOISY
    if is_wide(ratio):
        return f"about {_rounded(1 / ratio.value)} ({_rounded(1 / ratio.high)} to {_rounded(1 / ratio.low)})"
    times = 1 / ratio.value
    digits = 2 if times < 10 else 1 if times < 100 else 0
    spread = max(ratio.high / ratio.value, ratio.value / ratio.low) - 1
    return f"{times:.{digits}f}" + (f" ±{max(1, round(100 * spread))}%" if spread and interval else "")


def is_wide(ratio: Ratio) -> bool:
    """Whether the interval is so wide that the value alone would mislead."""
    return ratio.high > WIDE * ratio.low


def too_noisy(ratio: Ratio) -> bool:
    """Whether the interval does not even say which of the two is faster, or is useless."""
    return is_wide(ratio) and (ratio.low <= 1 <= ratio.high or ratio.high > USELESS * ratio.low)


def overlap(one: Ratio, other: Ratio) -> bool:
    """Whether two intervals have a value in common."""
    return one.low <= other.high and other.low <= one.high


def _rounded(value: float) -> str:
    """A number with two significant digits, and without an exponent."""
    return f"{float(f'{value:.2g}'):g}" if value < 1e6 else f"{value:.1e}"
