"""The reports that other stages left."""

from __future__ import annotations

from pathlib import Path

from registry.evidence import (
    BenchmarkReport,
    DataReport,
    Evidence,
    ExportReport,
    OptimizeReport,
    QuantizeReport,
    Report,
    SelectReport,
    TrainReport,
    VerifyReport,
    load,
)
from stages import paths

_KINDS: dict[str, type[Report]] = {
    "train": TrainReport,
    "data": DataReport,
    "export": ExportReport,
    "verify": VerifyReport,
}


def read_evidence(model: str) -> Evidence:
    """All reports of a model.

    Raises:
        UsageError: one is missing.
    """

    def of(stage: str) -> Path:
        return paths.build(model, stage) / "report.json"

    return Evidence(
        model=model,
        train=load(TrainReport, of("train")),
        data=load(DataReport, of("data")),
        export=load(ExportReport, of("export")),
        verify=load(VerifyReport, of("verify")),
        optimize=load(OptimizeReport, of("optimize")),
        quantize=load(QuantizeReport, of("quantize")),
        benchmark=load(BenchmarkReport, of("benchmark")),
        select=load(SelectReport, of("select")),
    )


def blocked(model: str, *stages: str) -> str:
    """Why a stage that needs these stages' results cannot be attempted; empty when it can."""
    for stage in stages:
        report = load(_KINDS[stage], paths.build(model, stage) / "report.json")
        if not report.passed:
            return report.reason if report.status == "not attempted" else f"{stage} failed"
    return ""
