"""Measures the outputs and latency of variants on this machine, for each runtime.

The search comes first. Every variant is screened in a few short rounds (stages/measuring/screening.py). The outputs of
the fastest are judged until there are enough acceptable ones, and the best of those are tried with other session
options. Then comes the race: the finalists, the plain export and the original run in separate workers, in rounds of
random order, so that drifts in the machine's speed affect all alike. Parity and quality come from the same worker as
the latency, because int8 graphs compute different numbers on other CPUs.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from onward.registry.evidence.headroom import Headroom
from onward.registry.evidence.records import PLAIN, REFERENCE, FileDigest, Latency, Machine, Measurement, RuntimeState
from onward.registry.evidence.reports import BenchmarkReport, ExportReport, OptimizeReport, QuantizeReport, load
from onward.registry.evidence.session_options import OPENVINO_NATIVE, SessionOptions
from onward.registry.host.environments import python
from onward.registry.host.runtimes import AUTO, BFLOAT16, PROVIDERS
from onward.registry.text import printable
from onward.stages import command, host, progress
from onward.stages.config import paths
from onward.stages.config.layout import Layout
from onward.stages.config.load import section
from onward.stages.config.load import settings as load_settings
from onward.stages.config.schema import Dim, ModelParams
from onward.stages.measuring import scenarios
from onward.stages.measuring.headroom import headroom
from onward.stages.measuring.race import (
    LONG_CALL,
    BenchmarkedVariant,
    Feed,
    Questions,
    Turn,
    blank,
    figures,
    race,
    race_is_decided,
    runs_out_of_tolerance,
    session_lifetime_of,
    turns_of,
)
from onward.stages.measuring.samples import Samples
from onward.stages.measuring.screening import Deadline, screen, why_out
from onward.stages.measuring.statistics import quotient
from onward.stages.measuring.system_log import SystemLog
from onward.stages.measuring.tuning import tune
from onward.stages.parity.budget import Judgement, ceiling_faults
from onward.stages.parity.evaluate import quality_of
from onward.stages.parity.reference import reference_worker, split
from onward.stages.parity.reference_answers import (
    measured_inputs,
    recorded_answers,
    recorded_kinds,
    recorded_outputs,
)
from onward.stages.parity.sizes import size_key, size_weight, typical_sizes
from onward.stages.reports import blocked
from onward.stages.transforms.builder import placed
from onward.stages.workers.circumstances import required
from onward.stages.workers.worker import Worker, WorkerFailure

COMPILED = "torch.compile"
COMPILED_BFLOAT16 = "torch.compile bfloat16"

# Number of finalists that are tried with other session options. Options that help one help the others, too, and each
# finalist takes ten processes.
TUNED = 1
# Share of a full turn that screening and trials of options use.
SHORT = 0.5
# Milliseconds. Options are tried at the sizes at which a call of the plain export is no longer than this.
QUICK = 10.0
# The short names of the precisions that OpenVINO computes float32 graphs in, for names of variants.
SHORT_NAMES = {"bfloat16": "bf16", "float16": "f16"}
NO_HALF = (
    "float16 and bfloat16 graphs for the GPU were not made, because `runtimes: auto` makes the same graphs on every "
    "machine: name cuda under runtimes in params.yaml"
)
# Calls before the first turn of a screening or a trial.
FEW_WARMUPS = 2


def benchmark(model: str, folder: Path) -> BenchmarkReport:
    """Search the variants and measure the best ones, the plain export and the original on this machine.

    Writes build/MODEL/benchmark/: report.json, samples.parquet, which contains every latency, and system.json, which
    contains the machine's load meanwhile.
    """
    settings = section(model, "benchmark")
    here, _ = host.load()
    reason = blocked(model, "verify", "optimize", "quantize")
    if reason:
        return BenchmarkReport(model=model, status="not attempted", reason=reason)
    machine_log = SystemLog(folder)
    with machine_log:
        report = _measured(model, folder, settings, here)
    report.started, report.ended = machine_log.started, machine_log.ended
    return report


def _measured(model: str, folder: Path, settings: ModelParams, here: host.Host) -> BenchmarkReport:
    questions = Questions(
        model, settings, recorded_answers(model, settings), recorded_outputs(model), split(model, "evaluation"),
        recorded_kinds(model),
    )  # fmt: skip
    bench = _Bench(questions, here.machine)
    report = BenchmarkReport(
        model=model,
        status="passed",
        machine=here.machine,
        runtimes=here.runtimes,
        rounds=settings.benchmark.rounds,
        reference=bench.reference.result,
        compiled=bench.compiled.result if bench.compiled else None,
        compiled_bfloat16=bench.compiled_bfloat16.result if bench.compiled_bfloat16 else None,
    )
    with bench.workers:
        for state in here.runtimes:
            if not state.usable:
                print(printable(f"benchmark {model}: {state.runtime}: {state.reason}"), file=sys.stderr)
                continue
            report.measurements += bench.measure(state)
        report.headroom = bench.headroom(report.measurements)
    bench.samples.save(folder)
    on_gpu = {"cuda", "tensorrt"} & {m.runtime for m in report.measurements}
    if on_gpu and AUTO in load_settings("benchmark", model).runtimes:
        bench.findings.append(NO_HALF)
    report.findings = [*bench.findings, *bench.faster_originals(report.measurements)]
    report.search_seconds = round(bench.search_seconds, 1)
    broken = [m for m in report.measurements if m.variant == PLAIN and m.status != "passed"]
    if not report.measurements:
        unusable = "; ".join(f"{state.runtime}: {state.reason}" for state in here.runtimes)
        report.status, report.reason = "failed", f"none of the runtimes of params.yaml is usable here: {unusable}"
    elif len(broken) == len({m.runtime for m in report.measurements}):
        report.status = "failed"
        report.reason = "; ".join(f"the plain export on {m.runtime}: {m.reason}" for m in broken)
    else:
        report.findings += [_without_plain(m) for m in broken]
    return report


def _without_plain(plain: Measurement) -> str:
    """What was measured on a runtime whose plain export cannot be chosen."""
    if plain.latencies:
        return f"{plain.runtime}: the plain export cannot be chosen, and other variants are judged: {plain.reason}"
    return f"{plain.runtime}: nothing was measured: the plain export failed: {plain.reason}"


def candidates(model: str) -> list[tuple[str, str, list[FileDigest]]]:
    """List the variants to measure.

    Returns:
        Name, precision and files of each variant that passed, the plain export first.
    """
    plain = load(ExportReport, paths.build(model, "export") / "report.json")
    found = [(PLAIN, "float32", placed(plain.files, model, "export"))]
    made = [
        *load(OptimizeReport, paths.build(model, "optimize") / "report.json").variants,
        *load(QuantizeReport, paths.build(model, "quantize") / "report.json").variants,
    ]
    found += [(v.name, v.precision, v.files) for v in made if v.status == "passed"]
    return found


def faster_originals(originals: Iterable[Measurement], fit: Iterable[Measurement]) -> Iterator[str]:
    """Describe each PyTorch original that is faster than every acceptable ONNX variant.

    Args:
        originals: PyTorch eager, and the module under torch.compile.
        fit: The variants within the budget.

    Yields:
        One sentence per original, if the whole 95 % interval of the comparison says so.
    """
    best = min((m for m in fit if m.host_ratios), key=lambda m: m.host_ratios["all"].value, default=None)
    for original in originals:
        if best is None or original.status != "passed" or not original.ratios:
            continue
        against = quotient(original.ratios["all"], best.host_ratios["all"])
        if against.high < 1:
            name = "PyTorch eager" if original.variant == REFERENCE else original.variant
            exact = "" if original.cosine is None else f" (worst cosine {original.cosine:.5f})"
            yield (
                f"{name}{exact} is {1 / against.value:.2f} times as fast as the fastest acceptable ONNX variant, "
                f"{best.variant} on {best.runtime} (95 % interval {1 / against.high:.2f} to {1 / against.low:.2f})"
            )


def variants(model: str, state: RuntimeState) -> list[Measurement]:
    """List the variants to measure on a runtime, without figures, the plain export first.

    If the runtime can compute float32 graphs in a lower precision, each of them is also a variant in that precision,
    which is judged like a graph of that precision.
    """
    found = []
    provider = PROVIDERS[state.runtime]
    options = SessionOptions() if provider == OPENVINO_NATIVE else required()
    for name, precision, files in candidates(model):
        found.append(blank(name, state.runtime, provider, precision, files=files, options=options))
        for lower in state.precisions if precision == "float32" else ():
            lowered = options | SessionOptions.model_validate({"precision": lower})
            short = f"{name}-{SHORT_NAMES[lower]}"
            found.append(blank(short, state.runtime, provider, lower, graph=name, files=files, options=lowered))
    return found


class _Bench:
    """The measurements of one model. The original runs with the variants of the first runtime only."""

    def __init__(self, questions: Questions, machine: Machine) -> None:
        self.questions, self.model, self.settings = questions, questions.model, questions.settings
        self.workers = ExitStack()
        self.samples = Samples()
        self.order = random.Random(self.settings.seed)
        self.findings: list[str] = []
        self.search_seconds = 0.0
        self.baseline: BenchmarkedVariant | None = None
        dims = self.settings.free_dims
        self.feeds = {size_key(sizes): self._feed(sizes) for sizes in typical_sizes(dims)}
        self.weights = {size_key(sizes): size_weight(dims, sizes) for sizes in typical_sizes(dims)}
        torch = self.settings.is_torch
        self.reference = self._original(REFERENCE, "PyTorch eager" if torch else PROVIDERS["cpu"])
        self.reference.result.quality = quality_of(
            self.settings, questions.wanted, questions.samples, f"models.{self.model}", questions.wanted
        )
        wanted = torch and self.settings.benchmark.torch_compile
        self.compiled = self._original(COMPILED, COMPILED, compiled=True) if wanted else None
        self.compiled_bfloat16 = self._compiled_bfloat16(machine) if wanted else None
        self._originals = list(filter(None, (self.reference, self.compiled, self.compiled_bfloat16)))

    def measure(self, state: RuntimeState) -> list[Measurement]:
        """Search the variants on one runtime and run the race; returns a measurement of every variant."""
        competitors = [self._competitor(variant) for variant in variants(self.model, state)]
        plain = competitors[0]
        self.questions.judge(plain)
        self._bar_from_choice(plain)
        if not plain.standing:
            return [plain.result]
        begun = time.monotonic()
        calls = self._first_calls(plain)
        finalists = self._search(plain, competitors[1:], calls, state.precisions) if calls else []
        self.search_seconds += time.monotonic() - begun
        baseline = plain if self.baseline is None else self._beside(self.baseline, state.runtime)
        self._race(plain, finalists, baseline, calls)
        for competitor in [plain, *finalists, *self._originals]:
            figures(competitor, plain, self.feeds)
            if baseline.standing and competitor.standing and competitor.is_graph:
                competitor.result.host_ratios = competitor.ratios(baseline)
        if self.baseline is None and plain.standing:
            self.baseline = plain
        elif baseline is not plain:
            baseline.worker.close()
        self._originals = []
        self._scenarios([plain, *finalists])
        self._drifts(plain)
        for competitor in [*competitors, *finalists]:
            competitor.worker.close()
        if plain.barred:
            plain.fail(plain.barred)
        tuned = [finalist.result for finalist in finalists if finalist not in competitors]
        return [competitor.result for competitor in competitors] + tuned

    def _bar_from_choice(self, plain: BenchmarkedVariant) -> None:
        """Let a plain export that is out of tolerance on another runtime take part in the race, but not be chosen.

        Every other variant is judged by itself there: lower precision, for example, by its answers to the evaluation
        samples. It is timed against the plain export.
        """
        result = plain.result
        if not plain.standing and self.baseline is not None and runs_out_of_tolerance(result):
            plain.barred, result.status, result.reason = result.reason, "passed", ""

    def _beside(self, baseline: BenchmarkedVariant, runtime: str) -> BenchmarkedVariant:
        """The first runtime's plain export once more, to run in the race of another runtime."""
        first = baseline.result
        name = f"{first.variant} beside {runtime}"
        return self._competitor(blank(name, first.runtime, first.provider, first.precision, files=first.files))

    def _first_calls(self, plain: BenchmarkedVariant) -> dict[str, float]:
        """Milliseconds of one call of the plain export, by size; empty if a call failed."""
        try:
            return {size: plain.worker.measure(feed.tensors, 0, 1)[0] for size, feed in self.feeds.items()}
        except WorkerFailure as failure:
            plain.fail(failure.reason)
            return {}

    def _search(
        self,
        plain: BenchmarkedVariant,
        others: list[BenchmarkedVariant],
        calls: Mapping[str, float],
        precisions: Sequence[str],
    ) -> list[BenchmarkedVariant]:
        """The variants to measure in full; sets the reason of all others.

        `calls` are the milliseconds of a call of the plain export, by size. `precisions` are the lower ones that the
        runtime can compute in.
        """
        bench = self.settings.benchmark
        deadline = Deadline.after(bench.search_seconds)
        ranked = screen(
            others, plain, self._feeds_under(LONG_CALL, calls), Turn(bench.round_seconds * SHORT, FEW_WARMUPS),
            bench.finalists, deadline, self.order, self.samples,
        )  # fmt: skip
        finalists: list[BenchmarkedVariant] = []
        for competitor in ranked:
            result = competitor.result
            faster = {finalist.name: finalist.result.ratios["all"].value for finalist in finalists}
            out = why_out(result.ratios["all"].value, faster, bench.finalists, deadline)
            if out:
                result.status = "not attempted"
                result.reason = result.reason or out
                competitor.worker.close()
                continue
            progress.show(f"{result.runtime}: checking the outputs", competitor.name, seconds=deadline.left)
            self.questions.judge(competitor)
            if competitor.standing:
                result.reason = "; ".join(self._faults(result))
            if competitor.standing and not result.reason:
                finalists.append(competitor)
            else:
                competitor.worker.close()
        finalists += self._tuned([plain, *finalists], self._feeds_under(QUICK, calls), deadline, precisions)
        if deadline.over:
            self.findings.append(
                f"{plain.result.runtime}: the search reached its limit of {bench.search_seconds:g} s before it had "
                "tried everything; raise benchmark.search_seconds in params.yaml"
            )
        return finalists

    def _tuned(
        self,
        finalists: list[BenchmarkedVariant],
        feeds: Mapping[str, Feed],
        deadline: Deadline,
        precisions: Sequence[str],
    ) -> list[BenchmarkedVariant]:
        """New variants of the best finalists, with the session options that help them."""
        plain, found = finalists[0], []
        free = [finalist for finalist in finalists if not finalist.barred]
        for finalist in sorted(free, key=lambda c: c.ratio(plain).value)[:TUNED]:
            if deadline.over:
                break
            progress.show(f"{finalist.result.runtime}: session options", finalist.name, seconds=deadline.left)
            short = turns_of(finalist.p50_ms, feeds, self.settings.benchmark.round_seconds * SHORT, FEW_WARMUPS)
            tuned = tune(finalist, self._start, feeds, short, deadline, self.order, self.samples, precisions)
            if tuned is not None:
                self.workers.callback(tuned.worker.close)
                self.questions.judge(tuned)
                found.append(tuned)
        return found

    def _feeds_under(self, milliseconds: float, calls: Mapping[str, float]) -> dict[str, Feed]:
        """Feeds of the sizes at which a call of the plain export is this short, or of the quickest size.

        Long calls rank variants no better. Options change the work around the products, which is negligible in long
        calls. The race uses all sizes.
        """
        limit = max(milliseconds, min(calls.values()))
        return {size: self.feeds[size] for size, call in calls.items() if call <= limit}

    def _race(
        self,
        plain: BenchmarkedVariant,
        finalists: list[BenchmarkedVariant],
        baseline: BenchmarkedVariant,
        calls: Mapping[str, float],
    ) -> None:
        """Run rounds of all, then more of the variants alone until the race is decided: no original can be chosen.

        `baseline` is the first runtime's plain export. It takes part, so that runtimes can be compared.
        """
        bench, variants = self.settings.benchmark, [plain, *finalists]
        together = [*variants, *([] if baseline is plain else [baseline]), *self._originals]
        lasting = turns_of({**calls, **plain.p50_ms}, self.feeds, bench.round_seconds, bench.warmup_runs)
        session_lifetime_rounds = session_lifetime_of(together, lasting)

        def raced(of: list[BenchmarkedVariant], rounds: Iterable[int]) -> Iterator[None]:
            for number in race(
                of, self.feeds, lasting, rounds, self.order, self.samples, "single stream", session_lifetime_rounds
            ):
                if number + 1 < bench.rounds:
                    progress.show(shown, number=number + 2, of=bench.rounds)
                yield

        for competitor in together:
            competitor.rounds.clear()
            competitor.warmups.clear()
        shown = f"{plain.result.runtime}: timing {len(together)} variants in turns, round"
        progress.show(shown, number=1, of=bench.rounds)
        begun = time.monotonic()
        for _ in raced(together, range(bench.rounds)):
            pass
        if not race_is_decided(plain, finalists):
            words = f"{plain.result.runtime}: more rounds of {len(variants)} variants, because intervals are wide"
            progress.show(words, seconds=bench.race_seconds - (time.monotonic() - begun))
            for _ in raced(variants, itertools.count(bench.rounds)):
                if time.monotonic() - begun > bench.race_seconds or race_is_decided(plain, finalists):
                    break

    def _scenarios(self, competitors: list[BenchmarkedVariant]) -> None:
        """Measure the other scenarios for the plain export and the fastest finalist."""
        standing = [c for c in competitors if c.standing and c.result.ratios]
        fastest = sorted(standing, key=lambda c: c.result.ratios["all"].value)[:1]
        for runner in [c for c in competitors if c.standing and (c in fastest or c is competitors[0])]:
            progress.show(f"{runner.result.runtime}: batch sweep, callers and cold start", runner.name)
            try:
                runner.result.scenarios = scenarios.measure(
                    runner, self._start(runner.result), self.feeds, self._feed, self._batch(),
                    self.settings.benchmark, self.samples,
                )  # fmt: skip
            except WorkerFailure as failure:
                runner.fail(failure.reason)

    def _drifts(self, plain: BenchmarkedVariant) -> None:
        """Report drifts of the plain export as findings."""
        for latency in plain.result.latencies:
            if latency.drift:
                self.findings.append(f"{plain.result.runtime}: {_drift_words(latency)}")

    def _faults(self, result: Measurement) -> list[str]:
        """How a variant breaks the budget."""
        settings = self.settings
        judgement = Judgement.of(self.reference.result.quality, settings, self.questions.kinds)
        return [*judgement.faults(result), *ceiling_faults(result, settings.budget)]

    def _batch(self) -> tuple[str, Dim] | None:
        """Name and range of the batch dimension; None if it is fixed."""
        size = Layout.of(self.settings).size
        return (size, self.settings.dims[size]) if isinstance(size, str) else None

    def _feed(self, sizes: dict[str, int]) -> Feed:
        """Valid inputs of these sizes."""
        return Feed(sizes, measured_inputs(self.model, self.settings, sizes, self.questions.expected))

    def _original(
        self, name: str, provider: str, compiled: bool = False, precision: str = "float32"
    ) -> BenchmarkedVariant:
        worker = self.workers.enter_context(reference_worker(self.model, self.settings, compiled, precision))
        return BenchmarkedVariant(blank(name, "cpu", provider, precision), worker, weights=self.weights)

    def _compiled_bfloat16(self, machine: Machine) -> BenchmarkedVariant:
        """The original under torch.compile in bfloat16, with the loss of its answers."""
        found = self._original(COMPILED_BFLOAT16, COMPILED, compiled=True, precision="bfloat16")
        if not BFLOAT16 & set(machine.instruction_sets):
            found.result.status, found.result.reason = "not attempted", "this CPU does not compute in bfloat16"
            return found
        try:
            self.questions.weigh(found)
        except WorkerFailure as failure:
            found.fail(failure.reason)
        return found

    def faster_originals(self, measurements: Iterable[Measurement]) -> Iterator[str]:
        """Describe each original that is faster than every acceptable ONNX variant."""
        originals = filter(None, (self.reference, self.compiled, self.compiled_bfloat16))
        if not self.settings.is_torch:
            return iter(())
        return faster_originals([one.result for one in originals], self._acceptable(measurements))

    def headroom(self, measurements: Iterable[Measurement]) -> list[Headroom]:
        """Compare the fastest acceptable variant with the peaks of this host, at each size."""
        fit = [m for m in self._acceptable(measurements) if m.latencies and m.ratios]
        if not fit:
            return []
        winner = min(fit, key=lambda m: (m.host_ratios or m.ratios)["all"].value)
        progress.show("peaks of this host")
        weights = sum((paths.root() / file.path).stat().st_size for file in winner.files)
        plain = paths.build(self.model, "export") / "model.onnx"
        with self._start(winner) as worker:
            return headroom(winner, weights, plain, self.feeds, worker, self._of_file)

    def _acceptable(self, measurements: Iterable[Measurement]) -> list[Measurement]:
        """The measurements of variants within the budget."""
        return [m for m in measurements if m.status == "passed" and not self._faults(m)]

    def _of_file(self, path: Path, result: Measurement) -> Worker:
        """A worker of another file on the runtime, and with the session options, of a measurement."""
        return self._worker(path, result, f"a peak on {result.runtime}")

    def _competitor(self, result: Measurement) -> BenchmarkedVariant:
        return BenchmarkedVariant(result, self.workers.enter_context(self._start(result)), weights=self.weights)

    def _start(self, result: Measurement) -> Worker:
        """A worker for a measurement's file and session options; its process starts with the first call."""
        return self._worker(paths.root() / result.files[0].path, result, f"{result.variant} on {result.runtime}")

    def _worker(self, path: Path, result: Measurement, label: str) -> Worker:
        return Worker.onnx(
            path,
            label,
            result.provider,
            options=result.options,
            python=python(result.runtime, paths.root()),
            timeout=self.settings.verify.timeout,
        )


def _drift_words(latency: Latency) -> str:
    assert latency.drift is not None
    direction = "slower" if latency.drift > 0 else "faster"
    return (
        f"the machine became {abs(latency.drift):.0%} {direction} during the rounds at {latency.size}: ratios remain "
        "valid, because they use the fastest rounds of each variant; absolute latencies may not"
    )


if __name__ == "__main__":
    command.run("benchmark", benchmark)
