"""What the page shows of one model, section by section, as texts and numbers that the template only lays out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from onward.registry.evidence.records import (
    PLAIN,
    CaseResult,
    FileDigest,
    Measurement,
    OutputComparison,
    OutputFidelity,
    Ratio,
    TensorSpec,
    Winner,
    by_speed,
    worst_by_output,
    worst_size,
)
from onward.registry.evidence.reports import REPORTS, Report
from onward.registry.evidence.uncertainty import is_wide, speed, too_noisy
from onward.registry.gates import builtin
from onward.registry.log.entries import GateResult
from onward.registry.report import charts
from onward.registry.report.charts import Chart
from onward.registry.report.distributions import distributions
from onward.registry.report.material import Material
from onward.registry.report.tradeoff import tradeoff_chart
from onward.registry.report.variants import VariantRow, variant_rows
from onward.registry.report.wording import counted, megabytes, milliseconds, number, percent
from onward.registry.tracking.metrics import version_tags

# Signal-to-noise ratios in dB that divide the shades of the heat map.
_SHADES = (120.0, 100.0, 80.0, 60.0, 40.0)
SHADE_NAMES = ("at least 120 dB", "100 to 120 dB", "80 to 100 dB", "60 to 80 dB", "40 to 60 dB", "below 40 dB")


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, its value, and what it is compared with."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class HeatCell:
    """One output of one case: its text, its shade from 0 to 5, and its verdict; `bad` if it is not ok."""

    text: str
    shade: int
    verdict: str
    bad: bool = False


@dataclass(frozen=True)
class HeatRow:
    """One case, or one variant: its cells in the order of the outputs, or a note that takes their place."""

    name: str
    note: str
    cells: tuple[HeatCell | None, ...]
    bad: bool = False


@dataclass(frozen=True)
class OperatorRow:
    """The number of operators of one type before and after."""

    operator: str
    before: int
    after: int | None


@dataclass(frozen=True)
class Fact:
    """A named value of the provenance or of the comparison; `amount` is the value as a number, if it is one."""

    name: str
    value: str
    amount: float | None = None


@dataclass
class Sections:
    """The sections of one model's report.

    Attributes:
        material: What they are made of.
        key: A text that makes the identifiers of charts unique on a page with several models.
    """

    material: Material
    key: str = "a"
    rows: list[VariantRow] = field(init=False)

    def __post_init__(self) -> None:
        self.evidence = self.material.evidence
        self.published = self.material.published
        self.rows = variant_rows(self.evidence)

    @property
    def title(self) -> str:
        """What is reported on."""
        return self.material.title

    @cached_property
    def reports(self) -> list[Report]:
        """The reports in the pipeline's order."""
        found: list[Report] = [getattr(self.evidence, stage) for stage in REPORTS if stage != "publish"]
        return [*found, *([self.published] if self.published else [])]

    @cached_property
    def failed(self) -> list[Report]:
        """The reports of failed stages."""
        return [report for report in self.reports if report.status == "failed"]

    @cached_property
    def chosen(self) -> VariantRow | None:
        """The released variant: the winner on the preferred runtime."""
        wanted = (self.evidence.select.variant, self.evidence.select.runtime)
        return next((row for row in self.rows if (row.name, row.runtime) == wanted), None)

    @cached_property
    def measurement(self) -> Measurement | None:
        """The measurement of the released variant."""
        row = self.chosen
        found = self.evidence.benchmark.measurements
        return next((one for one in found if row and (one.variant, one.runtime) == (row.name, row.runtime)), None)

    # Verdict

    @property
    def tone(self) -> str:
        """`bad` if a stage failed, `good` if all passed, else `open`."""
        if self.failed:
            return "bad"
        return "good" if self.chosen and not self.material.missing else "open"

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        if self.failed:
            return f"Not released: {self.failed[0].stage} failed"
        if self.chosen is None:
            return "Not finished"
        name = "the plain export" if self.chosen.name == PLAIN else self.chosen.name
        if self.material.missing:
            return f"Chosen, but not published: {name} on {self.chosen.runtime}"
        return f"Released: {name} on {self.chosen.runtime}"

    @cached_property
    def sentences(self) -> list[str]:
        """Why the verdict is what it is."""
        if self.failed:
            return [f"{report.stage}: {report.reason or 'no reason recorded'}" for report in self.failed]
        found = [f"{self.chosen.reason[:1].upper()}{self.chosen.reason[1:]}."] if self.chosen else []
        for reason in dict.fromkeys(self.material.missing.values()):
            stages = [stage for stage, why in self.material.missing.items() if why == reason]
            found.append(f"{', '.join(stages)}: {reason}")
        winners = by_speed(self.evidence.select.winners)
        if (
            self.chosen
            and winners
            and (winners[0].variant, winners[0].runtime)
            != (
                self.chosen.name,
                self.chosen.runtime,
            )
        ):
            found.append(f"Where {winners[0].runtime} is installed, {winners[0].variant} on it is the fastest.")
        return found

    @property
    def ties(self) -> list[str]:
        """The variants that another run may choose instead, on the same runtime."""
        return [
            row.label for row in self.rows if row.state == "tied" and self.chosen and row.runtime == self.chosen.runtime
        ]

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Unusual facts that are not errors, each with its stage."""
        return [(report.stage, text) for report in self.reports for text in getattr(report, "findings", [])]

    @cached_property
    def tiles(self) -> list[Tile]:
        """The key figures of the released variant."""
        return list(self._tiles())

    def _tiles(self) -> Iterator[Tile]:
        row, measurement = self.chosen, self.measurement
        if row is None or measurement is None:
            return
        if row.name == PLAIN:
            yield Tile("Speed", "1", "this is the plain export")
        elif row.ratio is not None:
            interval = f" (95 % interval {_times(row.ratio)})" if not is_wide(row.ratio) or too_noisy(row.ratio) else ""
            yield Tile("Speed", row.speed, f"times as fast as the plain export{interval}")
        worst = worst_size(measurement.ratios)
        if worst and len(measurement.latencies) > 1 and row.name != PLAIN:
            yield Tile(
                "Worst size", speed(measurement.ratios[worst]), f"times as fast at {worst}, where it gains least"
            )
        first = measurement.latencies[0] if measurement.latencies else None
        if first:
            yield Tile("Latency", milliseconds(first.p50_ms), f"median at {first.size}")
        yield from self._quality_tiles(row)
        if row.size_bytes:
            exported = sum(file.size_bytes for file in self.evidence.export.files)
            yield Tile("Size", row.size_text, f"plain export: {megabytes(exported)}" if exported else "")
        if self.published and self.published.version:
            yield Tile("Version", str(self.published.version), f"sha256 {self.published.sha256[:12]}")

    def _quality_tiles(self, row: VariantRow) -> Iterator[Tile]:
        reference = self.evidence.benchmark.reference
        if row.quality is not None:
            before = f"original: {number(reference.quality, 4)}" if reference and reference.quality is not None else ""
            yield Tile("Quality", number(row.quality, 4), before)
        if row.drop is not None and row.budget is not None:
            value = "none" if row.drop <= 0.001 * row.budget else number(row.drop, 2)
            measure = row.measure if row.measure not in ("", "quality") else "of quality"
            yield Tile("Loss", value, f"{measure}; {number(row.budget)} allowed ({row.used_text or 'exceeded'} used)")

    # Charts

    @cached_property
    def tradeoff(self) -> Chart | None:
        """The chart of latency, quality and size."""
        return tradeoff_chart(self.rows)

    @property
    def not_drawn(self) -> int:
        """The number of variants without a latency, which the chart cannot contain."""
        return sum(row.ratio is None for row in self.rows)

    @cached_property
    def latency(self) -> list[Chart]:
        """The distributions of latencies per runtime and size."""
        winners = {(winner.variant, winner.runtime) for winner in self.evidence.select.winners}
        return charts.distribution_charts(distributions(self.evidence, self.material.distributions), winners)

    @cached_property
    def scenarios(self) -> list[Chart]:
        """The batch sweep and the concurrent callers."""
        labels = {(row.name, row.runtime): row.label for row in self.rows}
        series = [
            (labels[one.variant, one.runtime], one.scenarios)
            for one in self.evidence.benchmark.measurements
            if one.scenarios is not None
        ]
        return [chart for chart in (charts.sweep_chart(series), charts.callers_chart(series)) if chart]

    @property
    def cold_starts(self) -> list[str]:
        """The time from the start of a process to its first answer, and the peak of memory, for each variant."""
        found = []
        for one in self.evidence.benchmark.measurements:
            if one.scenarios and one.scenarios.cold_start_ms is not None:
                memory = f", {number(one.peak_memory_mb)} MB of memory at most" if one.peak_memory_mb else ""
                cold = f"{milliseconds(one.scenarios.cold_start_ms)} to the first answer"
                found.append(f"{one.variant} on {one.runtime}: {cold}{memory}")
        return found

    @cached_property
    def sensitivity(self) -> list[Chart]:
        """The cost of each layer, for each variant that exceeded the budget."""
        tradeoffs = enumerate(self.evidence.quantize.tradeoffs)
        found = (charts.sensitivity_chart(one, f"layers-{place}") for place, one in tradeoffs)
        return [chart for chart in found if chart]

    # Parity and fidelity

    @property
    def outputs(self) -> list[str]:
        """The outputs in the order of the heat map's columns."""
        found = (output.output for case in self.evidence.verify.cases for output in case.outputs)
        declared = (spec.name for spec in self.evidence.export.graph.outputs) if self.evidence.export.graph else ()
        return list(dict.fromkeys([*declared, *found]))

    @property
    def case_heat(self) -> list[HeatRow]:
        """The heat map of the plain export by case and output."""
        return [self._case_row(case) for case in self.evidence.verify.cases]

    def _case_row(self, case: CaseResult) -> HeatRow:
        sizes = ", ".join(f"{name} {size}" for name, size in case.sizes.items())
        found = {output.output: output for output in case.outputs}
        note = " · ".join(filter(None, [sizes, "probe, cannot fail" if case.probe else ""]))
        if case.verdict != "ok" and (case.reason or not found):
            note = f"{note}: {case.verdict}{': ' if case.reason else ''}{case.reason}"
        cells = tuple(_cell(found[name]) if name in found else None for name in self.outputs)
        return HeatRow(case.case, note, cells, case.failed)

    @property
    def variant_heat(self) -> list[HeatRow]:
        """The worst case of each output, for each float32 variant that was measured."""
        rows = []
        for one in self.evidence.benchmark.measurements:
            if one.precision == "float32" and one.parity:
                worst = worst_by_output(one.parity)
                cells = tuple(_cell(worst[name]) if name in worst else None for name in self.outputs)
                bad = any(case.failed for case in one.parity)
                rows.append(HeatRow(f"{one.variant} ({one.runtime})", counted(len(one.parity), "case"), cells, bad))
        return rows

    @property
    def parity_summary(self) -> str:
        """The result of the comparison in a sentence."""
        verify = self.evidence.verify
        judged = [case for case in verify.cases if not case.probe]
        if not judged:
            return verify.reason or "No case was compared."
        passed = sum(not case.failed for case in judged)
        limits = f"rtol {verify.rtol:g}, atol {verify.atol:g}" if verify.rtol is not None and verify.atol else ""
        tolerance = f" within the tolerance ({limits})" if limits else ""
        against = f" of {verify.reference}" if verify.reference else ""
        return f"{passed} of {counted(len(judged), 'case')} agree with the answers{against}{tolerance}."

    @property
    def fidelity(self) -> list[tuple[OutputFidelity, str]]:
        """What each output of the released variant lost, with the value in words."""
        return [(one, _lost(one)) for one in (self.measurement.fidelity if self.measurement else [])]

    # Graph

    @property
    def operators(self) -> list[OperatorRow]:
        """The operators of the export and of the released graph, the most frequent first."""
        graph = self.evidence.export.graph
        before = graph.operators if graph else {}
        after = self.published.operators if self.published else {}
        names = sorted(before.keys() | after.keys(), key=lambda name: (-before.get(name, 0), -after.get(name, 0), name))
        return [OperatorRow(name, before.get(name, 0), after.get(name, 0) if after else None) for name in names]

    @property
    def inputs(self) -> list[TensorSpec]:
        """The inputs, as params.yaml documents them, or else as the graph declares them."""
        graph = self.evidence.export.graph
        return (self.published.inputs if self.published else []) or (graph.inputs if graph else [])

    @property
    def answers(self) -> list[tuple[TensorSpec, str]]:
        """The outputs, each with its kind."""
        graph = self.evidence.export.graph
        kinds = {kind.output: str(kind).removeprefix(f"{kind.output} contains ") for kind in self.evidence.verify.kinds}
        specs = (self.published.outputs if self.published else []) or (graph.outputs if graph else [])
        return [(spec, kinds.get(spec.name, "")) for spec in specs]

    # Gates and provenance

    @cached_property
    def gates(self) -> list[GateResult]:
        """The requirements that this evidence meets or not; empty if no variant was chosen."""
        if self.measurement is None or not any(choice.chosen for choice in self.evidence.select.choices):
            return []
        return list(builtin.judge(["parity", "quality", "data", "latency"], version_tags(self.evidence), None))

    @cached_property
    def provenance(self) -> list[Fact]:
        """Where everything comes from: commit, digests, host, versions."""
        return [fact for fact in self._provenance() if fact.value]

    def _provenance(self) -> Iterator[Fact]:
        context: Mapping[str, str] = self.published.context if self.published else {}
        dirty = {"true": ", with uncommitted changes", "unknown": ", changes unknown"}.get(
            context.get("git_dirty", ""), ""
        )
        commit = context.get("git_commit", "")
        yield Fact("commit", f"{commit}{dirty}" if commit else "")
        if self.published:
            yield Fact("version", str(self.published.version or ""))
            yield Fact("version's sha256", self.published.sha256)
            yield Fact("MLflow run", self.published.run_id)
        yield Fact("training", self.evidence.train.how)
        yield Fact("weights", _digest(self.evidence.train.weights))
        for split in self.evidence.data.splits:
            yield Fact(f"{split.name} data", f"{counted(split.samples, 'sample')}, {_digest(split.file)}")
        yield Fact("export", self.evidence.export.how)
        for file in self.evidence.export.files:
            yield Fact("exported file", _digest(file))
        for winner in self.evidence.select.winners:
            for file in winner.files:
                yield Fact(f"chosen for {winner.runtime}", _winner(winner, file))
        graph = self.evidence.export.graph
        if graph:
            yield Fact("opsets", ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in graph.opsets.items()))
            yield Fact("parameters", f"{graph.parameters:,}")
        yield from self._host()
        for name, value in context.items():
            if name.startswith("version_"):
                yield Fact(name.removeprefix("version_"), value)

    def _host(self) -> Iterator[Fact]:
        benchmark = self.evidence.benchmark
        machine = benchmark.machine
        if machine:
            yield Fact("processor", machine.cpu)
            yield Fact("instruction sets", ", ".join(machine.instruction_sets))
            memory = f"{counted(machine.cores, 'core')}, {machine.memory_gb} GB of memory"
            yield Fact("host", f"{memory}, {machine.system}")
            yield Fact("accelerators", ", ".join(machine.accelerators) or "none")
        for state in benchmark.runtimes:
            yield Fact(f"runtime {state.runtime}", state.version if state.usable else f"not measured: {state.reason}")
        if benchmark.rounds:
            search = f", after a search of {number(benchmark.search_seconds)} s" if benchmark.search_seconds else ""
            yield Fact("measured in", f"{counted(benchmark.rounds, 'round')}{search}")

    @cached_property
    def figures(self) -> list[Fact]:
        """The figures that a comparison of two versions is about."""
        return list(self._figures())

    def _figures(self) -> Iterator[Fact]:
        row, measurement = self.chosen, self.measurement
        yield Fact("verdict", self.headline)
        if row:
            yield Fact("speed against the plain export", row.speed, 1 / row.ratio.value if row.ratio else None)
            for size, value in row.p50_ms.items():
                yield Fact(f"median latency at {size}", milliseconds(value), value)
            if row.quality is not None:
                yield Fact("quality", number(row.quality, 4), row.quality)
            yield Fact("loss, share of what is allowed", row.used_text, row.used)
            if row.size_bytes:
                yield Fact("size", row.size_text, float(row.size_bytes))
        if measurement and measurement.peak_memory_mb:
            yield Fact("peak memory", f"{number(measurement.peak_memory_mb)} MB", measurement.peak_memory_mb)
        for one in self.evidence.benchmark.headroom[:1]:
            yield Fact("share of the host's peak", percent(one.share), one.share)
        for operator in self.operators:
            if operator.after is not None:
                yield Fact(f"operator {operator.operator}", str(operator.after), float(operator.after))
        yield from self.provenance


