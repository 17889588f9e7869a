"""Latencies into figures that can be believed: percentiles only from enough samples, ratios only with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from onward.registry.evidence.records import Latency, Ratio

Array = npt.NDArray[np.float64]

# MLPerf Inference's early-stopping rule: the fewest latencies from which a percentile p may be stated at 99 %
# confidence, one latency above it allowed: the smallest n with P(Binomial(n, 1 - p) <= 1) <= 0.01.
FEWEST_FOR_P90 = 64
FEWEST_FOR_P95 = 130
FEWEST_FOR_P99 = 662

CONFIDENCE = 0.95
RESAMPLES = 1000

# The share of rounds, the fastest, that tell what a graph itself takes.
UNDISTURBED = 0.25

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


def undisturbed(logs: Array) -> Array:
    """The mean of the smallest quarter along the last axis: of each round's log latency, what the graph itself takes.

    Whoever else is on the machine makes some rounds slower and none faster, so that the fast end of a distribution says
    most of the graph, and repeats best: Chen and Revels, "Robust benchmarking in noisy environments" (2016).
    """
    count = math.ceil(logs.shape[-1] * UNDISTURBED)
    return np.asarray(np.partition(logs, count - 1, axis=-1)[..., :count].mean(axis=-1))


def ratio(pairs: Sequence[tuple[Array, Array]]) -> Ratio:
    """How long a variant takes relative to the plain export, undisturbed: the geometric mean over sizes, with its 95 %
    bootstrap confidence interval over rounds (percentile method, seeded).

    For each size, the median latency of each round of the variant and of the plain export, the same rounds of both:
    those are what is drawn again, all sizes of both together, since a machine's speed drifts.

    Raises:
        ValueError: the numbers of rounds differ, or are none.
    """
    logs = [np.log(medians) for pair in pairs for medians in pair]
    counts = {values.size for values in logs}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"rounds cannot be paired, there are {sorted(counts)}")
    value = float(np.exp(_log_ratio(*logs)))
    if counts == {1}:
        return Ratio(value=value, low=value, high=value)
    interval = stats.bootstrap(
        logs, _log_ratio, paired=True, vectorized=True, confidence_level=CONFIDENCE, n_resamples=RESAMPLES,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Ratio(
        value=value, low=min(value, float(np.exp(interval.low))), high=max(value, float(np.exp(interval.high)))
    )


def quotient(over: Ratio, under: Ratio) -> Ratio:
    """The ratio of two ratios, with its interval: relative half-widths add as independent errors do, in squares.

    Both are relative to the same plain export, whose own noise is in both and cancels out, so that the interval is
    rather too wide than too narrow.
    """
    value = over.value / under.value

    def spread(*factors: float) -> float:
        return math.exp(math.hypot(*(math.log(factor) for factor in factors)))

    return Ratio(
        value=value,
        low=value / spread(over.value / over.low, under.high / under.value),
        high=value * spread(over.high / over.value, under.value / under.low),
    )


def _log_ratio(*logs: Array, axis: int = -1) -> Array:
    """Of the variant's and the plain export's log medians at one size, then at the next, and so on."""
    assert axis == -1, "the last axis is the rounds'"
    variant, plain = (np.stack([undisturbed(values) for values in some]) for some in (logs[::2], logs[1::2]))
    return np.asarray(np.mean(variant - plain, axis=0))
