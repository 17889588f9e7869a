"""The charts of a report as Vega-Lite specifications.

A specification is a plain dictionary, so equal evidence gives equal bytes. Texts of colours that begin with `@` name a
colour of the page's theme, which page.js fills in. Data is formatted here, and no text of the evidence becomes part of
an expression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from onward.registry.evidence.records import PLAIN, Callers, Scenarios, TradeOff
from onward.registry.report.distributions import Distribution
from onward.registry.report.variants import VariantRow
from onward.registry.report.wording import milliseconds, number
from onward.registry.text import printable

Spec = dict[str, Any]

# Losses above this share of the budget are drawn above the axis, each in a lane of its own.
HIGHEST = 2.0
# Losses up to this share are drawn below the axis of losses, each in a lane of its own: they are often all zero, and
# would hide each other. Below them follow the variants without a known loss, in the same way.
SMALL = 0.02
# The height of a lane in units of the axis, and the height of one unit in pixels.
LANE, UNIT = 0.13, 170
# More rows would make a chart longer than a screen.
MOST_ROWS = 16

_STATES = {
    "chosen": ("@good", "diamond"),
    "tied": ("@accent", "square"),
    "not chosen": ("@neutral", "circle"),
    "dropped early": ("@warm", "triangle-up"),
    "failed": ("@bad", "cross"),
}
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


def tradeoff_chart(rows: Sequence[VariantRow]) -> Chart | None:
    """Latency against loss of quality, with the size as the area of the points, and the budget drawn in.

    If no variant has a known loss, the vertical axis is the size.

    Args:
        rows: The variants.

    Returns:
        The chart; None if no variant was timed.
    """
    timed = [row for row in rows if _ratio(row) is not None]
    if not timed:
        return None
    judged = any(row.used is not None for row in timed)
    heights = _heights(timed) if judged else {row.number: (row.size_bytes or 0) / 1e6 for row in timed}
    values = [_point(row, heights[row.number]) for row in timed]
    left, right = _range(timed)
    point = {"x": _quantity("x"), "y": _quantity("y")}
    bottom, top = min(heights.values()) - LANE, max(1.2, max(heights.values()) + 0.1)
    height = round((top - bottom) * UNIT) if judged else 320
    if judged:
        scale_y: Spec = {"domain": [bottom, top], "nice": False, "zero": False}
        small = [row for row in timed if row.used is not None and row.used <= SMALL]
        places = [0.25, 0.5, 0.75, 1, *([1.5, 2] if top > 1.5 else [])]
        middle = [heights[row.number] for row in small]
        unknown = [heights[row.number] for row in timed if row.used is None]
        names = {_middle(middle): f"≤ {SMALL:.0%}", _middle(unknown): "not judged"}
        places = [*(place for place in names if place < 0), *places]
        label = " : ".join(
            f"abs(datum.value - ({place})) < 1e-6 ? '{name}'" for place, name in names.items() if place < 0
        )
        label += f" : (datum.value >= {HIGHEST} ? '≥ ' : '') + format(datum.value, '.0%')"
        axis_y: Spec = {
            "title": "loss, share of what is allowed", "values": places, "labelExpr": label, "labelOverlap": False,
            "grid": False,
        }  # fmt: skip
    else:
        axis_y, scale_y = {"title": "size, MB"}, {"zero": False, "padding": 14}
    domain_x = {"type": "log", "domain": [left, right], "nice": False}
    axis_x = {
        "title": ["latency relative to the plain export", "(log scale, left is faster)"],
        "values": _ticks(left, right), "format": "~g",
    }  # fmt: skip
    states = [state for state in _STATES if any(row.state == state for row in timed)]
    colors = {"domain": states, "range": [_STATES[state][0] for state in states]}
    shapes = {"domain": states, "range": [_STATES[state][1] for state in states]}
    legend = {"title": None, "orient": "top"}
    layers: list[Spec] = [
        _rule_at("x", 1.0, "@muted", [2, 3]),
        *([_rule_at("y", 1.0, "@bad", [6, 4]), _budget_text()] if judged else []),
        {
            "mark": {"type": "rule", "strokeWidth": 1.5, "clip": True, "opacity": 0.55},
            "encoding": {
                **point, "x": _quantity("low"), "x2": {"field": "high"}, "color": {"field": "state", "scale": colors},
            },
        },
        {
            "mark": {"type": "point", "filled": True, "stroke": "@surface", "strokeWidth": 1},
            "encoding": {
                "x": {**_quantity("x"), "scale": domain_x, "axis": axis_x},
                "y": {**_quantity("y"), "scale": scale_y, "axis": axis_y},
                "color": {"field": "state", "type": "nominal", "scale": colors, "legend": legend},
                "shape": {"field": "state", "type": "nominal", "scale": shapes, "legend": legend},
                "size": {
                    **_quantity("mb"), "scale": {"type": "sqrt", "range": [60, 420], "zero": True}, "legend": None,
                },
                "opacity": {"condition": {"test": "focus == 0 || datum.n == focus", "value": 1}, "value": 0.15},
                "tooltip": [{"field": name, "type": "nominal"} for name in _TIPS],
                "description": {"field": "description", "type": "nominal"},
            },
        },
        {
            "data": {"name": "labels"},
            "mark": {"type": "rule", "color": "@muted", "strokeWidth": 0.6},
            "encoding": {
                "x": _pixel("px"), "y": _pixel("py"), "x2": {"field": "tx"}, "y2": {"field": "ty"},
            },
        },
        _label_layer({"color": "@surface", "stroke": "@surface", "strokeWidth": 4}),  # behind the text, over the lines
        _label_layer({"color": "@text"}),
    ]  # fmt: skip
    chosen = next((row for row in timed if row.state == "chosen"), None)
    summary = (
        f"{len(timed)} of {len(rows)} variants were timed. "
        + (f"Chosen: {_in_words(chosen)}. " if chosen else "None was chosen. ")
        + ("The dashed line is the allowed loss; variants above it lose too much. " if judged else "")
        + "Horizontal lines are 95 % intervals. Larger points are larger files. Numbers refer to the list of variants."
    )
    spec = {
        "usermeta": {"budget": judged}, "data": {"name": "points", "values": values},
        "datasets": {"labels": []},
        "params": [{"name": "focus", "value": 0}],
        "height": height, "autosize": {"type": "fit", "contains": "padding"}, "width": "container",
        "layer": layers,
    }  # fmt: skip
    return Chart("tradeoff", "Every timed variant", summary, spec)


_TIPS = ("variant", "speed", "loss", "size", "state", "reason")


def _heights(rows: Sequence[VariantRow]) -> dict[int, float]:
    """The vertical position of each variant by its number, in shares of the allowed loss; lanes are negative."""
    found: dict[int, float] = {}
    lane = above = 0
    fast = sorted(rows, key=lambda row: (_ratio(row) or (1.0,))[0])
    for row in (one for one in fast if one.used is not None):
        used = row.used or 0.0
        if used > HIGHEST:
            found[row.number] = HIGHEST + LANE * above
            above += 1
        elif used > SMALL:
            found[row.number] = used
        else:
            lane += 1
            found[row.number] = -LANE * lane
    for row in (one for one in fast if one.used is None):
        lane += 1
        found[row.number] = -LANE * (lane + 0.5)
    return found


def _middle(values: Sequence[float]) -> float:
    return round((min(values) + max(values)) / 2, 6) if values else math.inf


def _point(row: VariantRow, height: float) -> dict[str, Any]:
    ratio = _ratio(row)
    assert ratio is not None
    used = row.used
    size = (row.size_bytes or 0) / 1e6
    loss = "not judged" if used is None else f"{row.used_text} of what is allowed"
    return {
        "n": row.number,
        "x": ratio[0],
        "low": ratio[1],
        "high": ratio[2],
        "y": height,
        "mb": size,
        "state": row.state,
        "label": printable(row.label),
        "variant": printable(row.label),
        "speed": f"{row.speed} times as fast as the plain export",
        "loss": loss,
        "size": row.size_text or "unknown",
        "reason": printable(row.reason),
        "first": row.state == "chosen" or row.name == PLAIN,
        "description": printable(f"{row.number}: {_in_words(row)}, {row.state}"),
    }


def _in_words(row: VariantRow) -> str:
    loss = "" if row.used is None else f", loss {row.used_text} of what is allowed"
    size = f", {row.size_text}" if row.size_text else ""
    return printable(f"{row.label}, {row.speed} times as fast as the plain export{loss}{size}")


def _ratio(row: VariantRow) -> tuple[float, float, float] | None:
    ratio = row.compared or row.ratio
    if ratio is None or not all(math.isfinite(x) and x > 0 for x in (ratio.value, ratio.low, ratio.high)):
        return None
    return ratio.value, ratio.low, ratio.high


def _range(rows: Iterable[VariantRow]) -> tuple[float, float]:
    """The ends of the axis of ratios. Intervals of screening are cut off at the edge."""
    ends = [0.9, 1.1]
    for row in rows:
        value, low, high = _ratio(row) or (1.0, 1.0, 1.0)
        ends += [value] if row.screened else [value, max(low, value / 3), min(high, value * 3)]
    return round(min(ends) / 1.06, 4), round(max(ends) * 1.06, 4)


def _ticks(left: float, right: float) -> list[float]:
    """Round values for a logarithmic axis between two ends, at most eight of them."""
    if right / left < 2.2:
        step = 0.05 if right - left < 0.4 else 0.1 if right - left < 0.8 else 0.2
        count = range(math.ceil(left / step), math.floor(right / step) + 1)
        return [round(place * step, 2) for place in count]
    found: list[float] = []
    for factors in ((1, 1.2, 1.5, 2, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        values = [float(f"{factor}e{exponent}") for exponent in range(-6, 7) for factor in factors]
        found = [value for value in values if left <= value <= right]
        if len(found) <= 8:
            break
    return found


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
            f"Bars span the middle half of the calls, lines the middle 90 %.{left_out}"
        )
        header = ("variant", "5 %", "25 %", "median", "75 %", "95 %", "calls")
        rows = tuple(
            (_named(one), *map(_ms, (one.low, one.first, one.median, one.third, one.high)), f"{one.samples:,}")
            for one in group
        )
        key = f"latency-{len(charts)}"
        charts.append(Chart(key, f"{runtime}, {size}", summary, spec, header, rows))
    return charts


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
        encoding: Spec = {"x": {**_quantity(fields["x"]), **x}, "y": y}
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
    return {**_FIT, "data": {"values": values}, "height": 36 * len(values), "layer": [*found, name]}


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
        **_quantity("batch"), "scale": {"type": "log", "base": 2, "nice": False},
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
        **_quantity("callers"), "scale": {"type": "log", "base": 2, "nice": False},
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
        "y": {**_quantity(y), "axis": {"title": title, "format": "~s", "tickCount": 5}, "scale": {"zero": True}},
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


def _quantity(field: str) -> Spec:
    return {"field": field, "type": "quantitative"}


def _pixel(field: str) -> Spec:
    """A position in pixels, which page.js computes when it places labels."""
    return {"field": field, "type": "quantitative", "scale": None, "axis": None}


def _label_layer(colors: Spec) -> Spec:
    return {
        "data": {"name": "labels"},
        "mark": {"type": "text", "align": "left", "baseline": "middle", "fontSize": 11, **colors},
        "encoding": {"x": _pixel("lx"), "y": _pixel("ly"), "text": {"field": "text", "type": "nominal"}},
    }


def _rule_at(channel: str, value: float, color: str, dash: list[int]) -> Spec:
    return {
        "data": {"values": [{channel: value}]},
        "mark": {"type": "rule", "color": color, "strokeDash": dash, "strokeWidth": 1.2},
        "encoding": {channel: _quantity(channel)},
    }


def _budget_text() -> Spec:
    return {
        "data": {"values": [{"y": 1.0, "text": "allowed loss (budget)"}]},
        "mark": {"type": "text", "align": "right", "dx": -4, "dy": -8, "fontSize": 11, "color": "@bad"},
        "encoding": {
            "x": {"value": "width"}, "y": _quantity("y"), "text": {"field": "text", "type": "nominal"},
        },
    }  # fmt: skip
