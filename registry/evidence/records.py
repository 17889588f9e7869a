"""What reports are made of: files, tensors, graphs, cases, variants, measurements.

They hold nothing that changes while the thing reported does not (no clock, no absolute path), apart from what a
benchmark measured.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from onward.registry.evidence.session_options import SessionOptions
from onward.registry.files import sha256_file

# The export itself among the variants, and the original model beside them.
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
# A case's verdicts that say that the model gave no answer at all.
CRASHES = ("aborted", "segfault", "timed out", "out of memory", "error")


class Record(BaseModel):
    """Base of everything in a report: unknown fields are refused, NaN and infinity survive a round trip."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class FileDigest(Record):
    """One file: path relative to the repository (or to the folder that a manifest describes), sha256, bytes."""

    path: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path, relative_to: Path) -> FileDigest:
        """Digest `path`, named relative to `relative_to` with forward slashes."""
        return cls(
            path=path.relative_to(relative_to).as_posix(), sha256=sha256_file(path), size_bytes=path.stat().st_size
        )


# What exporters write where a dimension has no name: "?", "-1", "*", "None", tf2onnx's "unk__12", ... Two such
# dimensions have nothing in common.
_NO_NAME = re.compile(r"[^A-Za-z]*|none|null|nil|unk(__\d+)?|unknown|dyn|dynamic|any|undefined", re.IGNORECASE)


def dimension(declared: int | str | None) -> int | str | None:
    """A dimension as a graph declares it: its size, its name, or None where the graph says neither.

    ONNX leaves a dimension open by saying nothing; many exporters write a placeholder ("?", "-1", "None") or a negative
    size instead. A name is a claim (all dimensions of this name have one size), a placeholder is not.
    """
    if isinstance(declared, str):
        return None if _NO_NAME.fullmatch(declared.strip()) else declared
    return None if declared is None or declared < 0 else declared


class TensorSpec(Record):
    """An input or output as the graph declares it: a dimension is a size, a name, or "?" where neither is known."""

    name: str
    dtype: str
    shape: list[int | str]
    about: str = ""


Kind = Literal["scores", "probabilities", "values", "embedding", "indices", "state"]


class OutputKind(Record):
    """What an output is, which decides how an answer of lower precision is judged (registry/evidence/kinds.py).

    `axis` is the class axis of scores and probabilities, the channel axis of values and states, the axis of an
    embedding's vectors; null where the output has none. `beside` is, for indices, the output with the sorted scores
    that belong to them. `limit` is params.yaml's own, null where it names none. `reason` says where the kind comes
    from: params.yaml, or what was seen of the answers. `by_quality` is whether the model's own measure depends on this
    output, so that the measure judges it.
    """

    output: str
    kind: Kind
    axis: int | None = None
    beside: str = ""
    limit: float | None = None
    reason: str = ""
    by_quality: bool = False

    def __str__(self) -> str:
        along = "" if self.axis is None else f" along axis {self.axis}"
        beside = f" in the order of {self.beside}" if self.beside else ""
        return f"{self.output} holds {self.kind}{along}{beside}: {self.reason}"


class OutputFidelity(Record):
    """One output of a graph of lower precision, judged on the evaluation samples by one measure of its kind.

    `value` is what was lost, from 0 (the same answers) upwards, in the unit that `measure` names; `low` and `high`
    bound its 95 % confidence interval over the samples. It `holds` where the interval does not lie wholly above
    `limit`. `reason` names the class or channel that decided, or says why the output could not be measured.
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
        """The share of the limit that is used up; over 1 does not mean that it is broken, where samples are few."""
        return self.value / self.limit if self.limit else (0.0 if self.value == 0 else float("inf"))

    def __str__(self) -> str:
        at = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.output} ({self.kind}): {self.measure} {self.value:.3g}{at}, "
            f"95 % interval {self.low:.3g} to {self.high:.3g}, limit {self.limit:g}"
        )


class Expectation(Record):
    """One Great Expectations result: what was expected of which column, what was seen instead."""

    split: str
    expectation: str
    column: str = ""
    success: bool
    observed: str = ""


class Split(Record):
    name: str
    samples: int
    file: FileDigest


class GraphInfo(Record):
    """What an ONNX file says of itself."""

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
    """One way of exporting that was tried, and why it fell, where it did."""

    strategy: str
    status: Status
    reason: str = ""


class OutputComparison(Record):
    """One output of one case against the reference.

    Differences are absolute in the output's own unit. `max_ulp` counts the representable numbers between the two,
    `snr_db` is 10 log10 of the reference's power over the difference's (infinite where nothing differs), `agreement`
    the share of rows with the same largest entry; each is null where it means nothing. `share_out` is the share of
    elements out of tolerance, `out_abs` the largest difference among these. `error` and `reference_error` are the
    largest distances of the answer and of the reference from the reference computed in float64: where `error` is no
    larger, the answer is as good as it gets.
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
    """One case: what was fed (by name and seed, so that it can be fed again) and what came of it. A `probe` informs:
    it feeds what nobody promised that the model can take, and fails nothing. `signal` is what ended the process."""

    case: str
    seed: int
    sizes: dict[str, int]
    probe: bool = False
    verdict: CaseVerdict
    reason: str = ""
    signal: str = ""
    outputs: list[OutputComparison] = []

    @property
    def failed(self) -> bool:
        return self.verdict != "ok" and not self.probe


