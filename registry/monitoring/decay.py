"""Whether a version fails more often, or answers more slowly, than it should. Pure: no clock, no files.

test = ErrorTest(acceptable_rate(failures=3, requests=2000))
for failed in outcomes:
    test.add(failed)
test.alarm

baseline = latency_baseline("evidence", calls)
judge_latency(baseline, window)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

# The probability that the test ever raises an alarm for a version that fails as often as is acceptable.
FALSE_ALARM = 1e-4
# Rates of errors up to this one never raise an alarm.
RATE_FLOOR = 0.01
# The acceptable rate of errors while nothing is known about an earlier version.
UNKNOWN_RATE = 0.05
# Fewer failures than this never raise an alarm.
LEAST_FAILURES = 5
# Alternatives between the acceptable rate and 1: rate + (1 - rate) / 2^k.
_ALTERNATIVES = 2.0 ** -np.arange(1, 13)
# Normal quantiles: 99 % one-sided.
_Z = 2.326
# Calls that a baseline of latencies needs, and that a window needs.
LEAST_BASELINE, LEAST_CALLS = 100, 10
# A median 1.5 times as long, or a 99th percentile twice as long, and at least 1 ms longer. Less is noise of threads.
P50_FACTOR, P99_FACTOR, FLOOR_MS = 1.5, 2.0, 1.0


def acceptable_rate(failures: int, requests: int) -> float:
    """The rate of errors that a version may have, from what was observed before.

    It is the upper end of Wilson's one-sided 99 % interval, because the observed rate is an estimate. With few requests
    that end is high, so it is at most UNKNOWN_RATE unless the observed rate itself is higher.

    Args:
        failures: failed requests of the version before, or of the first hour.
        requests: all its requests.
    """
    if not requests:
        return UNKNOWN_RATE
    _, high = wilson(failures, requests)
    return min(0.99, max(RATE_FLOOR, min(high, max(UNKNOWN_RATE, failures / requests))))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share, each end one-sided at 99 % (Wilson, 1927).

    Args:
        hits: the number of hits.
        total: the number of trials, at least 1.

    Returns:
        the lower and the upper end.
    """
    share, square = hits / total, _Z**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = _Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class ErrorTest:
    """A sequential test of the rate of errors: it may be looked at after every request.

    The evidence is a mixture of likelihood ratios of higher rates against the acceptable one (Robbins, 1970). For every
    true rate up to the acceptable one it is a nonnegative supermartingale that begins at 1. By Ville's inequality
    (1939), the probability that it ever reaches 1 / FALSE_ALARM is at most FALSE_ALARM, however often it is looked at.

    Attributes:
        acceptable: the acceptable rate.
        requests: the requests so far.
        failures: those that failed.
        alarm: whether the evidence has ever sufficed. An alarm stays.
    """

    acceptable: float
    requests: int = 0
    failures: int = 0
    alarm: bool = False
    _logs: np.ndarray[tuple[int], np.dtype[np.float64]] = field(
        default_factory=lambda: np.zeros(len(_ALTERNATIVES)), repr=False
    )

    def __post_init__(self) -> None:
        self.acceptable = min(max(self.acceptable, 1e-6), 1 - 1e-6)
        higher = self.acceptable + (1 - self.acceptable) * _ALTERNATIVES
        self._if_failed = np.log(higher / self.acceptable)
        self._if_not = np.log((1 - higher) / (1 - self.acceptable))

    def add(self, failed: bool) -> bool:
        """Take note of a request.

        Args:
            failed: whether it failed.

        Returns:
            whether there is an alarm now.
        """
        self.requests += 1
        self.failures += failed
        self._logs += self._if_failed if failed else self._if_not
        # A success only lowers the evidence, so it needs no look.
        if failed and self.failures >= LEAST_FAILURES and self.log_evidence >= -math.log(FALSE_ALARM):
            self.alarm = True
        return self.alarm

    @property
    def log_evidence(self) -> float:
        """The natural logarithm of the evidence."""
        highest = float(self._logs.max())
        return highest + math.log(float(np.exp(self._logs - highest).mean()))

    @property
    def rate(self) -> float:
        """The observed rate."""
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Call:
    """One run of a model.

    Attributes:
        size: the number of elements of its inputs.
        ms: how long it took, in ms.
    """

    size: int
    ms: float


