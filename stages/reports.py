"""The reports that other stages left."""

from __future__ import annotations

from onward.registry.errors import NotReady
from onward.registry.evidence.reports import REPORTS, Evidence, Report, load
from onward.stages.config import paths


def read_evidence(model: str) -> Evidence:
    """All reports of a model but that of publish, which is given them.

    Raises:
        NotReady: one is missing.
    """
    reports = {
        stage: load(kind, paths.build(model, stage) / "report.json")
        for stage, kind in REPORTS.items()
        if stage != "publish"
    }
    return Evidence(model=model, **reports)  # type: ignore[arg-type]  # each is of its stage's kind


def found(model: str) -> dict[str, Report]:
    """The reports that there are of a model, by stage in the pipeline's order. One that cannot be read is none."""
    reports = {}
    for stage, kind in REPORTS.items():
        try:
            reports[stage] = load(kind, paths.build(model, stage) / "report.json")
        except NotReady:
            continue
    return reports


def blocked(model: str, *stages: str) -> str:
    """Why a stage that needs these stages' results cannot be attempted; empty when it can."""
    for stage in stages:
        report = load(REPORTS[stage], paths.build(model, stage) / "report.json")
        if not report.passed:
            return report.reason if report.status == "not attempted" else f"{stage} failed"
    return ""
