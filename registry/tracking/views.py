"""The columns and charts that MLflow shows first, as shared views of an experiment.

MLflow has no setting for the default columns or charts of an experiment: each browser keeps its own. But "Share view"
stores the state of the page in a tag of the experiment, and a link with the tag's key opens it for everybody. Onward
writes such tags itself, and links to them from the descriptions. The names of the fields are those of MLflow's page
(3.17).
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

from onward.registry.evidence.metric_names import HEADLINE

_TAG = "mlflow.sharedViewState."
# MLflow's limit for a tag of an experiment.
_LONGEST = 5000
MODELS = "onward-models"
_NEWEST = "attributes.start_time"
# MLflow's ids of the columns that come before the metrics, and widths in pixels: run names are long.
_FIRST = ("1", "attributes.`Run Name`", "runDateAndNestInfo")
_WIDTHS = {"attributes.`Run Name`": 330, "runDateAndNestInfo": 140, "attributes.`Dataset`": 220}
# Sections of MLflow's own charts, by the text before the last slash of the metrics' names. They start folded.
_FOLDED = ("Model metrics", "latency", "throughput", "ratio", "by_callers", "host", "parity", "fidelity", "load",
           "memory", "graph", "search", "train", "System metrics")  # fmt: skip


def key(model: str) -> str:
    """The key of the view of a model's variants."""
    return f"onward-variants-{model}"


def link(experiment: str, view: str) -> str:
    """The address of a view, relative to MLflow's own page. The view of a model's variants opens with its charts."""
    mode = "" if view == MODELS else "&compareRunsMode=CHART"
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view}&workflowType=machine_learning{mode}"


def models_view() -> tuple[str, str]:
    """The tag of the view with one row per model and measurement, the newest first."""
    wanted = "tags.`onward.role` = 'model'"
    return _tag(MODELS, _view(wanted, ("User", "Source", "Dataset"), ("onward.variant",), _NEWEST))


def variants_view(model: str, parent: str, *, has_quality: bool) -> tuple[str, str]:
    """The tag of the view with the variants of one measurement.

    Args:
        model: the model's name.
        parent: the id of the parent run.
        has_quality: whether the model has a quality measure. Otherwise latency is shown against the signal-to-noise
            ratio.
    """
    wanted = f"tags.`mlflow.parentRunId` = '{parent}'"
    # Sorted by time, the page would fold the variants below their parent.
    view = _view(wanted, ("Models", "Dataset"), ("onward.precision",), "metrics.`p50_ms`", has_quality=has_quality)
    return _tag(key(model), view)


def _tag(name: str, state: dict[str, Any]) -> tuple[str, str]:
    text = json.dumps(state, separators=(",", ":"))
    if len(text) > _LONGEST:  # MLflow's page reads this form, too
        text = "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return f"{_TAG}{name}", text


def _view(
    wanted: str, attributes: Sequence[str], tags: Sequence[str], order: str, *, has_quality: bool = True
) -> dict[str, Any]:
    columns = [
        *(f"metrics.`{name}`" for name in HEADLINE),
        *(f"tags.`{name}`" for name in tags),
        *(f"attributes.`{name}`" for name in attributes),
    ]
    answers = "quality" if has_quality else "fidelity_snr_db"
    charts = [
        _chart("SCATTER", "against", xaxis=_axis("p50_ms"), yaxis=_axis(answers), runsCountToCompare=100),
        _chart("BAR", "p50", metricKey="p50_ms"),
        _chart("BAR", "speedup", metricKey="speedup"),
        _chart("BAR", "drop", metricKey="quality_drop"),
        _chart("BAR", "snr", metricKey="fidelity_snr_db"),
        _chart("BAR", "size", metricKey="size_mb"),
        _line("batch-p50", "by_batch/p50_ms"),
        _line("batch-items", "by_batch/items_per_s"),
    ]
    sections = [{"uuid": "onward", "name": "Latency and quality", "display": True, "isReordered": True}]
    sections += [{"uuid": f"folded-{name}", "name": name, "display": False, "isReordered": False} for name in _FOLDED]
    return {
        "searchFilter": wanted,
        "orderByKey": order,
        "orderByAsc": order != _NEWEST,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [*_FIRST, *columns],
        "columnWidths": _WIDTHS,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"onward-{name}",
        "metricSectionId": "onward",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 20,
        **settings,
    }


def _line(name: str, metric: str) -> dict[str, Any]:
    return _chart(
        "LINE",
        name,
        metricKey=metric,
        selectedMetricKeys=[metric],
        lineSmoothness=0,
        scaleType="linear",
        xAxisScaleType="log",
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        range={},
        useGlobalXaxisKey=False,
        useGlobalLineSmoothing=False,
        displayPoints=True,
        ignoreOutliers=False,
    )
