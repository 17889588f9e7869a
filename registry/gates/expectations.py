"""A team's own gates: Great Expectations suites, as JSON files in the repository, over the evidence of a version.

A suite judges a table of one row: what was recorded of the version (`quality`, `size_mb`, ...), the metrics of its run
(`metrics.latency_cpu/b1_p50_ms`, ...), and the same of what is live now, under `live.`. Where nothing is live yet, a
version is held against itself. What was not recorded is no column, so that an expectation of it is not met.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onward.registry import checkout
from onward.registry.errors import UsageError
from onward.registry.gates import suites
from onward.registry.gates.builtin import NO_EVIDENCE
from onward.registry.log.entries import GateResult

Facts = Mapping[str, float | str]
MetricsOf = Callable[[str], Mapping[str, float]]

# Names, and not measurements, even where all their digits happen to be decimal.
_NAMES = ("sha256", "serving", "run_id")


@dataclass(frozen=True)
class Judgement:
    """What a suite said: a result an expectation, and all of it as a page (Data Docs) for people."""

    results: tuple[GateResult, ...]
    page: str


def facts(evidence: Mapping[str, str], live: Mapping[str, str] | None, metrics_of: MetricsOf) -> dict[str, float | str]:
    """The row that suites judge.

    Args:
        evidence: tags of the version that is judged.
        live: tags of what is live now; None where nothing is.
        metrics_of: the metrics of a run, by its id; no metrics where there is no such run.
    """
    own = _row(evidence, metrics_of)
    there = own if live is None else _row(live, metrics_of)
    return {**own, **{f"live.{name}": value for name, value in there.items()}}


def _row(evidence: Mapping[str, str], metrics_of: MetricsOf) -> dict[str, float | str]:
    row = {name: text if name in _NAMES else _typed(text) for name, text in evidence.items()}
    row |= {f"metrics.{name}": value for name, value in metrics_of(evidence.get("run_id", "")).items()}
    # Great Expectations passes over what is not a number: here that is no evidence.
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def _typed(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def judge(name: str, row: Facts) -> Judgement:
    """Judge `row` by a suite; `name` is its path in the repository.

    Raises:
        UsageError: the file is no suite, or Great Expectations is not installed or refuses the suite.
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
