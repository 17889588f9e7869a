"""The chart of all timed variants: latency against loss of quality, with the size and the budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from onward.registry.evidence.records import PLAIN
from onward.registry.report.charts import Chart, Spec, quantity
from onward.registry.report.variants import VariantRow
from onward.registry.text import printable

# Losses above this share of the budget are drawn above the axis, each in a lane of its own.
HIGHEST = 2.0
# Losses up to this share are drawn below the axis of losses, each in a lane of its own: they are often all zero, and
# would hide each other. Below them follow the variants without a known loss, in the same way.
SMALL = 0.02
# The height of a lane in units of the axis, and the height of one unit in pixels.
LANE, UNIT = 0.13, 170
_STATES = {
    "chosen": ("@good", "diamond"),
    "tied": ("@accent", "square"),
    "not chosen": ("@neutral", "circle"),
    "dropped early": ("@warm", "triangle-up"),
    "failed": ("@bad", "cross"),
}


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
    point = {"x": quantity("x"), "y": quantity("y")}
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
        "title": [
            f"latency relative to the plain export{_on_first(timed)}", "(log scale, left is faster)",
        ],
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
                **point, "x": quantity("low"), "x2": {"field": "high"}, "color": {"field": "state", "scale": colors},
            },
        },
        {
            "mark": {"type": "point", "filled": True, "stroke": "@surface", "strokeWidth": 1},
            "encoding": {
                "x": {**quantity("x"), "scale": domain_x, "axis": axis_x},
                "y": {**quantity("y"), "scale": scale_y, "axis": axis_y},
                "color": {"field": "state", "type": "nominal", "scale": colors, "legend": legend},
                "shape": {"field": "state", "type": "nominal", "scale": shapes, "legend": legend},
                "size": {
                    **quantity("mb"), "scale": {"type": "sqrt", "range": [60, 420], "zero": True}, "legend": None,
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
        "speed": f"{row.speed_on_chart} times as fast as the plain export",
        "loss": loss,
        "size": row.size_text or "unknown",
        "reason": printable(row.reason),
        "first": row.state == "chosen" or row.name == PLAIN,
        "description": printable(f"{row.number}: {_in_words(row)}, {row.state}"),
    }


def _on_first(rows: Sequence[VariantRow]) -> str:
    """On which runtime the plain export ran, if there are several."""
    runtimes = list(dict.fromkeys(row.runtime for row in rows if row.compared in (None, row.ratio))) or [""]
    several = len({row.runtime for row in rows}) > 1
    return f" on {printable(runtimes[0])}" if several and len(runtimes) == 1 else ""


def _in_words(row: VariantRow) -> str:
    loss = "" if row.used is None else f", loss {row.used_text} of what is allowed"
    size = f", {row.size_text}" if row.size_text else ""
    return printable(f"{row.label}, {row.speed_on_chart} times as fast as the plain export{loss}{size}")


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
        "encoding": {channel: quantity(channel)},
    }


def _budget_text() -> Spec:
    return {
        "data": {"values": [{"y": 1.0, "text": "allowed loss (budget)"}]},
        "mark": {"type": "text", "align": "right", "dx": -4, "dy": -8, "fontSize": 11, "color": "@bad"},
        "encoding": {
            "x": {"value": "width"}, "y": quantity("y"), "text": {"field": "text", "type": "nominal"},
        },
    }  # fmt: skip
