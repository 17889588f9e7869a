"""The latency of a variant in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onward.registry.evidence.records import Latency


def mean_p50_ms(latencies: Sequence[Latency]) -> float:
    """The weighted geometric mean of p50 over sizes, in ms.

    Args:
        latencies: The latencies at each size, at least one.
    """
    total = sum(latency.weight for latency in latencies)
    return math.exp(sum(latency.weight * math.log(latency.p50_ms) for latency in latencies) / total)
