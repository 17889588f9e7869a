"""The names of a run's metrics, and those that earlier Onwards used for the same figures.

Earlier names contained the runtime (`latency_cpu/b1_p50_ms`), so the runs of two runtimes shared no metric. Now a run's
param `runtime` says it. Suites and comparisons still accept runs and expectations with the earlier names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The metrics that every measured variant has, in the order of columns and tables (registry/evidence/headline.py).
HEADLINE = ("p50_ms", "speedup", "quality", "quality_drop", "fidelity_snr_db", "size_mb")

_RENAMED = {
    "agreement": "fidelity/agreement",
    "cosine": "fidelity/cosine",
    "snr_db": "fidelity_snr_db",
    "session_ms": "load/session_ms",
    "cold_start_ms": "load/cold_start_ms",
    "peak_memory_mb": "memory/peak_mb",
    "nodes": "graph/nodes",
    "compression": "graph/compression",
    "reduction": "graph/reduction",
    "trained_quality": "train/quality",
    "variants_tried": "search/variants_tried",
    "variants_fit": "search/variants_fit",
}
_EARLIER = {now: before for before, now in _RENAMED.items()}
_WITH_RUNTIME = re.compile(r"(latency|throughput|ratio)_[^/]+/(.+)")
_PER_SECOND = "_items_per_s"


def current(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a run under the names of this Onward.

    Args:
        metrics: the metrics under the names that they were logged with.
    """
    return {_current(name): value for name, value in metrics.items()}


def _current(name: str) -> str:
    if found := _WITH_RUNTIME.fullmatch(name):
        return f"{found[1]}/{found[2]}{_PER_SECOND if found[1] == 'throughput' else ''}"
    return _RENAMED.get(name, name)


def with_earlier(metrics: Mapping[str, float], runtime: str) -> dict[str, float]:
    """The metrics of a run under this Onward's names and under the earlier ones.

    Args:
        metrics: the metrics under the names that they were logged with.
        runtime: the runtime of the run; "" if it is unknown.
    """
    known = current(metrics)
    earlier = {}
    for name, value in known.items():
        group, _, rest = name.partition("/")
        if name in _EARLIER:
            earlier[_EARLIER[name]] = value
        elif runtime and rest and group in ("latency", "throughput", "ratio"):
            earlier[f"{group}_{runtime}/{rest.removesuffix(_PER_SECOND)}"] = value
    return {**earlier, **known}
