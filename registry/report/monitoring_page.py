"""Renders what a monitor found as one HTML file that needs nothing else, in the style of the report of a model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from onward.registry.monitoring.watch import Judgement, Period
from onward.registry.report.charts import Chart, Spec, quantity
from onward.registry.report.page import environment, to_json, verbatim
from onward.registry.report.wording import milliseconds, number, percent
from onward.registry.text import printable

# Windows that a chart shows.
_MOST_WINDOWS = 200
_TEMPLATE = "monitoring.html.jinja"


class Side:
    """One deployment on the page.

    Args:
        judgement: what was found.
        key: an identifier that is unique on the page.
        response: what was done about the alarms.
    """

    def __init__(self, judgement: Judgement, key: str, response: str) -> None:
        self.judgement, self.key, self.response = judgement, key, response
        self.title = str(judgement.deployment)
        self.periods = judgement.periods[-_MOST_WINDOWS:]
        self.charts = [chart for chart in (self._errors(), self._latencies()) if chart]
        self.facts = self._facts()
        self.features = [
            (
                one.feature, one.measure, number(one.effect), number(one.floor), number(one.threshold),
                f"{sum(one.windows)} of {len(one.windows)}", "ALARM" if one.alarm else "",
            )
            for one in sorted(judgement.features, key=lambda one: not one.alarm)
        ]  # fmt: skip

    def _facts(self) -> list[tuple[str, str]]:
        found = self.judgement
        rate = found.failures / found.requests if found.requests else 0.0
        newest = found.periods[-1].latency if found.periods else None
        facts = [
            ("requests", f"{found.requests:,}"),
            ("failed", f"{found.failures:,} ({percent(rate)})"),
            ("rejected as invalid", f"{found.rejections:,}"),
            ("acceptable", f"{percent(found.acceptable)} ({found.acceptable_from})"),
        ]
        if newest:
            facts += [
                ("p50, last window", f"{milliseconds(newest.p50_ms)}, {number(newest.p50_ratio)} times the baseline's"),
                ("p99, last window", f"{milliseconds(newest.p99_ms)}, {number(newest.p99_ratio)} times the baseline's"),
            ]
        return [*facts, ("latencies compared with", found.latency_from or "nothing")]

    def _errors(self) -> Chart | None:
        points = [(one, "failed requests, %", 100 * one.failures / one.requests) for one in self.periods]
        summary = f"The acceptable rate is {percent(self.judgement.acceptable)}."
        return _chart(f"{self.key}-errors", "Failed requests", summary, points, "failed requests, %")

    def _latencies(self) -> Chart | None:
        points = [(one, "p50", one.p50_ms) for one in self.periods if one.p50_ms is not None]
        points += [(one, "p99", one.p99_ms) for one in self.periods if one.p99_ms is not None]
        summary = f"Compared with {self.judgement.latency_from}." if self.judgement.latency_from else ""
        return _chart(f"{self.key}-latency", "Latency of the model", summary, points, "ms")


def render(judgements: Sequence[Judgement], response: str = "") -> str:
    """Render what was found of some deployments.

    Args:
        judgements: what was found.
        response: what was done about the alarms.

    Returns:
        The HTML.
    """
    sides = [Side(judgement, f"d{place}", response) for place, judgement in enumerate(judgements)]
    specs = {chart.key: chart.spec for side in sides for chart in side.charts}
    return (
        environment()
        .get_template(_TEMPLATE)
        .render(
            sides=sides,
            title=" and ".join(side.judgement.deployment.target for side in sides),
            at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            style=verbatim("page.css"),
            script=verbatim("page.js"),
            library=verbatim("vega.js"),
            specs=to_json(specs),
        )
    )


def _chart(key: str, title: str, summary: str, points: Sequence[tuple[Period, str, float]], unit: str) -> Chart | None:
    """Lines over time; None without points."""
    if not points:
        return None
    values: list[dict[str, Any]] = [
        {
            "at": int(period.end * 1000), "line": line, "value": value,
            "description": printable(f"{_moment(period.end)}: {line} {number(value)}, {period.requests} requests"),
        }
        for period, line, value in points
    ]  # fmt: skip
    names = list(dict.fromkeys(line for _, line, _ in points))
    scale = {"domain": names, "range": ["@accent", "@warm"][: len(names)]}
    legend = {"title": None, "orient": "top"} if len(names) > 1 else None
    x = {"field": "at", "type": "temporal", "axis": {"title": "time (UTC)", "grid": False}, "scale": {"type": "utc"}}
    y = {**quantity("value"), "axis": {"title": unit, "tickCount": 5}, "scale": {"zero": True}}
    color = {"field": "line", "type": "nominal", "scale": scale, "legend": legend}
    tip = {"field": "description", "type": "nominal"}
    spec: Spec = {
        "autosize": {"type": "fit", "contains": "padding"}, "width": "container", "height": 220,
        "data": {"values": values},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": color}},
            {
                "mark": {"type": "point", "filled": True, "size": 35},
                "encoding": {"x": x, "y": y, "color": color, "tooltip": tip, "description": tip},
            },
        ],
    }  # fmt: skip
    rows = tuple((_moment(period.end), line, number(value), f"{period.requests:,}") for period, line, value in points)
    return Chart(key, title, printable(summary), spec, ("window until", "line", unit, "requests"), rows)


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
