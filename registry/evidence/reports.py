"""The typed reports that the stages write and the registry reads.

Every stage writes one `report.json`. Every report starts with the same fields: schema version, stage, model, status and
reason. A failure is a status with a reason, never a missing file. registry/evidence/records.py contains the parts of
reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from onward.registry.errors import NotReady
from onward.registry.evidence.headroom import Headroom
from onward.registry.evidence.host_class import HostClass
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
    TensorSpec,
    TradeOff,
    Variant,
    Winner,
    by_speed,
    first_problem,
)
from onward.registry.evidence.session_options import GraphLevel
from onward.registry.files import write_atomically


class Report(Record):
    """The fields that every stage's report starts with.

    Attributes:
        schema_version: The version of the report's format.
        stage: The stage's name.
        model: The model's name.
        status: Whether the stage passed.
        reason: Why it did not; else empty.
    """

    schema_version: Literal[1] = 1
    stage: str
    model: str
    status: Status
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the stage passed."""
        return self.status == "passed"


class TrainReport(Report):
    """The report of `train`.

    Attributes:
        how: How the model was obtained.
        weights: The file that later stages start from: safetensors, or the ONNX file of a model without PyTorch.
        parameters: The number of parameters.
        quality: The quality of a module from build() with the weights of this file.
        quality_floor: The lowest acceptable quality.
        findings: Unusual facts that are not errors: how the weights were loaded, a quality that does not depend on the
            labels.
    """

    stage: Literal["train"] = "train"
    how: str = ""
    weights: FileDigest | None = None
    parameters: int | None = None
    quality: float | None = None
    quality_floor: float | None = None
    findings: list[str] = []


class DataReport(Report):
    """The report of `data`: the splits, and the results of Great Expectations."""

    stage: Literal["data"] = "data"
    splits: list[Split] = []
    expectations: list[Expectation] = []


class ExportReport(Report):
    """The report of `export`.

    Attributes:
        how: The export strategy that succeeded.
        attempts: The strategies that were tried, in order.
        files: The .onnx, then its external data if there is any.
        graph: What the .onnx contains.
        warnings: The exporter's warnings.
        findings: Unusual properties of the graph that are not errors, each with its remedy.
        custom_ops: Native libraries with custom operators, relative to the stage's folder.
    """

    stage: Literal["export"] = "export"
    how: str = ""
    attempts: list[ExportAttempt] = []
    files: list[FileDigest] = []
    graph: GraphInfo | None = None
    warnings: list[str] = []
    findings: list[str] = []
    custom_ops: list[FileDigest] = []


class VerifyReport(Report):
    """The report of `verify`.

    Attributes:
        reference: The original model that answers were compared with.
        provider: The execution provider of the export.
        rtol: The relative tolerance.
        atol: The absolute tolerance.
        cases: The result of each case.
        divergence: The first value that differs from the reference.
        evaluator: Why `evaluated` is empty; else empty.
        evaluated: The cases on which a supplied ONNX file was compared with ONNX's own reference evaluator.
        findings: What limits the proof.
        kinds: The kind of each output, by which later stages judge lower precision.
        graph_level: The highest level of graph optimisation that does not change the answers; None if none does.
    """

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
    graph_level: GraphLevel | None = None


class OptimizeReport(Report):
    """The report of `optimize`.

    Attributes:
        graph: The kind and size of the exported graph, which decide which techniques are tried.
        variants: The optimised graphs.
    """

    stage: Literal["optimize"] = "optimize"
    graph: str = ""
    variants: list[Variant] = []


class QuantizeReport(Report):
    """The report of `quantize`.

    Attributes:
        bases: The graphs that were quantised, each with the reason for its choice.
        reference_quality: The quality of the original over the evaluation set.
        variants: The quantised graphs.
        tradeoffs: The variants that exceeded the quality budget until some layers stayed in float.
    """

    stage: Literal["quantize"] = "quantize"
    bases: dict[str, str] = {}
    reference_quality: float | None = None
    variants: list[Variant] = []
    tradeoffs: list[TradeOff] = []


