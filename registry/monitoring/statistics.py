"""Distances between two distributions, and what chance alone gives: block bootstrap, tails, Benjamini-Hochberg.

A feature is a vector per sample: which bin its value is in, its shares of buckets, or its random Fourier features. The
mean of these vectors describes a period. Every distance is a function of two such means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Replications of the bootstrap.
DRAWS = 1000
# Blocks of one window at the finest level. Coarser levels join two neighbours each, down to FEWEST.
BLOCKS = 64
FEWEST = 8
# Above this quantile, the tail of the null distribution is exponential: heavier than that of a norm of Gaussians.
TAIL = 0.95
_BINS = 10


def wasserstein(first: Array, second: Array, gaps: Array) -> Array:
    """Compute the Wasserstein-1 distance of binned distributions.

    Args:
        first: Cumulative shares of the bins without the last (`cumulative`), [..., bins - 1].
        second: The same.
        gaps: Distances between the representative values of neighbouring bins, [bins - 1].
    """
    found: Array = np.abs(first - second) @ gaps
    return found


def cumulative(shares: Array) -> Array:
    """Add up shares from the first bin on, [..., bins] to [..., bins - 1]."""
    found: Array = np.cumsum(shares[..., :-1], axis=-1)
    return found


def psi(first: Array, second: Array, count: float, reference_count: float) -> Array:
    """Compute the population stability index: the sum of (p - q) ln(p / q).

    Args:
        first: Shares of the bins in the window, [..., bins].
        second: Shares in the reference.
        count: Samples of the window. An empty bin counts as half a sample.
        reference_count: Samples of the reference.
    """
    p, q = _smoothed(first, count), _smoothed(second, reference_count)
    found: Array = ((p - q) * np.log(p / q)).sum(-1)
    return found


def jensen_shannon(first: Array, second: Array) -> Array:
    """Compute the Jensen-Shannon distance to base 2: 0 for equal distributions, 1 for disjoint ones.

    Args:
        first: Shares of the buckets, [..., buckets].
        second: The same.
    """
    p, q = _shares(first), _shares(second)
    mean = np.maximum((p + q) / 2, 1e-300)
    divergence = sum((x * np.log2(np.maximum(x, 1e-300) / mean)).sum(-1) / 2 for x in (p, q))
    found: Array = np.sqrt(np.maximum(divergence, 0))
    return found


def mmd(first: Array, second: Array) -> Array:
    """Compute the maximum mean discrepancy from means of random Fourier features, [..., features]."""
    found: Array = np.sqrt(np.square(first - second).sum(-1))
    return found


def _shares(values: Array) -> Array:
    positive = np.maximum(values, 0)
    found: Array = positive / np.maximum(positive.sum(-1, keepdims=True), 1e-300)
    return found


def _smoothed(values: Array, count: float) -> Array:
    half = 0.5 / max(count, 1.0)
    found: Array = (_shares(values) + half) / (1 + half * values.shape[-1])
    return found


def decile_of(counts: Array) -> Array:
    """Assign bins to at most ten groups of about equal frequency.

    Args:
        counts: Samples of the reference per bin, [bins].

    Returns:
        The indicator matrix, [bins, 10].
    """
    before = np.cumsum(counts) - counts / 2
    group = np.minimum((before / max(counts.sum(), 1) * _BINS).astype(int), _BINS - 1)
    found: Array = np.eye(_BINS)[group]
    return found


def block_sums(vectors: Array) -> Array:
    """Add up vectors of neighbouring samples.

    Args:
        vectors: [samples, size], in the order of arrival.

    Returns:
        The sums, [blocks, size], with BLOCKS blocks of about the same length; one per sample of short windows.
    """
    return np.add.reduceat(vectors, _starts(len(vectors)), axis=0) if len(vectors) else vectors


def block_counts(codes: Array, size: int) -> Array:
    """As `block_sums` of the indicator vectors of bins.

    Args:
        codes: The bin of each sample, [samples].
        size: Number of bins.
    """
    count, blocks = len(codes), min(len(codes), BLOCKS)
    if not count:
        return np.zeros((0, size))
    starts = np.zeros(count, np.int64)
    starts[_starts(count)[1:]] = 1
    flat = np.bincount(np.cumsum(starts) * size + codes, minlength=blocks * size)
    return flat.reshape(blocks, size).astype(np.float64)


def lengths(count: int) -> Array:
    """The number of samples of each block of a window with `count` samples."""
    return np.diff(np.append(_starts(count), count)).astype(np.float64)


def _starts(count: int) -> Array:
    blocks = min(count, BLOCKS)
    return np.arange(blocks) * count // max(blocks, 1)


class Levels:
    """Deviations of blocks from the mean of their window, for several lengths of blocks.

    The variance of sums over blocks grows with their length if neighbouring samples depend on each other. The level
    with the largest variance is used, so that no length has to be chosen.

    Args:
        windows: The sums over blocks of each window, [blocks, size], and its number of samples.
    """

    def __init__(self, windows: Sequence[tuple[Array, int]]) -> None:
        self.levels: list[tuple[Array, int]] = []
        parts = []
        for sums, count in windows:
            if count > 1:
                parts.append((sums - lengths(count)[:, None] * (sums.sum(0) / count), lengths(count)))
        while parts and min(len(sums) for sums, _ in parts) >= FEWEST:
            scaled = [sums / np.sqrt(size)[:, None] for sums, size in parts]
            free = sum(len(sums) - 1 for sums in scaled)
            pooled = np.concatenate(scaled)
            self.levels.append((pooled * np.sqrt(len(pooled) / free), free))
            parts = [(_joined(sums), _joined(size)) for sums, size in parts]

    def widest(self, weigh: Callable[[Array], Array], least: float) -> tuple[Array, int] | None:
        """Choose the level with the largest variance.

        Args:
            weigh: Maps deviations to the components whose variances are added up.
            least: The variance of independent samples of the reference.

        Returns:
            The deviations, [blocks, size], and their degrees of freedom; None if no variance is above `least`.
        """
        found, largest = None, least
        for pooled, free in self.levels:
            variance = float(np.square(weigh(pooled)).sum() / len(pooled))
            if variance > largest:
                found, largest = (pooled, free), variance
        return found


def _joined(values: Array) -> Array:
    if len(values) % 2:
        return np.add.reduceat(values, np.arange(0, len(values), 2), axis=0)
    return values[::2] + values[1::2]


def resampled(pooled: Array, free: int, blocks: int, seed: int = 0) -> Array:
    """Draw sums of blocks with replacement.

    A variance from few blocks is itself uncertain, so each draw is divided by the root of a chi-squared number over its
    degrees of freedom, as in Student's t.

    Args:
        pooled: The blocks' deviations, [blocks, size], scaled to one sample.
        free: Their degrees of freedom.
        blocks: The number of blocks of one window.
        seed: The seed of the draws.

    Returns:
        Deviations of the sum of one window, divided by the root of its number of samples, [DRAWS, size].
    """
    return _choices(len(pooled), free, blocks, seed) @ pooled


@lru_cache(maxsize=32)
def _choices(available: int, free: int, blocks: int, seed: int) -> Array:
    """How often each draw takes each block, scaled."""
    rng = np.random.default_rng((seed, available, blocks))
    chosen = rng.multinomial(blocks, np.full(available, 1 / available), size=DRAWS).astype(np.float64)
    uncertain = np.sqrt(free / rng.chisquare(free, size=DRAWS))
    found: Array = chosen * (uncertain / np.sqrt(blocks))[:, None]
    return found


class Tail:
    """The distribution of a distance by chance.

    Args:
        draws: Distances of the bootstrap, [DRAWS].
    """

    def __init__(self, draws: Array) -> None:
        self._draws = np.sort(draws)
        self._start = float(np.quantile(self._draws, TAIL))
        above = self._draws[self._draws > self._start]
        self._slope = float((above - self._start).mean()) if len(above) else 0.0

    def probability(self, value: float) -> float:
        """The probability of at least this distance."""
        if value <= self._start:
            reached = len(self._draws) - np.searchsorted(self._draws, value, "left")
            return float((reached + 1) / (len(self._draws) + 1))
        if self._slope <= 0:
            return 0.0
        return float((1 - TAIL) * np.exp(-(value - self._start) / self._slope))

    def threshold(self, probability: float) -> float:
        """The distance that chance exceeds with this small probability."""
        return self._start + self._slope * float(np.log((1 - TAIL) / min(probability, 1 - TAIL)))


def critical(probabilities: Sequence[float], level: float) -> float:
    """Compute the largest probability that counts as a finding (Benjamini and Hochberg, 1995).

    Args:
        probabilities: One per test.
        level: The accepted share of false findings.

    Returns:
        `level` times the number of findings (at least 1) over the number of tests.
    """
    ordered = np.sort(np.asarray(probabilities, np.float64))
    steps = level * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    found = np.flatnonzero(ordered <= steps)
    return float(steps[found[-1]] if len(found) else level / max(len(ordered), 1))
