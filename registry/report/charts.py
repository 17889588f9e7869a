"""The charts of a report as Vega-Lite specifications.

A specification is a plain dictionary, so equal evidence gives equal bytes. Texts of colours that begin with `@` name a
colour of the page's theme, which page.js fills in. Data is formatted here, and no text of the evidence becomes part of
an expression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onward.registry.evidence.records import PLAIN, Callers, Scenarios, TradeOff
from onward.registry.report.distributions import Distribution
from onward.registry.report.wording import milliseconds, number
from onward.registry.text import printable

Spec = dict[str, Any]

# More rows would make a chart longer than a screen.
MOST_ROWS = 16

_LINES = ("@good", "@accent", "@warm", "@bad", "@text")
_FIT: Spec = {"autosize": {"type": "fit", "contains": "padding"}, "width": "container"}


@dataclass(frozen=True)
class Chart:
    """A chart with its text alternative.

    Attributes:
        key: An identifier that is unique on the page's side.
        title: What it shows.
        summary: What can be seen in it, in a sentence.
        spec: The Vega-Lite specification.
        header: The columns of the table with the same figures.
        rows: Its rows.
    """

    key: str
    title: str
    summary: str
    spec: Spec
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def distribution_charts(found: Sequence[Distribution], chosen: set[tuple[str, str]]) -> list[Chart]:
    """The distributions of latencies, one chart for each runtime and size.

    Args:
        found: The distributions, the fastest first.
        chosen: The chosen variant of each runtime, as (variant, runtime).
    """
    charts: list[Chart] = []
    for runtime, size in dict.fromkeys((one.runtime, one.size) for one in sorted(found, key=lambda one: one.runtime)):
        group = [one for one in found if (one.runtime, one.size) == (runtime, size)]
        fastest = group[:MOST_ROWS]
        kept = [one for one in group if one in fastest or one.variant in ("plain", "reference")]
        kept += [one for one in group if (one.variant, runtime) in chosen and one not in kept]
        values = [_box(place, one, (one.variant, runtime) in chosen) for place, one in enumerate(kept)]
        ends = [end for value in values for end in (value["low"], value["high"])]
        scale: Spec = {"zero": False, "nice": True}
        log = min(ends) > 0 and max(ends) > 6 * min(ends)
        if log:
            scale = {"type": "log", "nice": False, "domain": [min(ends) / 1.1, max(ends) * 1.1]}
        axis_x: Spec = {"title": f"latency, ms{' (log scale)' if log else ''}", "format": "~g", "tickCount": 5}
        spec = _bars(
            values,
            {"scale": scale, "axis": axis_x},
            [
                {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {"x": "low", "x2": "high"}},
                {"mark": {"type": "bar", "height": 8, "opacity": 0.75}, "encoding": {"x": "first", "x2": "third"}},
                {"mark": {"type": "tick", "thickness": 3, "size": 14, "color": "@text"}, "encoding": {"x": "median"}},
            ],
        )
        best = kept[0]
        left_out = f" {len(group) - len(kept)} slower variants are in the table only." if len(group) > len(kept) else ""
        summary = (
            f"Median latency at {printable(size)} on {printable(runtime)}: {printable(_named(best))} is the fastest "
            f"with {milliseconds(best.median)}. "
            f"{_spans(kept)}{left_out}"
        )
        header = ("variant", "5 %", "25 %", "median", "75 %", "95 %", "calls")
        rows = tuple(
            (_named(one), *map(_ms, (one.low, one.first, one.median, one.third, one.high)), f"{one.samples:,}")
            for one in group
        )
        key = f"latency-{len(charts)}"
        charts.append(Chart(key, f"{runtime}, {size}", summary, spec, header, rows))
    return charts


def _spans(found: Sequence[Distribution]) -> str:
    if all(one.first is None for one in found):
        return "Lines span from the fastest call to the 95th percentile."
    return "Bars span the middle half of the calls, lines the middle 90 %."


def _named(one: Distribution) -> str:
    return "the original" if one.variant == "reference" else one.variant


def _ms(value: float | None) -> str:
    return "" if value is None else milliseconds(value)


def _box(place: int, one: Distribution, chosen: bool) -> dict[str, Any]:
    high = one.median if one.high is None else one.high
    return {
        "row": place,
        "name": printable(f"{milliseconds(one.median)}  {_named(one)}{' (chosen)' if chosen else ''}"),
        "low": one.low,
        "first": one.median if one.first is None else one.first,
        "median": one.median,
        "third": one.median if one.third is None else one.third,
        "high": max(high, one.low),
        "kind": "chosen" if chosen else "original" if one.variant == "reference" else "other",
        "description": printable(
            f"{_named(one)}: median {milliseconds(one.median)}, {_ms(one.low)} to {_ms(one.high) or 'unknown'}"
        ),
    }


_KINDS: Spec = {"domain": ["chosen", "other", "original", "too much"], "range": ["@good", "@neutral", "@warm", "@bad"]}


def _bars(values: list[dict[str, Any]], x: Spec, layers: Sequence[Spec]) -> Spec:
    """Horizontal marks, one row each, with the name above the mark, so that long names fit on a narrow screen."""
    y: Spec = {"field": "row", "type": "ordinal", "axis": None, "scale": {"paddingInner": 0.1}}
    found: list[Spec] = []
    for layer in layers:
        fields = layer["encoding"]
        encoding: Spec = {"x": {**quantity(fields["x"]), **x}, "y": y}
        if "x2" in fields:
            encoding["x2"] = {"field": fields["x2"]} if isinstance(fields["x2"], str) else fields["x2"]
        if "color" not in layer["mark"]:
            encoding["color"] = {"field": "kind", "type": "nominal", "scale": _KINDS, "legend": None}
        encoding["description"] = {"field": "description", "type": "nominal"}
        encoding["tooltip"] = {"field": "description", "type": "nominal"}
        found.append({"mark": {"yOffset": 6, **layer["mark"]}, "encoding": encoding})
    name: Spec = {
        "mark": {
            "type": "text", "align": "left", "baseline": "middle", "dy": -9, "fontSize": 11.5, "color": "@text",
            "limit": {"expr": "width"},
        },
        "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "name", "type": "nominal"}},
    }  # fmt: skip
    size: Spec = {
        "autosize": {"type": "fit-x", "contains": "padding"},
        "width": "container",
        "height": 36 * len(values),
    }
    return {**size, "data": {"values": values}, "layer": [*found, name]}


def sweep_chart(series: Sequence[tuple[str, Scenarios]]) -> Chart | None:
    """Throughput over the batch size, with the knee.

    Args:
        series: The label of each variant, with its scenarios.

    Returns:
        The chart; None if there was no sweep.
    """
    values: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = []
    knees = []
    for label, scenarios in series:
        knee = next(iter(scenarios.knee.values())) if scenarios.knee else None
        for point in scenarios.sweep:
            size = next(iter(point.sizes.values()), 1)
            at_knee = size == knee
            values.append({
                "variant": printable(label), "batch": max(size, 1), "throughput": point.throughput, "knee": at_knee,
                "description": printable(
                    f"{label}, batch {size}: {number(point.throughput)} items/s, p50 {milliseconds(point.p50_ms)}"
                    + (" (knee)" if at_knee else "")
                ),
            })  # fmt: skip
            rows.append((
                label, f"{size:,}{' (knee)' if at_knee else ''}", milliseconds(point.p50_ms),
                f"{point.throughput:,.0f}",
            ))  # fmt: skip
        if scenarios.sweep:
            knees.append(f"{printable(label)}: knee at batch {knee}" if knee else f"{printable(label)}: no knee found")
    if not values:
        return None
    batches = sorted({value["batch"] for value in values})
    x: Spec = {
        **quantity("batch"), "scale": {"type": "log", "base": 2, "nice": False},
        "axis": {"title": "batch size (log scale)", "values": batches, "format": "d", "grid": False},
    }  # fmt: skip
    spec = _lines(values, x, "throughput", "items per second", [label for label, one in series if one.sweep])
    knee_values = [{"batch": batch, "text": "knee"} for batch in sorted({v["batch"] for v in values if v["knee"]})]
    marked: Spec = {"data": {"values": knee_values}}
    spec["layer"] += [
        {
            **marked, "mark": {"type": "rule", "strokeDash": [3, 3], "color": "@muted"}, "encoding": {"x": x},
        },
        {
            **marked, "mark": {"type": "text", "align": "left", "dx": 4, "dy": 6, "fontSize": 11, "color": "@text"},
            "encoding": {"x": x, "y": {"value": 0}, "text": {"field": "text", "type": "nominal"}},
        },
    ]  # fmt: skip
    summary = "The knee is the batch after which no larger one brings 10 % more throughput. " + "; ".join(knees) + "."
    return Chart(
        "sweep", "Batch sweep", summary, spec, ("variant", "batch", "p50", "items per second"), tuple(rows)
    )  # fmt: skip


def callers_chart(series: Sequence[tuple[str, Scenarios]]) -> Chart | None:
    """Throughput of several threads that call one session at once.

    Args:
        series: The label of each variant, with its scenarios.

    Returns:
        The chart; None if this was not measured.
    """
    found: list[tuple[str, Callers]] = [(label, one) for label, scenarios in series for one in scenarios.callers]
    if not found:
        return None
    values = [
        {
            "variant": printable(label), "callers": one.callers, "throughput": one.throughput,
            "description": printable(
                f"{label}, {one.callers} callers: {number(one.throughput)} items/s, p50 {milliseconds(one.p50_ms)}"
            ),
        }
        for label, one in found
    ]  # fmt: skip
    x: Spec = {
        **quantity("callers"), "scale": {"type": "log", "base": 2, "nice": False},
        "axis": {"title": "concurrent callers", "values": sorted({one.callers for _, one in found}), "format": "d",
                 "grid": False},
    }  # fmt: skip
    spec = _lines(
        values, x, "throughput", "items per second, all callers", list(dict.fromkeys(label for label, _ in found))
    )
    best = max(found, key=lambda item: item[1].throughput)
    summary = (
        f"Most throughput: {printable(best[0])} with {best[1].callers} callers, {best[1].throughput:,.0f} items per "
        "second in total."
    )
    rows = tuple(
        (label, str(one.callers), milliseconds(one.p50_ms), _ms(one.p95_ms) or "too few calls",
         f"{one.throughput:,.0f}")
        for label, one in found
    )  # fmt: skip
    return Chart(
        "callers", "Concurrent callers", summary, spec, ("variant", "callers", "p50", "p95", "items per second"), rows
    )


def _lines(values: list[dict[str, Any]], x: Spec, y: str, title: str, labels: Sequence[str]) -> Spec:
    """Lines that differ in colour, dash and the shape of their points."""
    domain = [printable(label) for label in labels]
    others = [label for label in domain if label != PLAIN]
    colors = ["@neutral" if label == PLAIN else _LINES[others.index(label) % len(_LINES)] for label in domain]
    # One column: a legend in a row is as wide as the names together, and names can be long.
    legend = {"title": None, "orient": "top", "columns": 1, "labelLimit": 320}
    scale = {"domain": domain, "range": colors}
    encoding = {
        "x": x,
        "y": {**quantity(y), "axis": {"title": title, "format": "~s", "tickCount": 5}, "scale": {"zero": True}},
        "color": {"field": "variant", "type": "nominal", "scale": scale, "legend": legend},
        "strokeDash": {"field": "variant", "type": "nominal", "scale": {"domain": domain}, "legend": legend},
    }
    points = {
        **{name: encoding[name] for name in ("x", "y", "color")},
        "shape": {"field": "variant", "type": "nominal", "scale": {"domain": domain}, "legend": legend},
        "tooltip": {"field": "description", "type": "nominal"},
        "description": {"field": "description", "type": "nominal"},
    }
    return {
        **_FIT, "data": {"values": values}, "height": 240,
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": encoding},
            {"mark": {"type": "point", "filled": True, "size": 55}, "encoding": points},
        ],
    }  # fmt: skip


def sensitivity_chart(tradeoff: TradeOff, key: str) -> Chart | None:
    """The signal-to-noise ratio of each layer if it alone is quantised, the costliest first.

    Args:
        tradeoff: What was measured of a variant that exceeded the budget.
        key: The chart's identifier.

    Returns:
        The chart; None if no layer changes anything.
    """
    layers = [layer for layer in tradeoff.layers if math.isfinite(layer.snr_db)]
    if not layers:
        return None
    shown = layers[:MOST_ROWS]
    counts = [point.float_layers for point in tradeoff.points if point.holds]
    kept = min(counts) if counts else 0
    values = [
        {
            "row": place,
            "name": printable(f"{layer.snr_db:.0f} dB  {layer.operator} {layer.module or layer.value}"),
            "snr": layer.snr_db,
            "kind": "too much" if place < kept else "other",
            "description": printable(
                f"{layer.operator} {layer.module or layer.value}: {layer.snr_db:.1f} dB"
                + (", stays in float" if place < kept else "")
            ),
        }
        for place, layer in enumerate(shown)
    ]
    x = {"axis": {"title": ["signal-to-noise ratio with only", "this layer quantised, dB (lower is worse)"]}}
    spec = _bars(
        values, x, [{"mark": {"type": "bar", "height": 8}, "encoding": {"x": "snr", "x2": {"datum": 0}}}]
    )  # fmt: skip
    found = (
        f"{tradeoff.chosen} keeps the budget with {kept} of {len(tradeoff.layers)} layers in float (in red)"
        if tradeoff.chosen
        else "no number of layers in float that was tried keeps the budget"
    )
    left_out = f" The {len(shown)} costliest of {len(layers)} layers are drawn." if len(layers) > len(shown) else ""
    rows = tuple(
        (layer.module or layer.value, layer.operator, f"{number(layer.snr_db)} dB") for layer in tradeoff.layers
    )
    return Chart(
        key, f"Layers of {tradeoff.variant}", printable(f"{found[0].upper()}{found[1:]}.{left_out}"), spec,
        ("layer", "operator", "signal-to-noise"), rows,
    )  # fmt: skip


def quantity(field: str) -> Spec:
    """The encoding of a field with numbers."""
    return {"field": field, "type": "quantitative"}