class BenchmarkReport(Report):
    """The report of `benchmark`. Every latency is in samples.parquet beside the report.

    Attributes:
        started: When the benchmark began: UTC, in ISO 8601; empty in older reports. Other reports contain no time,
            because a stage that computes the same again must write the same bytes. Latencies differ anyway.
        ended: When it ended.
        machine: The machine of the benchmark.
        runtimes: The state of each runtime on it.
        rounds: The number of rounds of the race.
        search_seconds: The duration of the search.
        findings: Reasons to trust the measurements less: the machine's speed drifted, the search ran out of time.
        reference: The original model (PyTorch eager, or the supplied ONNX file).
        compiled: The original model under torch.compile, if params.yaml requests it.
        compiled_bfloat16: The same in bfloat16.
        measurements: Every variant on every runtime.
        headroom: The fastest acceptable variant beside what the host can do, at each size.
    """

    stage: Literal["benchmark"] = "benchmark"
    started: str = ""
    ended: str = ""
    machine: Machine | None = None
    runtimes: list[RuntimeState] = []
    rounds: int = 0
    search_seconds: float = 0.0
    findings: list[str] = []
    reference: Measurement | None = None
    compiled: Measurement | None = None
    compiled_bfloat16: Measurement | None = None
    measurements: list[Measurement] = []
    headroom: list[Headroom] = []


class OnHost(Record):
    """What was chosen for a class of machines, from measurements on one of them.

    Attributes:
        name: The name of the class in params.yaml's `hosts`.
        host: What its machines have in common.
        machine: The machine that measured.
        winners: The winner on each runtime that was measured there, the preferred runtime first.
        choices: Why each variant was chosen or not.
        reason: Why there is no winner; else empty.
    """

    name: str
    host: HostClass
    machine: Machine
    winners: list[Winner] = []
    choices: list[Choice] = []
    reason: str = ""

    @property
    def best(self) -> tuple[Winner, Choice] | None:
        """The fastest winner, and why it was chosen; None if there is none."""
        if not self.winners:
            return None
        winner = by_speed(self.winners)[0]
        return winner, next(c for c in self.choices if (c.variant, c.runtime) == (winner.variant, winner.runtime))


class SelectReport(Report):
    """The report of `select`.

    Attributes:
        variant: The first winner's variant.
        runtime: The first winner's runtime.
        files: The first winner's files.
        winners: The winner on each measured runtime, the preferred runtime first.
        quality_measure: The measure that `quality_budget` applies to.
        quality_budget: The largest acceptable loss.
        choices: Why each variant was chosen or not.
        elsewhere: What was chosen for other classes of machines.
    """

    stage: Literal["select"] = "select"
    variant: str = ""
    runtime: str = ""
    files: list[FileDigest] = []
    winners: list[Winner] = []
    quality_measure: str = ""
    quality_budget: float | None = None
    choices: list[Choice] = []
    elsewhere: list[OnHost] = []

    @property
    def all_winners(self) -> list[Winner]:
        """The winners on this machine, the preferred runtime first, then those of the other classes of machines."""
        return [*self.winners, *(winner for one in self.elsewhere for winner in one.winners)]


class PublishReport(Report):
    """The report of `publish`: where the evidence of a model is recorded.

    The status is "failed" if all other stages passed but the version could not be served.

    Attributes:
        findings: What the version cannot do.
        run_id: The MLflow run of the model.
        variants: The child run of each variant.
        version: The registered version; null if nothing could be registered.
        sha256: The version's digest.
        context: Facts about the run rather than the model: commit, host, versions of packages.
        inputs: The inputs as params.yaml documents them.
        outputs: The outputs.
        operators: The number of operators of each type in the first winner's graph.
    """

    stage: Literal["publish"] = "publish"
    findings: list[str] = []
    run_id: str = ""
    variants: dict[str, str] = Field(default={}, description="child run of each variant")
    version: int | None = None
    sha256: str = ""
    context: dict[str, str] = {}
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    operators: dict[str, int] = {}


class Evidence(Record):
    """All reports of one model, in the form that `publish` passes to the registry."""

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
        """List the reports of failed stages in the pipeline's order; empty if the model can be registered."""
        reports = (getattr(self, stage) for stage in REPORTS if stage != "publish")
        return [report for report in reports if report.status == "failed"]


# The report class of each stage, in the pipeline's order.
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
    """Write a report to `path` as JSON, atomically."""
    write_atomically(path, (report.model_dump_json(indent=2) + "\n").encode())


def load(kind: type[ReportT], path: Path) -> ReportT:
    """Read a report.

    Args:
        kind: The class of the report.
        path: The report's file.

    Returns:
        The report.

    Raises:
        NotReady: The file is missing, or it is not a report of this class and schema version.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotReady(f"{path}: the report is missing; `dvc repro` writes it") from None
    except ValidationError as error:
        raise NotReady(f"{path}: not a {kind.__name__} (at {first_problem(error)})") from None
