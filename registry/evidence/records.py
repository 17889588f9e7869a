"""The parts of reports: files, tensors, graphs, cases, variants, measurements.

Apart from a benchmark's measurements, equal inputs give equal records: they contain no times and no absolute paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onward.registry.evidence.session_options import SessionOptions
from onward.registry.files import sha256_file

# The name of the unchanged export among the variants, and the name of the original model.
PLAIN = "plain"
REFERENCE = "reference"
Status = Literal["passed", "failed", "not attempted"]
CaseVerdict = Literal[
    "ok",
    "out of tolerance",
    "shape mismatch",
    "dtype mismatch",
    "NaN mismatch",
    "missing output",
    "aborted",
    "segfault",
    "timed out",
    "out of memory",
    "error",
]
# The verdicts of cases in which the model gave no answer.
CRASHES = ("aborted", "segfault", "timed out", "out of memory", "error")


class Record(BaseModel):
    """Base of everything in a report: unknown fields are errors; NaN and infinity survive a round trip through JSON."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


def first_problem(error: ValidationError) -> str:
    """Describe the first problem that pydantic found, as `path.to.field: message`."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


class FileDigest(Record):
    """The digest of one file.

    Attributes:
        path: Relative to the repository, or to the folder that a manifest describes; with forward slashes.
        sha256: In hexadecimal.
        size_bytes: The size of the file.
    """

    path: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path, relative_to: Path) -> FileDigest:
        """Compute the digest of the file `path`, which is below the folder `relative_to`."""
        return cls(
            path=path.relative_to(relative_to).as_posix(), sha256=sha256_file(path), size_bytes=path.stat().st_size
        )


# What exporters write if a dimension has no name: "?", "-1", "*", "None", tf2onnx's "unk__12", ... Two dimensions with
# the same placeholder can have different sizes.
_NO_NAME = re.compile(r"[^A-Za-z]*|none|null|nil|unk(__\d+)?|unknown|dyn|dynamic|any|undefined", re.IGNORECASE)


def dimension(declared: int | str | None) -> int | str | None:
    """Interpret a dimension that a graph declares.

    ONNX declares an unknown dimension by leaving it out. Many exporters write a placeholder ("?", "-1", "None") or a
    negative size instead. All dimensions with the same name have the same size; this is not true of placeholders.

    Args:
        declared: The size or text in the graph; None if the graph contains neither.

    Returns:
        The size, the name, or None if the dimension is unknown.
    """
    if isinstance(declared, str):
        return None if _NO_NAME.fullmatch(declared.strip()) else declared
    return None if declared is None or declared < 0 else declared


class TensorSpec(Record):
    """An input or output as the graph declares it.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the data type.
        shape: Each dimension is a size, a name, or "?" if it is unknown.
        about: A description of the tensor; may be empty.
    """

    name: str
    dtype: str
    shape: list[int | str]
    about: str = ""


Kind = Literal["scores", "probabilities", "values", "embedding", "indices", "state"]


class OutputKind(Record):
    """The kind of an output. It decides how answers of lower precision are judged (registry/evidence/kinds.py).

    Attributes:
        output: The output's name.
        kind: What the output contains.
        axis: The class axis of scores and probabilities, the channel axis of values and states, or the axis of an
            embedding's vectors; null if the output has no such axis.
        beside: For indices, the output with their sorted scores; else empty.
        limit: The limit in params.yaml; null if there is none.
        reason: Where the kind comes from: params.yaml, or a property of the answers.
        by_quality: Whether the model's own quality measure depends on this output. Then that measure judges it.
        samples: The axis of samples in the model's own output; null if it has none. `axis` counts the axes of answers
            that have their samples on axis 0.
        steps: Whether answers are judged over sequences, with steps on axis 1.
    """

    output: str
    kind: Kind
    axis: int | None = None
    beside: str = ""
    limit: float | None = None
    reason: str = ""
    by_quality: bool = False
    samples: int | None = 0
    steps: bool = False

    def __str__(self) -> str:
        along = "" if self.axis is None else f" along axis {self.axis}"
        beside = f" in the order of {self.beside}" if self.beside else ""
        return f"{self.output} contains {self.kind}{along}{beside}: {self.reason}"


class OutputFidelity(Record):
    """One output of a graph of lower precision, judged on the evaluation samples by one measure of its kind.

    Attributes:
        output: The output's name.
        kind: The output's kind.
        measure: What was measured.
        value: The loss, from 0 (the same answers) upwards, in the unit that `measure` names.
        low: The lower end of the 95 % confidence interval over the samples.
        high: The upper end of that interval.
        limit: The largest acceptable loss.
        holds: Whether the limit is kept: the interval is not completely above it.
        reason: The class or channel that decided, or why the output could not be measured.
    """

    output: str
    kind: Kind
    measure: str
    value: float
    low: float
    high: float
    limit: float
    holds: bool
    reason: str = ""

    @property
    def used(self) -> float:
        """The loss as a share of the limit. With few samples, more than 1 does not mean that the limit is exceeded."""
        return self.value / self.limit if self.limit else (0.0 if self.value == 0 else float("inf"))

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.output} ({self.kind}): {self.measure} {self.value:.3g}{reason}, "
            f"95 % interval {self.low:.3g} to {self.high:.3g}, limit {self.limit:g}"
        )


class Expectation(Record):
    """One result of Great Expectations: what was expected of which column, and what was observed."""

    split: str
    expectation: str
    column: str = ""
    success: bool
    observed: str = ""


class Split(Record):
    """One split of the data: its name, its number of samples and its file."""

    name: str
    samples: int
    file: FileDigest


class GraphInfo(Record):
    """What an ONNX file contains, as the file itself declares it."""

    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    parameters: int
    nodes: int
    operators: dict[str, int]
    size_bytes: int
    metadata: dict[str, str] = {}


class ExportAttempt(Record):
    """One export strategy that was tried, and the reason if it failed."""

    strategy: str
    status: Status
    reason: str = ""


class OutputComparison(Record):
    """One output of one case, compared with the reference.

    A measure is null if it does not apply to the output.

    Attributes:
        output: The output's name.
        verdict: The result of the comparison.
        max_abs: The largest absolute difference, in the output's unit.
        mean_abs: The mean absolute difference, in the output's unit.
        max_rel: The largest relative difference.
        max_ulp: The largest number of representable numbers between the two values (units in the last place).
        cosine: The cosine similarity to the reference.
        snr_db: 10 log10 of the reference's power over the difference's power; infinite if nothing differs.
        agreement: The share of rows with the same largest entry.
        share_out: The share of elements out of tolerance.
        out_abs: The largest absolute difference among the elements out of tolerance.
        error: The largest distance of the answer from the reference computed in float64.
        reference_error: The largest distance of the reference from the reference computed in float64. If `error` is no
            larger than this, the answer is as accurate as the reference.
        reason: Details of a verdict other than "ok".
    """

    output: str
    verdict: CaseVerdict
    max_abs: float | None = None
    mean_abs: float | None = None
    max_rel: float | None = None
    max_ulp: int | None = None
    cosine: float | None = None
    snr_db: float | None = None
    agreement: float | None = None
    share_out: float | None = None
    out_abs: float | None = None
    error: float | None = None
    reference_error: float | None = None
    reason: str = ""


class CaseResult(Record):
    """One case: the inputs, which name and seed reproduce, and the result.

    Attributes:
        case: The case's name.
        seed: The seed of the random inputs.
        sizes: The size of each named dimension.
        probe: Whether the case is only informative. A probe uses inputs that the model need not accept, so it cannot
            fail a stage.
        verdict: The result.
        reason: Details of a verdict other than "ok".
        signal: The signal that ended the process; else empty.
        outputs: The comparison of each output.
        drift: For a sequence, the error of each output at each step, relative to the output's size.
    """

    case: str
    seed: int
    sizes: dict[str, int]
    probe: bool = False
    verdict: CaseVerdict
    reason: str = ""
    signal: str = ""
    outputs: list[OutputComparison] = []
    drift: dict[str, list[float]] = {}

    @property
    def failed(self) -> bool:
        """Whether this case fails its stage; a probe never does."""
        return self.verdict != "ok" and not self.probe


class FirstDivergence(Record):
    """The first value of a graph that differs from the reference by more than rounding explains.

    Attributes:
        case: The case in which it differs.
        value: The value's name in the graph.
        operator: The operator that computes it.
        module: The path of the PyTorch module that it comes from.
        source: The source line that it comes from, as `file:line` relative to the repository.
        difference: The largest absolute difference.
        scale: The largest magnitude of the expected value.
        reason: More about the value, or why no such value could be found.
    """

    case: str
    value: str = ""
    operator: str = ""
    module: str = ""
    source: str = ""
    difference: float | None = None
    scale: float | None = None
    reason: str = ""


class Variant(Record):
    """A graph made from the plain export: how it was made, its size, and whether it still computes the same.

    `quality`, `agreement`, `snr_db`, `cosine` and `fidelity` are measured over the evaluation set.

    Attributes:
        name: The variant's name.
        base: The variant that it was made from.
        technique: The technique that made it.
        precision: Its numeric precision.
        float_layers: The values whose nodes stay in float although the technique quantises nodes of their type.
        status: Whether the variant is correct.
        reason: Why it is not.
        files: The .onnx and its external data.
        nodes_before: The number of nodes of the base.
        nodes: The number of nodes.
        size_before: The size of the base in bytes.
        size_bytes: The size in bytes.
        parity: The comparison of each case with the reference.
        divergence: The first value that differs from the reference.
        quality: The model's own measure; higher is better.
        agreement: The smallest share of top-1 answers equal to the reference's, over all outputs with scores; null if
            there are none.
        snr_db: The signal-to-noise ratio against the reference.
        cosine: The cosine similarity of the worst sample.
        fidelity: What each output lost, measured by its kind.
        drift: For a model with states, the error of each output at each step of the evaluation sequences, relative to
            the output's size.
    """

    name: str
    base: str
    technique: str
    precision: str = "float32"
    float_layers: list[str] = []
    status: Status
    reason: str = ""
    files: list[FileDigest] = []
    nodes_before: int | None = None
    nodes: int | None = None
    size_before: int | None = None
    size_bytes: int | None = None
    reduction: float | None = Field(default=None, description="1 - size / size before; negative if it grew")
    compression: float | None = Field(default=None, description="size before / size")
    parity: list[CaseResult] = []
    divergence: FirstDivergence | None = None
    quality: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    fidelity: list[OutputFidelity] = []
    drift: dict[str, list[float]] = {}


class LayerCost(Record):
    """The cost of quantising one layer alone.

    Attributes:
        value: The name of the layer's output in the graph.
        operator: The layer's operator.
        module: The path of the PyTorch module that it comes from.
        snr_db: The signal-to-noise ratio of the layer's output over the calibration set, with the float graph's values
            as inputs; infinite if nothing changes.
    """

    value: str
    operator: str
    module: str = ""
    snr_db: float


class TradePoint(Record):
    """A graph with the costliest `float_layers` layers left in float, measured over the evaluation set."""

    float_layers: int
    quality: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    holds: bool


class TradeOff(Record):
    """How a variant that exceeded the quality budget recovers if some layers stay in float.

    Attributes:
        variant: The variant that exceeded the budget.
        chosen: The variant within the budget that has the fewest layers in float; empty if there is none.
        layers: The cost of each layer, the costliest first.
        points: The result for each number of layers in float.
    """

    variant: str
    chosen: str = ""
    layers: list[LayerCost]
    points: list[TradePoint]


class Latency(Record):
    """Latencies of one variant at one size, in milliseconds.

    MLPerf's early-stopping rule requires a minimum number of samples for a percentile. So p90 is null below 64 samples,
    p95 below 130 and p99 below 662.

    Attributes:
        size: The label of the input size.
        sizes: The size of each named dimension.
        weight: The weight of this size in means over sizes.
        samples: The number of timed calls.
        warmup: The number of calls before them.
        withheld: Which percentiles are null, and why; else empty.
        drift: How much slower the last rounds were than the first, as a share. 0 if there is no trend; null if there
            are too few rounds.
    """

    size: str
    sizes: dict[str, int]
    weight: float = 1.0
    samples: int
    warmup: int
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    withheld: str = ""
    throughput: float = Field(description="items of the first dimension per second, from the mean")
    drift: float | None = None


class Ratio(Record):
    """Latency relative to the plain export's, each over its fastest rounds; below 1 is faster.

    Attributes:
        value: The ratio.
        low: The lower end of the 95 % bootstrap confidence interval.
        high: The upper end of that interval.
    """

    value: float
    low: float
    high: float


class SweepPoint(Record):
    """One size of a batch sweep: p50 in ms, throughput in items of the first dimension per second."""

    sizes: dict[str, int]
    p50_ms: float
    throughput: float


class Callers(Record):
    """Concurrent calls of one session.

    Attributes:
        callers: The number of threads that call the session.
        samples: The number of timed calls.
        p50_ms: The median latency of a call.
        p95_ms: The 95th percentile; null if there are too few samples.
        throughput: Items per second of all threads together.
    """

    callers: int
    samples: int
    p50_ms: float
    p95_ms: float | None
    throughput: float


class Scenarios(Record):
    """Measurements in addition to the single stream.

    Attributes:
        sweep: The sizes of the batch sweep.
        knee: The sizes above which larger batches gain almost no throughput; null if the sweep found none.
        callers: Concurrent calls, one entry for each number of threads.
        cold_start_ms: The time from the start of a process to its first answer.
    """

    sweep: list[SweepPoint] = []
    knee: dict[str, int] | None = None
    callers: list[Callers] = []
    cold_start_ms: float | None = None


class Measurement(Record):
    """One variant on one runtime of one machine: what it computed and how long it took.

    A variant that left the search before it was measured completely has the status "not attempted", with the reason
    and, if it was screened, its ratios at that point.

    Attributes:
        variant: The variant's name: a graph with session options.
        graph: The variant whose file it uses; empty if that is its own.
        options: Its session options.
        runtime: The runtime's name in params.yaml.
        provider: The execution provider.
        precision: The graph's numeric precision.
        status: Whether the variant was measured and is correct.
        reason: Why not; else empty.
        files: The .onnx and its external data.
        session_ms: The time to create a session.
        peak_memory_mb: The peak memory of the process.
        parity: The comparison of each case with the reference.
        quality: The model's own measure over the evaluation set; higher is better.
        agreement: The smallest share of top-1 answers equal to the reference's.
        snr_db: The signal-to-noise ratio against the reference.
        cosine: The cosine similarity of the worst sample.
        fidelity: What each output lost, measured by its kind.
        drift: For a model with states, the error of each output at each step of the evaluation sequences, relative to
            the output's size.
        latencies: The latencies at each size.
        scenarios: The batch sweep, concurrent calls and cold start.
    """

    variant: str
    graph: str = ""
    options: SessionOptions = SessionOptions()
    runtime: str
    provider: str
    precision: str
    status: Status
    reason: str = ""
    files: list[FileDigest] = []
    session_ms: float | None = None
    peak_memory_mb: float | None = None
    node_share: dict[str, float] = Field(default={}, description="share of nodes that ran on each provider")
    parity: list[CaseResult] = []
    quality: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    fidelity: list[OutputFidelity] = []
    drift: dict[str, list[float]] = {}
    latencies: list[Latency] = []
    ratios: dict[str, Ratio] = Field(default={}, description="per size; `all` is the weighted geometric mean")
    host_ratios: dict[str, Ratio] = Field(
        default={},
        description="as `ratios`, against the plain export on the first runtime, timed in the same rounds",
    )
    scenarios: Scenarios | None = None


class Machine(Record):
    """The machine of a benchmark. Machines with equal descriptions are expected to give comparable numbers."""

    cpu: str
    instruction_sets: list[str]
    cores: int
    memory_gb: int
    accelerators: list[str] = []
    system: str


class RuntimeState(Record):
    """The state of one runtime of params.yaml on this host.

    Attributes:
        runtime: The runtime's name.
        usable: Whether the runtime can run models here.
        providers: The execution providers of its ONNX Runtime build.
        version: The version of ONNX Runtime, or of OpenVINO.
        reason: Why the runtime is not usable, and the command that installs it; else empty.
        node_share: The share of a small graph's nodes that ran on the provider, by the graph's precision; 0 if the
            provider cannot run the graph.
        int8_exact: Whether sums of uint8 x int8 products are exact. Without VNNI they saturate. Null if unknown.
        precisions: The lower precisions in which the runtime can compute a float32 graph natively on this CPU.
    """

    runtime: str
    usable: bool
    providers: list[str] = []
    version: str = ""
    reason: str = ""
    node_share: dict[str, float] = {}
    int8_exact: bool | None = None
    precisions: list[str] = []


class Choice(Record):
    """Why a variant was chosen or not.

    Attributes:
        variant: The variant's name.
        runtime: The runtime's name.
        chosen: Whether the variant was chosen.
        on_front: Whether the variant is on the Pareto front: no other variant within the budget is at least as good in
            latency, quality and size, and better in one of them.
        tied: Whether the variant is within the budget and its interval overlaps the chosen variant's, so that another
            run may choose it.
        reason: Why it was chosen or not.
        ratio: Its latency relative to the plain export's on the same runtime.
        host_ratio: Its latency relative to the plain export's on the first runtime.
        worst_size: The size with the largest ratio.
        worst: The ratio at that size.
        quality_drop: What its answers lost by `quality_measure`.
        quality_budget: What they may lose.
        quality_measure: The model's own measure, or the measure of the output that decided.
    """

    variant: str
    runtime: str
    chosen: bool
    on_front: bool = False
    tied: bool = False
    reason: str
    ratio: Ratio | None = None
    host_ratio: Ratio | None = None
    worst_size: str = ""
    worst: Ratio | None = None
    quality_drop: float | None = None
    quality_budget: float | None = None
    quality_measure: str = ""


class Winner(Record):
    """The variant chosen for one runtime.

    Attributes:
        variant: The variant's name.
        runtime: The runtime's name.
        provider: The execution provider.
        p50_ms: The variant's p50 on this runtime, as the weighted geometric mean over the sizes.
        host_ratio: Its latency relative to the plain export's on the first runtime; null if that was not measured.
        files: The .onnx and its external data.
        options: The session options.
        host: The class of machines in params.yaml's `hosts` that it was chosen for; empty for all others.
        precision: The variant's precision.
    """

    variant: str
    runtime: str
    provider: str
    p50_ms: float
    host_ratio: Ratio | None = None
    files: list[FileDigest]
    options: SessionOptions = SessionOptions()
    host: str = ""
    precision: str = "float32"

    @property
    def key(self) -> str:
        """Its name in serving.json and in the names of recorded answers."""
        return f"{self.runtime}--{self.host}" if self.host else self.runtime


def worst_size(ratios: Mapping[str, Ratio]) -> str:
    """Find the size at which a variant gains least.

    Args:
        ratios: Its ratios by size, with `all` over all sizes.

    Returns:
        The size; empty if there are no ratios.
    """
    return max((size for size in ratios if size != "all"), key=lambda size: ratios[size].value, default="")


def by_speed(winners: Sequence[Winner]) -> list[Winner]:
    """Sort the winners of the runtimes, the fastest first. Those of other classes of machines come after the main ones.

    Ratios to one graph that ran in the same rounds are compared, if all winners have one. Otherwise, latencies of races
    at different times are compared.
    """
    comparable = all(winner.host_ratio for winner in winners)
    hosts = list(dict.fromkeys(winner.host for winner in winners))

    def place(winner: Winner) -> tuple[int, float]:
        speed = winner.host_ratio.value if comparable and winner.host_ratio else winner.p50_ms
        return hosts.index(winner.host), speed

    return sorted(winners, key=place)


def worst_by_output(cases: list[CaseResult]) -> dict[str, OutputComparison]:
    """Find each output's comparison with the largest absolute difference, over all cases except probes.

    Args:
        cases: The results of all cases.

    Returns:
        The worst comparison by output name.
    """
    worst: dict[str, OutputComparison] = {}
    for case in cases:
        if case.probe:
            continue
        for comparison in case.outputs:
            best = worst.get(comparison.output)
            if comparison.max_abs is not None and (best is None or comparison.max_abs > (best.max_abs or 0.0)):
                worst[comparison.output] = comparison
    return worst
