"""Statistics of latencies: percentiles from enough samples, ratios with confidence intervals, drift."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.records import Latency, Ratio

Array = npt.NDArray[np.float64]

# MLPerf Inference's early-stopping rule: the fewest latencies from which percentile p may be reported at 99 %
# confidence, if one latency may exceed it. It is the smallest n with P(Binomial(n, 1 - p) <= 1) <= 0.01.
FEWEST_FOR_P90 = 64
FEWEST_FOR_P95 = 130
FEWEST_FOR_P99 = 662

CONFIDENCE = 0.95
RESAMPLES = 1000

# Share of a variant's rounds, the fastest ones, that count as undisturbed (docs/decisions/0033-undisturbed-rounds.md).
UNDISTURBED = 0.25

# A change of speed over the rounds counts as drift at this significance level, and from this relative size on.
UNLIKELY = 0.01
DRIFT = 0.05


def summarize(
    rounds: Sequence[Sequence[float]], size: str, sizes: Mapping[str, int], warmup: int, weight: float = 1.0
) -> Latency:
    """Summarise the latencies of single calls at one size.

    Args:
        rounds: Latencies in milliseconds, by round.
        size: Key of the size, such as "b8".
        sizes: Size of each named dimension. The first one (1 if there is none) is the number of items per call.
        warmup: Number of warm-up calls before them.
        weight: The weight of the size in means over sizes.

    Returns:
        The figures. Throughput is in items per second, from the mean latency. Percentiles from too few latencies are
        None.

    Raises:
        ValueError: There are no latencies.
    """
    values = np.asarray([value for found in rounds for value in found], dtype=np.float64)
    if values.size == 0:
        raise ValueError("no latencies to describe")
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values, [50, 90, 95, 99]))
    mean = float(values.mean())
    items = next(iter(sizes.values()), 1)
    fewest = {"p90": FEWEST_FOR_P90, "p95": FEWEST_FOR_P95, "p99": FEWEST_FOR_P99}
    missing = [f"{name} needs {wanted}" for name, wanted in fewest.items() if values.size < wanted]
    return Latency(
        size=size,
        sizes=dict(sizes),
        weight=weight,
        samples=values.size,
        warmup=warmup,
        mean_ms=mean,
        std_ms=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        min_ms=float(values.min()),
        max_ms=float(values.max()),
        p50_ms=p50,
        p90_ms=p90 if values.size >= FEWEST_FOR_P90 else None,
        p95_ms=p95 if values.size >= FEWEST_FOR_P95 else None,
        p99_ms=p99 if values.size >= FEWEST_FOR_P99 else None,
        withheld=f"{values.size} samples: {', '.join(missing)}" if missing else "",
        throughput=items * 1e3 / mean if mean > 0 else float("inf"),
        drift=drift([float(np.median(found)) for found in rounds]),
    )


def drift(medians: Sequence[float]) -> float | None:
    """Compute by how much the last third of the rounds is slower than the first.

    Args:
        medians: The median latency of each round, in order.

    Returns:
        The relative change: 0.1 is 10 % slower at the end. It is 0 if a Mann-Kendall test finds no trend at UNLIKELY,
        or the change is under DRIFT; None for fewer than 6 rounds, which cannot reach that significance.
    """
    count = len(medians)
    if count < 6:
        return None
    from scipy import stats  # takes half a second, and few callers of this module compute intervals

    third = count // 3
    change = float(np.median(medians[-third:]) / np.median(medians[:third]) - 1)
    chance = stats.kendalltau(range(count), medians).pvalue
    return change if chance < UNLIKELY and abs(change) >= DRIFT else 0.0


def undisturbed(logs: Array) -> Array:
    """Compute the mean of the fastest quarter of rounds (UNDISTURBED).

    Other load on the machine makes some rounds slower and none faster, so the fast end of the distribution describes
    the graph best and repeats best: Chen and Revels, "Robust benchmarking in noisy environments" (2016).

    Args:
        logs: Log latencies, shape [..., rounds].

    Returns:
        Means over the smallest values of the last axis, shape [...].
    """
    count = math.ceil(logs.shape[-1] * UNDISTURBED)
    return np.asarray(np.partition(logs, count - 1, axis=-1)[..., :count].mean(axis=-1))


def ratio(pairs: Sequence[tuple[Array, Array]], weights: Sequence[float] | None = None) -> Ratio:
    """Compute a variant's latency relative to the plain export's, from undisturbed rounds.

    The value is the weighted geometric mean over sizes. The 95 % confidence interval is a seeded percentile bootstrap
    over rounds: each resample takes all sizes of both graphs from the same rounds, because the machine's speed drifts.

    Args:
        pairs: For each size, the median latency of each round of the variant and of the plain export; each of shape
            [rounds], from the same rounds, in the same unit.
        weights: The weight of each size; None if all are equal.

    Returns:
        The ratio with its interval; a single round has no interval (low = high = value).

    Raises:
        ValueError: The numbers of rounds differ, or are zero.
    """
    logs = [np.log(medians) for pair in pairs for medians in pair]
    counts = {values.size for values in logs}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"rounds cannot be paired: the series have {sorted(counts)} rounds, wanted one number above 0")
    mean = functools.partial(_log_ratio, weights=weights)
    value = float(np.exp(mean(*logs)))
    if counts == {1}:
        return Ratio(value=value, low=value, high=value)
    from scipy import stats

    interval = stats.bootstrap(
        logs, mean, paired=True, vectorized=True, confidence_level=CONFIDENCE, n_resamples=RESAMPLES,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Ratio(
        value=value, low=min(value, float(np.exp(interval.low))), high=max(value, float(np.exp(interval.high)))
    )


def quotient(over: Ratio, under: Ratio) -> Ratio:
    """Divide two ratios, with an interval that adds their relative half-widths in squares, as independent errors.

    Both are relative to the same plain export, whose noise cancels out, so the interval is rather too wide.
    """
    value = over.value / under.value

    def spread(*factors: float) -> float:
        return math.exp(math.hypot(*(math.log(factor) for factor in factors)))

    return Ratio(
        value=value,
        low=value / spread(over.value / over.low, under.high / under.value),
        high=value * spread(over.high / over.value, under.value / under.low),
    )


def _log_ratio(*logs: Array, axis: int = -1, weights: Sequence[float] | None = None) -> Array:
    """Mean log ratio over sizes; `logs` are the variant's and the plain export's log medians, size by size."""
    assert axis == -1, "rounds are the last axis"
    variant, plain = (np.stack([undisturbed(values) for values in some]) for some in (logs[::2], logs[1::2]))
    return np.asarray(np.average(variant - plain, axis=0, weights=weights))
