"""Latencies into figures that can be believed: percentiles only from enough samples, ratios only with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from registry.vocabulary import Latency, Ratio

# MLPerf Inference's early-stopping rule: the fewest latencies from which a percentile p may be stated at 99 %
# confidence, one latency above it allowed: the smallest n with P(Binomial(n, 1 - p) <= 1) <= 0.01.
FEWEST_FOR_P90 = 64
FEWEST_FOR_P95 = 130
FEWEST_FOR_P99 = 662

CONFIDENCE = 0.95
RESAMPLES = 2000


# A change of speed over the rounds is called a drift when it is this unlikely to be chance and this large.
UNLIKELY = 0.01
DRIFT = 0.05


def summarize(rounds: Sequence[Sequence[float]], size: str, sizes: Mapping[str, int], warmup: int) -> Latency:
    """Describe latencies of single calls, in milliseconds, at one size, by the round that they were measured in.

    Throughput counts items of the first dimension per second (1 where there is none), from the mean latency.

    Raises:
        ValueError: there are no latencies.
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
    """By how much the last third of the rounds differs from the first: 0.1 is 10 % slower at the end.

    Zero where there is no trend (Mann-Kendall test at UNLIKELY) or one of less than DRIFT; null under 6 rounds, of
    which no order is unlikely enough. `medians` are one latency a round, in order.
    """
    count = len(medians)
    if count < 6:
        return None
    third = count // 3
    change = float(np.median(medians[-third:]) / np.median(medians[:third]) - 1)
    chance = stats.kendalltau(range(count), medians).pvalue
    return change if chance < UNLIKELY and abs(change) >= DRIFT else 0.0


def log_ratios(variant: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Per round, the log of the variant's median latency over the plain export's in the same round.

    Rounds are paired because a machine's speed drifts: within a round, both met the same machine.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    if len(variant) != len(plain):
        raise ValueError(f"{len(variant)} rounds cannot be paired with {len(plain)}")
    medians = np.array([[np.median(a), np.median(b)] for a, b in zip(variant, plain, strict=True)])
    return np.asarray(np.log(medians[:, 0]) - np.log(medians[:, 1]))


def ratio(logs: npt.NDArray[np.float64]) -> Ratio:
    """Geometric mean of paired ratios with its 95 % bootstrap confidence interval (percentile method, seeded)."""
    value = float(np.exp(logs.mean()))
    if logs.size < 2 or np.ptp(logs) == 0:
        return Ratio(value=value, low=value, high=value)
    interval = stats.bootstrap(
        (logs,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Ratio(value=value, low=float(np.exp(interval.low)), high=float(np.exp(interval.high)))
