"""A team's own gates: Great Expectations suites, as JSON files in the repository, over the evidence of a version.

A suite judges a table of one row: what was recorded of the version (`quality`, `size_mb`, ...), the metrics of its run
(`metrics.latency_cpu/b1_p50_ms`, ...), and the same of what is live now, under `live.`. Where nothing is live yet, a
version is held against itself. What was not recorded is no column, so that an expectation of it is not met.

Great Expectations costs seconds to import, and only a promotion under such a gate needs it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onward.registry import checkout
from onward.registry.errors import UsageError
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


def load(name: str) -> list[dict[str, Any]]:
    """The expectations of a suite; `name` is its path in the repository.

    Raises:
        UsageError: it cannot be read, or is no suite.
    """
    where = f"params.yaml: environments: {name}"
    try:
        expectations = json.loads((checkout.root() / name).read_text())["expectations"]
        if not expectations or not all(
            isinstance(e["type"], str) and isinstance(e.get("kwargs", {}), dict) for e in expectations
        ):
            raise TypeError
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file in the repository") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f'{where}: wants JSON of the form {{"expectations": [{{"type": "expect_...", "kwargs": {{...}}}}]}}'
        ) from None
    return list(expectations)


def judge(name: str, row: Facts) -> Judgement:
    """Judge `row` by a suite, in an ephemeral context: nothing of Great Expectations is left on disk.

    Raises:
        UsageError: Great Expectations is not installed, or refuses the suite.
    """
    wanted = load(name)
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.ERROR)  # a column that is missing is told below
    try:
        import great_expectations as gx
        import pandas as pd
        from great_expectations.core.expectation_suite import ExpectationSuite
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )
        from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
        from great_expectations.render.view.view import DefaultJinjaPageView
    except ImportError:
        raise UsageError(f"the gate {name} needs Great Expectations: pip install great-expectations pandas") from None

    # With a configuration of its own it makes no folder for a docs site, which nobody would remove.
    config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False))
    context = gx.get_context(mode="ephemeral", project_config=config)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("evidence")
        .add_dataframe_asset("evidence")
        .add_batch_definition_whole_dataframe("evidence")
        .get_batch({"dataframe": pd.DataFrame([row])})
    )
    try:
        suite = ExpectationSuite(name=name, expectations=wanted)
    except Exception as error:  # an expectation that does not exist, or with the wrong arguments
        raise UsageError(f"{name}: Great Expectations refuses it: {str(error).splitlines()[0][:300]}") from error
    found = batch.validate(suite)
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(found))  # type: ignore[no-untyped-call]
    return Judgement(tuple(_result(name, row, result) for result in found.results), str(page))


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
