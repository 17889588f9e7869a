"""Reads the reports of other stages."""

from __future__ import annotations

from onward.registry.errors import NotReady
from onward.registry.evidence.reports import REPORTS, Evidence, Report, load
from onward.stages.config import paths


def read_evidence(model: str) -> Evidence:
    """Load all reports of a model except that of publish.

    Raises:
        NotReady: A report is missing.
    """
    reports = {
        stage: load(kind, paths.build(model, stage) / "report.json")
        for stage, kind in REPORTS.items()
        if stage != "publish"
    }
    return Evidence(model=model, **reports)  # type: ignore[arg-type]  # each is of its stage's kind


def found(model: str) -> dict[str, Report]:
    """Load the existing reports of a model, by stage in the pipeline's order; unreadable ones are left out."""
    reports, folder = {}, paths.root() / "build" / model
    for stage, kind in REPORTS.items():
        try:
            reports[stage] = load(kind, folder / stage / "report.json")
        except NotReady:
            continue
    return reports


def blocked(model: str, *stages: str) -> str:
    """Say why a stage cannot run that needs the results of these stages; empty if it can.

    Raises:
        NotReady: A report is missing.
    """
    for stage in stages:
        report = load(REPORTS[stage], paths.build(model, stage) / "report.json")
        if not report.passed:
            return report.reason if report.status == "not attempted" else f"{stage} failed"
    return ""
