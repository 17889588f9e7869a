"""Prints one table for all models, and says no where any failed."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from registry.evidence import Evidence, PublishReport, load
from stages import command, paths
from stages.params import read
from stages.reports import read_evidence


def main() -> None:
    """Print what came of every model; exit 1 if any failed, naming the stage and the reason."""
    table = Table(title="Verdict", title_justify="left")
    for column, justify in (
        ("model", "left"), ("verdict", "left"), ("chosen", "left"), ("x plain", "right"), ("x PyTorch", "right"),
        ("quality", "right"), ("drop", "right"), ("version", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=column in ("model", "verdict"))  # type: ignore[arg-type]
    failures = []
    absent: dict[str, str] = {}
    for model in read().models:
        evidence = read_evidence(model)
        published = load(PublishReport, paths.build(model, "publish") / "report.json")
        table.add_row(*_row(evidence, published))
        absent |= {state.runtime: state.reason for state in evidence.benchmark.runtimes if not state.usable}
        failures += [f"{model}: {report.stage}: {report.reason}" for report in evidence.failures()]
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)
    print("x plain, x PyTorch: how many times as fast over all typical sizes on this machine, when it is undisturbed.")
    for runtime, reason in absent.items():
        print(f"not measured: {runtime}: {reason}")
    for failure in failures:
        print(f"failed: {failure}")
    if failures:
        sys.exit(1)


def _row(evidence: Evidence, published: PublishReport) -> list[str]:
    name = evidence.model
    if evidence.failures():
        return [name, "[red]failed[/]", "", "", "", "", "", ""]
    chosen = next(c for c in evidence.select.choices if c.chosen)
    measured = next(
        m for m in evidence.benchmark.measurements if (m.variant, m.runtime) == (chosen.variant, chosen.runtime)
    )
    reference = evidence.benchmark.reference
    against = ""
    if reference is not None and reference.ratios and measured.ratios:
        against = f"{reference.ratios['all'].value / measured.ratios['all'].value:.2f}"
    return [
        name,
        "[green]passed[/]",
        f"{chosen.variant} ({chosen.runtime})",
        f"{1 / chosen.ratio.value:.2f}" if chosen.ratio else "",
        against if evidence.export.graph and evidence.train.weights and _is_torch(evidence) else "-",
        "" if measured.quality is None else f"{measured.quality:.4f}",
        "" if chosen.quality_drop is None else f"{chosen.quality_drop:+.4f}",
        str(published.version or ""),
    ]


def _is_torch(evidence: Evidence) -> bool:
    return evidence.train.weights is not None and Path(evidence.train.weights.path).suffix == ".safetensors"


if __name__ == "__main__":
    command.run_plain(main)
