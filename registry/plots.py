"""The pictures that go with a run: who is how fast, and at what cost in quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.evidence import Evidence
from registry.vocabulary import Measurement


def draw_plots(evidence: Evidence, folder: Path) -> list[Path]:
    """Write latency.png and pareto.png to `folder`; nothing where nothing was measured."""
    measured = [m for m in evidence.benchmark.measurements if m.latencies]
    if not measured:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, draw in (("latency", _latency), ("pareto", _pareto)):
        figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
        draw(axes, evidence, measured)
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
        values = [next(item.p50_ms for item in m.latencies if item.size == size) for m in shown]
        axes.barh([place + number * height for place in range(len(shown))], values, height, label=size)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(shown))], [_label(m) for m in shown])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("p50 latency, ms (log scale)")
    axes.set_title(f"{evidence.model}: latency of each variant")
    axes.legend(title="size")


def _pareto(axes: Any, evidence: Evidence, measured: list[Measurement]) -> None:
    drops = {(c.variant, c.runtime): c for c in evidence.select.choices}
    for m in measured:
        choice = drops.get((m.variant, m.runtime))
        if choice is None or choice.ratio is None or choice.quality_drop is None:
            continue
        marker = "*" if choice.chosen else "o"
        axes.plot(choice.ratio.value, choice.quality_drop, marker, markersize=14 if choice.chosen else 7)
        axes.annotate(_label(m), (choice.ratio.value, choice.quality_drop), fontsize=8)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel("latency relative to the plain export (left is faster)")
    axes.set_ylabel("quality drop (down is better)")
    axes.set_title(f"{evidence.model}: what speed costs (star: chosen)")


def _label(m: Measurement) -> str:
    return m.variant if m.runtime == "cpu" else f"{m.variant} ({m.runtime})"
