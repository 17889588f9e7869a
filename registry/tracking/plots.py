"""Draw the plots of a run: the latency of each variant, and its cost in quality."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onward.registry.evidence.records import Choice, Measurement, TradeOff
from onward.registry.evidence.reports import Evidence
from onward.registry.text import mathtext


def draw_plots(evidence: Evidence, folder: Path) -> list[Path]:
    """Draw the plots of a model's evidence.

    If variants were measured, these are latency.png and pareto.png. In addition, each variant that missed the quality
    budget has a plot that shows how quality improves as more layers stay in float.

    Args:
        evidence: the model's evidence.
        folder: where the PNG files are written.

    Returns:
        the paths of the files.
    """
    measured = [measurement for measurement in evidence.benchmark.measurements if measurement.latencies]
    pictures: list[tuple[str, Callable[[Any], None]]] = []
    if measured:
        pictures += [
            ("latency", lambda axes: _latency(axes, evidence, measured)),
            ("pareto", lambda axes: _pareto(axes, evidence, measured)),
        ]
    for tradeoff in evidence.quantize.tradeoffs:
        pictures.append((f"tradeoff-{tradeoff.variant}", functools.partial(_tradeoff, tradeoff=tradeoff)))
    if not pictures:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, draw in pictures:
        figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
        draw(axes)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        paths.append(path)
    return paths


def _latency(axes: Any, evidence: Evidence, measured: list[Measurement]) -> None:
    reference = evidence.benchmark.reference
    shown = [*([reference] if reference and reference.latencies else []), *measured]
    sizes = [latency.size for latency in measured[0].latencies]
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        values = [next(item.p50_ms for item in one.latencies if item.size == size) for one in shown]
        axes.barh([place + number * height for place in range(len(shown))], values, height, label=mathtext(size))
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(shown))], [_label(one) for one in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("p50 latency, ms (log scale)")
    axes.set_title(f"{mathtext(evidence.model)}: latency of each variant")
    axes.legend(title="size")


def _pareto(axes: Any, evidence: Evidence, measured: list[Measurement]) -> None:
    choices = {(choice.variant, choice.runtime): choice for choice in evidence.select.choices}
    for measurement in measured:
        choice = choices.get((measurement.variant, measurement.runtime))
        if choice is None or choice.ratio is None:
            continue
        used = _used(choice, evidence.select.quality_budget)
        if used is None:
            continue
        marker = "*" if choice.chosen else "o"
        axes.plot(choice.ratio.value, used, marker, markersize=14 if choice.chosen else 7)
        axes.annotate(_label(measurement), (choice.ratio.value, used), fontsize=8)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel("latency relative to the plain export (left is faster)")
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylabel("loss as a share of the allowed loss (down is better)")
    axes.set_title(f"{mathtext(evidence.model)}: loss of quality against latency (star: chosen)")


def _used(choice: Choice, budget: float | None) -> float | None:
    """The share of the allowed loss that a variant uses up, by the measure that it was judged by.

    Unlike the loss itself, this share is comparable between variants that were judged by different measures. It is None
    if the loss is not known, or if no loss is allowed and there is one.
    """
    limit = choice.quality_budget if choice.quality_budget is not None else budget
    if choice.quality_drop is None:
        return None
    if not limit:
        return 0.0 if choice.quality_drop <= 0 else None
    used = choice.quality_drop / limit
    return used if math.isfinite(used) else None


def _tradeoff(axes: Any, tradeoff: TradeOff) -> None:
    """Plot the graph's signal-to-noise ratio over the number of layers left in float, and that of each layer alone.

    The layers with the largest loss are left in float first.
    """
    points = [point for point in tradeoff.points if point.snr_db is not None]
    counts, ratios = [point.float_layers for point in points], [point.snr_db for point in points]
    axes.plot(counts, ratios, color="C0", label="the graph")
    for point in points:
        axes.plot(point.float_layers, point.snr_db, "o" if point.holds else "x", color="C2" if point.holds else "C3")
        if point.quality is not None:
            axes.annotate(f"quality {point.quality:.4g}", (point.float_layers, point.snr_db), fontsize=8)
    layers = [(rank, layer) for rank, layer in enumerate(tradeoff.layers, 1) if math.isfinite(layer.snr_db)]
    axes.plot(
        [rank for rank, _ in layers], [layer.snr_db for _, layer in layers], ":", color="grey", label="each layer"
    )
    for rank, layer in layers[:3]:
        axes.annotate(
            mathtext(f"{layer.operator} {layer.module or layer.value}"), (rank, layer.snr_db), fontsize=8, color="grey"
        )
    axes.set_xlabel("layers left in float, largest loss first")
    axes.set_ylabel("signal-to-noise ratio, dB")
    found = f"{tradeoff.chosen} keeps the budget" if tradeoff.chosen else "no variant keeps the budget"
    axes.set_title(mathtext(f"{tradeoff.variant}: {found}"))
    axes.legend()


def _label(measurement: Measurement) -> str:
    variant, runtime = measurement.variant, measurement.runtime
    return mathtext(variant if runtime == "cpu" else f"{variant} ({runtime})")
