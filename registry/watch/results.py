"""Writes what a monitor found to MLflow: metrics over time, the alarms for `onward status`, and the HTML report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onward.registry.monitoring.watch import Judgement
from onward.registry.operations.promotion import now
from onward.registry.report.monitoring_page import render
from onward.registry.store.monitor_tags import Recorded
from onward.registry.store.store import Store

Point = tuple[str, float, float]


def write(
    store: Store,
    model: str,
    environment: str,
    judgement: Judgement,
    since: float,
    response: str = "",
    monitor: str = "job",
    with_page: bool = True,
) -> None:
    """Write a judgement.

    Args:
        store: the store.
        model: the model's name.
        environment: the environment.
        judgement: what was found.
        since: only windows that ended later become points of the charts, in seconds since 1970.
        response: what was done about the alarms.
        monitor: the monitor that found it: the host of a server, or "job".
        with_page: whether to write the HTML report, too. It has nearly a megabyte.

    Raises:
        OnwardError: the store did not answer, or did not allow it.
    """
    alarms = tuple(map(str, judgement.alarms))
    if alarms and response:
        alarms = (*alarms, response)
    recorded = Recorded(judgement.deployment.entry, now(), alarms)
    page = _page(judgement, response) if with_page else ""
    store.record_monitoring(environment, model, points(judgement, since), recorded, monitor, page)


def _page(judgement: Judgement, response: str) -> str:
    """The HTML report; "" on a host without jinja2, where the figures are enough."""
    try:
        return render([judgement], response)
    except ModuleNotFoundError:
        return ""


def points(judgement: Judgement, since: float = 0.0) -> list[Point]:
    """The metrics of a judgement: name, value and time.

    Args:
        judgement: what was found.
        since: only windows that ended later, in seconds since 1970.
    """
    found: list[Point] = []
    for period in judgement.periods:
        if period.end <= since:
            continue
        found += [
            ("monitor/requests", float(period.requests), period.end),
            ("monitor/error_rate", period.failures / period.requests, period.end),
        ]
        if period.p50_ms is not None and period.p99_ms is not None:
            found += [("monitor/p50_ms", period.p50_ms, period.end), ("monitor/p99_ms", period.p99_ms, period.end)]
        if period.latency is not None:
            found += [
                ("monitor/p50_ratio", period.latency.p50_ratio, period.end),
                ("monitor/p99_ratio", period.latency.p99_ratio, period.end),
            ]
    if judgement.periods and judgement.periods[-1].end > since:
        at = judgement.periods[-1].end
        found += [(_name(one.feature, one.measure), one.effect, at) for one in judgement.features]
        found.append(("monitor/alarms", float(len(judgement.alarms)), at))
    return found


def _name(feature: str, measure: str) -> str:
    """The name of a drift metric, in the characters that MLflow allows."""
    return f"monitor/drift/{re.sub(r'[^A-Za-z0-9_. -]+', '_', f'{feature} {measure}')[:200].strip()}"


def lines(judgement: Judgement) -> Sequence[str]:
    """A judgement in lines of text.

    Args:
        judgement: what was found.
    """
    rate = judgement.failures / judgement.requests if judgement.requests else 0.0
    found = [
        f"{judgement.deployment}: {judgement.requests} requests, {judgement.failures} failed ({rate:.2%}; acceptable: "
        f"{judgement.acceptable:.1%}, from {judgement.acceptable_from}), {judgement.rejections} rejected as invalid"
    ]
    if judgement.latency_from and judgement.periods and (newest := judgement.periods[-1].latency):
        found.append(
            f"latency: p50 {newest.p50_ms:.3g} ms, {newest.p50_ratio:.3g} times that of {judgement.latency_from}; p99 "
            f"{newest.p99_ms:.3g} ms, {newest.p99_ratio:.3g} times"
        )
    if judgement.features:
        drifting = sum(one.alarm for one in judgement.features)
        found.append(f"drift: {drifting} of {len(judgement.features)} measures raise an alarm")
    found += judgement.notes
    return found + [f"ALARM: {alarm}" for alarm in judgement.alarms]