@dataclass(frozen=True)
class LatencyBaseline:
    """The latencies that a version should have.

    Attributes:
        source: what they are from, in words.
        medians: the median in ms by the class of the inputs' size (`size_class`).
        tail: the 99th percentile of the latencies over the median of their class.
        calls: the number of calls.
    """

    source: str
    medians: Mapping[int, float]
    tail: float
    calls: int


@dataclass(frozen=True)
class LatencyFigures:
    """One window in comparison with a baseline.

    Attributes:
        calls: the calls of sizes that the baseline has.
        p50_ms: their median.
        p99_ms: their 99th percentile.
        p50_ratio: the median of the latencies over those of the baseline.
        p99_ratio: the same for the 99th percentile.
        p50_exceeded: whether the median is longer than allowed.
        p99_exceeded: whether the 99th percentile is.
    """

    calls: int
    p50_ms: float
    p99_ms: float
    p50_ratio: float
    p99_ratio: float
    p50_exceeded: bool
    p99_exceeded: bool


def size_class(elements: int) -> int:
    """The class of an input's size. A class spans a fourth of a doubling, so latencies inside it are comparable.

    Args:
        elements: the number of elements of all inputs.
    """
    return round(4 * math.log2(max(1, elements)))


def latency_baseline(source: str, calls: Sequence[Call]) -> LatencyBaseline | None:
    """Summarise latencies.

    Args:
        source: what they are from, in words.
        calls: the calls.

    Returns:
        None if there are fewer than LEAST_BASELINE calls.
    """
    if len(calls) < LEAST_BASELINE:
        return None
    by_class: defaultdict[int, list[float]] = defaultdict(list)
    for call in calls:
        by_class[size_class(call.size)].append(max(call.ms, 1e-6))
    medians = {size: float(np.median(values)) for size, values in by_class.items()}
    ratios = [value / medians[size] for size, values in by_class.items() for value in values]
    return LatencyBaseline(source, medians, float(np.quantile(ratios, 0.99)), len(calls))


def known_calls(baseline: LatencyBaseline, calls: Sequence[Call]) -> int:
    """Count the calls with an input size that a baseline has.

    Args:
        baseline: the baseline.
        calls: the calls.
    """
    return sum(size_class(call.size) in baseline.medians for call in calls)


def judge_latency(baseline: LatencyBaseline, calls: Sequence[Call]) -> LatencyFigures | None:
    """Compare a window with a baseline.

    A call is long if it takes P50_FACTOR times the median of its size, and FLOOR_MS more. The median is exceeded if
    more than half of the calls are long, by the lower end of Wilson's interval. The 99th percentile is exceeded if more
    than 1 % of the calls take P99_FACTOR times the baseline's 99th percentile, in the same way.

    Args:
        baseline: the baseline.
        calls: the calls of the window.

    Returns:
        None if fewer than LEAST_CALLS calls have a size that the baseline has.
    """
    known = [(call.ms, baseline.medians[size]) for call in calls if (size := size_class(call.size)) in baseline.medians]
    if len(known) < LEAST_CALLS:
        return None
    ms, medians = np.array([pair[0] for pair in known]), np.array([pair[1] for pair in known])
    tails = medians * baseline.tail
    long = int((ms > np.maximum(medians * P50_FACTOR, medians + FLOOR_MS)).sum())
    very_long = int((ms > np.maximum(tails * P99_FACTOR, tails + FLOOR_MS)).sum())
    return LatencyFigures(
        calls=len(known),
        p50_ms=float(np.median(ms)),
        p99_ms=float(np.quantile(ms, 0.99)),
        p50_ratio=float(np.median(ms / medians)),
        p99_ratio=float(np.quantile(ms / tails, 0.99)),
        p50_exceeded=wilson(long, len(known))[0] > 0.5,
        p99_exceeded=wilson(very_long, len(known))[0] > 0.01,
    )
