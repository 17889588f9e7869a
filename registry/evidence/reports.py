"""The typed reports: the one vocabulary that the stages write and the registry reads.

Every stage writes one `report.json`, and every report opens with the same four fields: schema version, stage, model
and status. A failure is a status with a reason in plain words, never a missing file.
registry/evidence/records.py holds what they are made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from onward.registry.errors import NotReady
from onward.registry.evidence.records import (
    CaseResult,
    Choice,
    Expectation,
    ExportAttempt,
    FileDigest,
    FirstDivergence,
    GraphInfo,
    Machine,
    Measurement,
    OutputKind,
    Record,
    RuntimeState,
    Split,
    Status,
    TradeOff,
    Variant,
    Winner,
)
from onward.registry.files import write_atomically


class Report(Record):
    """What every stage's report opens with."""

    schema_version: Literal[1] = 1
    stage: str
    model: str
    status: Status
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class TrainReport(Report):
    """`weights` is what later stages start from: safetensors, or the ONNX file of a model without PyTorch. `quality` is
    that of a module which build() made and which has the weights of this file. `findings` is what is odd without being
    wrong: how the weights were taken in, a quality that does not depend on the labels."""

    stage: Literal["train"] = "train"
    how: str = ""
    weights: FileDigest | None = None
    parameters: int | None = None
    quality: float | None = None
    quality_floor: float | None = None
    findings: list[str] = []


class DataReport(Report):
    stage: Literal["data"] = "data"
    splits: list[Split] = []
    expectations: list[Expectation] = []


class ExportReport(Report):
    """`files[0]` is the .onnx; a second one, if any, is its external data. `attempts` are the ways that were tried, in
    order; `findings` what is odd about the graph without being wrong, each with its remedy."""

    stage: Literal["export"] = "export"
    how: str = ""
    attempts: list[ExportAttempt] = []
    files: list[FileDigest] = []
    graph: GraphInfo | None = None
    warnings: list[str] = []
    findings: list[str] = []


class VerifyReport(Report):
    """`evaluated` are the cases on which an ONNX file from elsewhere was held to ONNX's own reference evaluator, and
    `evaluator` says why there are none, where there are none. `findings` are what limits the proof.
    `kinds` say what each output is: later stages judge lower precision by them."""

    stage: Literal["verify"] = "verify"
    reference: str = ""
    provider: str = ""
    rtol: float | None = None
    atol: float | None = None
    cases: list[CaseResult] = []
    divergence: FirstDivergence | None = None
    evaluator: str = ""
    evaluated: list[CaseResult] = []
    findings: list[str] = []
    kinds: list[OutputKind] = []


class OptimizeReport(Report):
    """`graph` is what kind of graph the export is, and how large: it decides what is worth trying."""

    stage: Literal["optimize"] = "optimize"
    graph: str = ""
    variants: list[Variant] = []


class QuantizeReport(Report):
    """`bases` are the graphs that were quantised, with the reason why each was chosen. `tradeoffs` are of variants that
    broke the quality budget until some layers were left in float."""

    stage: Literal["quantize"] = "quantize"
    bases: dict[str, str] = {}
    reference_quality: float | None = None
    variants: list[Variant] = []
    tradeoffs: list[TradeOff] = []


class BenchmarkReport(Report):
    """`reference` is the original model (PyTorch eager, or the ONNX file as it came), `compiled` the same under
    torch.compile, where that was asked for. `findings` is what makes the figures less than they seem: a machine whose
    speed drifted, a search that ran out of time. Every latency is in samples.parquet beside the report."""

    stage: Literal["benchmark"] = "benchmark"
    machine: Machine | None = None
    runtimes: list[RuntimeState] = []
    rounds: int = 0
    search_seconds: float = 0.0
    findings: list[str] = []
    reference: Measurement | None = None
    compiled: Measurement | None = None
    measurements: list[Measurement] = []


class SelectReport(Report):
    """`winners` are those of each runtime measured, the preferred runtime first; `variant`, `runtime` and `files` are
    the first one's."""

    stage: Literal["select"] = "select"
    variant: str = ""
    runtime: str = ""
    files: list[FileDigest] = []
    winners: list[Winner] = []
    quality_measure: str = ""
    quality_budget: float | None = None
    choices: list[Choice] = []


class PublishReport(Report):
    """Where the evidence of a model went. `version` is null where nothing was fit to be registered; the status is
    "failed" where all other stages passed and the version could not have been served. `findings` say what it cannot
    do."""

    stage: Literal["publish"] = "publish"
    findings: list[str] = []
    run_id: str = ""
    variants: dict[str, str] = Field(default={}, description="child run of each variant")
    version: int | None = None
    sha256: str = ""


class Evidence(Record):
    """All reports of one model, as `publish` hands them to the registry."""

    model: str
    train: TrainReport
    data: DataReport
    export: ExportReport
    verify: VerifyReport
    optimize: OptimizeReport
    quantize: QuantizeReport
    benchmark: BenchmarkReport
    select: SelectReport

    def failures(self) -> list[Report]:
        """The stages that failed, in the pipeline's order; empty when the model is fit to be registered."""
        reports = (getattr(self, stage) for stage in REPORTS if stage != "publish")
        return [report for report in reports if report.status == "failed"]


# Every kind of report by its stage, in the pipeline's order.
REPORTS: dict[str, type[Report]] = {
    "train": TrainReport,
    "data": DataReport,
    "export": ExportReport,
    "verify": VerifyReport,
    "optimize": OptimizeReport,
    "quantize": QuantizeReport,
    "benchmark": BenchmarkReport,
    "select": SelectReport,
    "publish": PublishReport,
}

ReportT = TypeVar("ReportT", bound=Report)


def save(report: Record, path: Path) -> None:
    """Write a report as JSON, atomically."""
    write_atomically(path, (report.model_dump_json(indent=2) + "\n").encode())


def load(kind: type[ReportT], path: Path) -> ReportT:
    """Read a report.

    Raises:
        NotReady: the file is missing, or is no report of this kind and schema version.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotReady(f"{path}: no such report; `dvc repro` writes it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NotReady(f"{path}: not a {kind.__name__} (at {where}: {first['msg']})") from None