class FirstDivergence(Record):
    """Where two computations part: the first value that differs by more than rounding explains.

    `value` is its name in the graph, `module` the path of the PyTorch module that it came from, `source` the line,
    relative to the repository. `difference` is the largest one there, absolute; `scale` the largest magnitude of what
    was expected.
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
    """A graph made from the plain export: how, what it weighs, and whether it still computes the same.

    Over the evaluation set: `agreement` is the least share of top-1 answers that equal the reference's (null where no
    output holds scores), `quality` the model's own measure, higher is better, `snr_db` the signal to noise against the
    reference, `cosine` that of the worst sample, and `fidelity` what each output lost, by its kind. `float_layers` are
    the values whose nodes stay in float though the technique quantises their kind.
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
    reduction: float | None = Field(default=None, description="1 - size / size before; negative where it grew")
    compression: float | None = Field(default=None, description="size before / size")
    parity: list[CaseResult] = []
    divergence: FirstDivergence | None = None
    quality: float | None = None
    agreement: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    fidelity: list[OutputFidelity] = []


class LayerCost(Record):
    """What quantising one layer alone costs: signal to noise of its output, its inputs being those of the float graph,
    over the calibration set. Infinite where it changes nothing."""

    value: str
    operator: str
    module: str = ""
    snr_db: float


class TradePoint(Record):
    """The costliest `float_layers` layers left in float: what the graph computes then, over the evaluation set."""

    float_layers: int
    quality: float | None = None
    snr_db: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    holds: bool


class TradeOff(Record):
    """A variant that broke the quality budget: its layers, the costliest first, and what leaving some in float gave
    back. `chosen` is the variant with the fewest in float that holds the budget, empty where none does."""

    variant: str
    chosen: str = ""
    layers: list[LayerCost]
    points: list[TradePoint]


class Latency(Record):
    """Latencies of one variant at one size, in milliseconds. p90 is null under 64 samples, p95 under 130
    and p99 under 662, and `withheld` says so: MLPerf's early-stopping rule states no such percentile from fewer.
    `drift` is by how much the last rounds were slower than the first (0 where there is no trend, null where there
    are too few rounds to tell)."""

    size: str
    sizes: dict[str, int]
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
    """Latency relative to the plain export's, each one's in its fastest rounds: under 1 is faster. `low` and `high`
    bound the 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float


class SweepPoint(Record):
    """One size of a batch sweep: p50 in milliseconds, throughput in items of the first dimension per second."""

    sizes: dict[str, int]
    p50_ms: float
    throughput: float


class Callers(Record):
    """So many threads calling one session at once: each call's latency, and items per second of all together."""

    callers: int
    samples: int
    p50_ms: float
    p95_ms: float | None
    throughput: float


class Scenarios(Record):
    """What was measured beside the single stream. `knee` are the sizes from which on larger batches gain nothing worth
    mentioning; `cold_start_ms` is the time from the start of a process to its first answer."""

    sweep: list[SweepPoint] = []
    knee: dict[str, int] | None = None
    callers: list[Callers] = []
    cold_start_ms: float | None = None


class Measurement(Record):
    """One variant on one runtime of one machine: what it computed there and how long it took.

    A variant is a graph with session options: `graph` names the one whose file it is, where that is not its own name.
    What left the search before it was measured in full is "not attempted", with the reason and, if it was screened,
    the ratios that it had then.
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
    latencies: list[Latency] = []
    ratios: dict[str, Ratio] = Field(default={}, description="per size; `all` is the geometric mean over sizes")
    scenarios: Scenarios | None = None


class Machine(Record):
    """Where it was measured. Two machines with equal descriptions are expected to give comparable numbers."""

    cpu: str
    instruction_sets: list[str]
    cores: int
    memory_gb: int
    accelerators: list[str] = []
    system: str


class RuntimeState(Record):
    """One runtime of params.yaml on this host: usable, or why not and what installs it.

    `node_share` is the share of a small graph's nodes that ran on the provider, by the graph's precision (0 where it
    cannot run it). `int8_exact` is whether sums of uint8 x int8 products are exact: without VNNI they saturate.
    """

    runtime: str
    usable: bool
    providers: list[str] = []
    version: str = ""
    reason: str = ""
    node_share: dict[str, float] = {}
    int8_exact: bool | None = None


class Choice(Record):
    """Why a variant was chosen or not, in words.

    `quality_drop` is what its answers lost by `quality_measure` (the model's own, or that of the output that decided),
    `quality_budget` what they may lose. `on_front` is whether no other variant within the budget is at least as good in
    latency, quality and size at once, and better in one.
    """

    variant: str
    runtime: str
    chosen: bool
    on_front: bool = False
    reason: str
    ratio: Ratio | None = None
    quality_drop: float | None = None
    quality_budget: float | None = None
    quality_measure: str = ""


class Winner(Record):
    """What is served on one runtime: the files and the session options of the variant chosen there, and its p50 in
    milliseconds there (geometric mean over sizes)."""

    variant: str
    runtime: str
    provider: str
    p50_ms: float
    files: list[FileDigest]
    options: SessionOptions = SessionOptions()


def worst_by_output(cases: list[CaseResult]) -> dict[str, OutputComparison]:
    """Per output, the comparison with the largest absolute difference over all cases but the probes."""
    worst: dict[str, OutputComparison] = {}
    for case in cases:
        if case.probe:
            continue
        for comparison in case.outputs:
            best = worst.get(comparison.output)
            if comparison.max_abs is not None and (best is None or comparison.max_abs > (best.max_abs or 0.0)):
                worst[comparison.output] = comparison
    return worst
