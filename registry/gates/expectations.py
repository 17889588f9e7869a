"""A team's own gates: Great Expectations suites (JSON files in the repository) that judge the evidence of a version.

A suite judges a table with one row: the version's tags (`quality`, `size_mb`, ...), the metrics of its run
(`metrics.latency/b1_p50_ms`, ...), and the same of the live version with the prefix `live.`. If nothing is live,
the version is compared with itself. What was not recorded has no column, so an expectation about it is not met.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onward.registry import checkout
from onward.registry.errors import UsageError
from onward.registry.evidence import shadow
from onward.registry.evidence.metric_names import with_earlier
from onward.registry.gates import suites
from onward.registry.gates.builtin import NO_EVIDENCE
from onward.registry.log.entries import GateResult

Facts = Mapping[str, float | str]
MetricsOf = Callable[[str], Mapping[str, float]]

# Tags that stay texts even if they consist of decimal digits.
_NAMES = ("sha256", "serving", "run_id")
# The columns of a shadow's evidence, such as shadow.production.latency_ratio.
_SHADOW = ("requests", "failed", "agreement", "latency_ratio", "live_version")


@dataclass(frozen=True)
class Judgement:
    """The results of a suite.

    Attributes:
        results: One result per expectation.
        page: All results as an HTML page (Data Docs).
    """

    results: tuple[GateResult, ...]
    page: str


def facts(evidence: Mapping[str, str], live: Mapping[str, str] | None, metrics_of: MetricsOf) -> dict[str, float | str]:
    """Build the row that suites judge.

    Args:
        evidence: The tags of the version under judgement.
        live: The tags of the live version; None if nothing is live.
        metrics_of: Returns the metrics of a run by its id; empty if there is no such run.

    Returns:
        The value of each column.
    """
    own = _row(evidence, metrics_of)
    of_live = own if live is None else _row(live, metrics_of)
    return {**own, **{f"live.{name}": value for name, value in of_live.items()}}


def _row(evidence: Mapping[str, str], metrics_of: MetricsOf) -> dict[str, float | str]:
    own = {name: text for name, text in evidence.items() if not name.startswith(shadow.PREFIX)}
    row = {name: text if name in _NAMES else _typed(text) for name, text in own.items()}
    metrics = with_earlier(metrics_of(evidence.get("run_id", "")), evidence.get("runtime", ""))
    row |= {f"metrics.{name}": value for name, value in metrics.items()}
    for found in shadow.read(evidence):
        row |= {f"{shadow.PREFIX}{found.environment}.{name}": getattr(found, name) for name in _SHADOW}
    # Great Expectations ignores NaN. Here it means that there is no evidence, so the column is left out.
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def _typed(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def judge(name: str, row: Facts) -> Judgement:
    """Judge a row by a suite.

    Args:
        name: The suite's path in the repository.
        row: The value of each column.

    Returns:
        The results of all expectations.

    Raises:
        UsageError: The file is not a suite, Great Expectations is not installed, or it rejects the suite.
    """
    suite = suites.read(checkout.root() / name, f"params.yaml: environments: {name}")
    try:
        import pandas as pd

        found = suites.validate(pd.DataFrame([row]), suite, name)
    except ImportError:
        raise UsageError(f"the gate {name} needs Great Expectations: pip install great-expectations pandas") from None
    return Judgement(tuple(_result(name, row, result) for result in found.results), suites.page(found))


def _result(name: str, row: Facts, result: Any) -> GateResult:
    config = result.expectation_config
    columns = [value for key, value in config.kwargs.items() if key.startswith("column") and isinstance(value, str)]
    limits = {
        key: value
        for key, value in config.kwargs.items()
        if not key.startswith("column") and key != "batch_id" and value is not None
    }
    words = f"{config.type}({', '.join(columns)})" + (f" {json.dumps(limits, sort_keys=True)}" if limits else "")
    missing = [column for column in columns if column not in row]
    seen = ", ".join(f"{column} is {_text(row[column])}" for column in columns if column in row)
    if missing:
        seen = f"{NO_EVIDENCE} of {', '.join(missing)}"
    elif result.exception_info.get("raised_exception"):
        seen = str(result.exception_info.get("exception_message"))[:300]
    return GateResult(requirement=name, met=bool(result.success) and not missing, detail=f"{words}: {seen}")


def _text(value: float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else value