def _times(ratio: Ratio) -> str:
    return f"{1 / ratio.high:.3g} to {1 / ratio.low:.3g}"


def _cell(output: OutputComparison) -> HeatCell:
    bad = output.verdict != "ok"
    text = output.verdict if output.max_abs is None else f"{output.max_abs:.1e}" if output.max_abs else "0"
    signal = output.snr_db
    if signal is None:
        shade = 0 if output.max_abs == 0 else 2
    elif math.isnan(signal):
        shade = len(_SHADES)
    else:
        shade = next((place for place, limit in enumerate(_SHADES) if signal >= limit), len(_SHADES))
    detail = "" if signal is None else f", {number(signal)} dB"
    return HeatCell(text, shade, f"{output.verdict}{detail}{': ' if output.reason else ''}{output.reason}", bad)


def _lost(one: OutputFidelity) -> str:
    """A loss, with its interval if that is wide."""
    if not one.value:
        return f"0 (up to {number(one.high, 2)})" if one.high else "0"
    if one.high - one.low <= 0.2 * abs(one.value):
        return number(one.value)
    return f"about {number(one.value, 2)} ({number(one.low, 2)} to {number(one.high, 2)})"


def _digest(file: FileDigest | None) -> str:
    return "" if file is None else f"{file.path}, {megabytes(file.size_bytes)}, sha256 {file.sha256}"


def _winner(winner: Winner, file: FileDigest) -> str:
    return f"{winner.variant}: {_digest(file)}"
