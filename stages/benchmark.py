"""Measures every variant on this machine, per runtime: what it computes here, and how long it takes.

All variants of a runtime are loaded at once, each in a worker of its own, and timed in rounds of random order, so
that a machine whose speed drifts treats them alike. Parity and quality come from the same worker as the latency:
int8 bytes compute different numbers on other CPUs.
"""

from __future__ import annotations

import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from registry.evidence import BenchmarkReport, ExportReport, OptimizeReport, QuantizeReport, load
from registry.vocabulary import PLAIN, REFERENCE, FileDigest, Measurement, RuntimeState
from stages import command, host, paths, statistics
from stages.params import resolve, section
from stages.parity.answers import recorded_answers, recorded_outputs
from stages.parity.cases import Source, Tensors
from stages.parity.check import Expected, check, crashed, sentence
from stages.parity.compare import agreement
from stages.parity.evaluate import Arrays, batch_size, outputs_over, quality_of
from stages.parity.fidelity import fidelity
from stages.parity.sizes import size_key, typical_sizes
from stages.reference import reference_worker, split
from stages.reports import blocked
from stages.runtime.environments import PROVIDERS, python
from stages.runtime.pool import Worker, WorkerFailure
from stages.settings import ModelParams
from stages.variants import placed, plain_words

# A worker's threads spin for a moment after a run; the next one starts when they have gone to sleep.
REST_SECONDS = 0.003


@dataclass
class Contestant:
    """A variant under measurement: its worker, and its latencies as rounds[size][round]."""

    result: Measurement
    worker: Worker
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def standing(self) -> bool:
        return self.result.status == "passed"

    def fail(self, reason: str) -> None:
        self.result.status = "failed"
        self.result.reason = plain_words(reason)


def benchmark(model: str, folder: Path) -> BenchmarkReport:
    """Measure every variant and the original on this machine, in interleaved rounds, at each typical size.

    Writes build/MODEL/benchmark/report.json.
    """
    settings = section(model, "benchmark")
    here, _ = host.load()
    reason = blocked(model, "verify")
    if reason:
        return BenchmarkReport(model=model, status="not attempted", reason=reason)
    samples = split(model, "evaluation")
    feeds = {size_key(sizes): (sizes, _feed(model, settings, sizes)) for sizes in typical_sizes(settings.dims)}
    measured: list[Measurement] = []
    reference: Measurement | None = None
    with ExitStack() as stack:
        worker = stack.enter_context(reference_worker(model, settings))
        original = Contestant(_blank(REFERENCE, "cpu", "float32"), worker)
        original.result.provider = "PyTorch eager" if settings.is_torch else PROVIDERS["cpu"]
        expected = recorded_answers(model, settings)
        wanted = recorded_outputs(model)
        original.result.quality = quality_of(settings, wanted, samples, f"models.{model}")
        for state in here.runtimes:
            if not state.usable:
                print(f"benchmark {model}: {state.runtime}: {state.reason}", file=sys.stderr)
                continue
            contestants = [
                Contestant(_blank(name, state.runtime, precision, files), stack.enter_context(worker))
                for name, precision, files, worker in _workers(model, settings, state)
            ]
            for contestant in contestants:
                _judge(model, settings, contestant, expected, wanted, samples)
            together = [*contestants, *([original] if reference is None else [])]
            _race(model, settings, together, feeds)
            measured += [_figures(contestant, contestants[0], settings, feeds) for contestant in contestants]
            if reference is None:
                reference = _figures(original, contestants[0], settings, feeds)
            for contestant in contestants:
                contestant.worker.close()
    plain_failed = [m for m in measured if m.variant == PLAIN and m.status != "passed"]
    unusable = "none of the runtimes of params.yaml is usable here: " + "; ".join(
        f"{state.runtime}: {state.reason}" for state in here.runtimes
    )
    return BenchmarkReport(
        model=model,
        status="passed" if measured and not plain_failed else "failed",
        reason=f"the plain export on {plain_failed[0].runtime}: {plain_failed[0].reason}"
        if plain_failed
        else ("" if measured else unusable),
        machine=here.machine,
        runtimes=here.runtimes,
        rounds=settings.benchmark.rounds,
        reference=reference,
        measurements=measured,
    )


def candidates(model: str) -> list[tuple[str, str, list[FileDigest]]]:
    """(name, precision, files) of every variant worth measuring, the plain export first."""
    plain = load(ExportReport, paths.build(model, "export") / "report.json")
    found = [(PLAIN, "float32", placed(plain.files, model, "export"))]
    made = [
        *load(OptimizeReport, paths.build(model, "optimize") / "report.json").variants,
        *load(QuantizeReport, paths.build(model, "quantize") / "report.json").variants,
    ]
    found += [(v.name, v.precision, v.files) for v in made if v.status == "passed"]
    return found


def _workers(model: str, settings: ModelParams, state: RuntimeState) -> list[tuple[str, str, list[FileDigest], Worker]]:
    provider = PROVIDERS[state.runtime]
    return [
        (
            name,
            precision,
            files,
            Worker.onnx(
                paths.root() / files[0].path,
                f"{name} on {state.runtime}",
                provider,
                python=python(state.runtime),
                timeout=settings.verify.timeout,
            ),
        )
        for name, precision, files in candidates(model)
    ]


def _blank(name: str, runtime: str, precision: str, files: list[FileDigest] | None = None) -> Measurement:
    return Measurement(
        variant=name,
        runtime=runtime,
        provider=PROVIDERS[runtime],
        precision=precision,
        status="passed",
        files=files or [],
    )


def _feed(model: str, settings: ModelParams, sizes: dict[str, int]) -> Tensors:
    custom = resolve(settings.cases, f"models.{model}.cases") if settings.cases else None
    return Source(settings.inputs, custom).tensors(sizes, np.random.default_rng(settings.seed))


def _judge(
    model: str, settings: ModelParams, contestant: Contestant, expected: list[Expected], wanted: Arrays, samples: Arrays
) -> None:
    """What the variant computes on this machine; float32 graphs are held to the tolerance, others to agreement."""
    result, worker = contestant.result, contestant.worker
    try:
        result.session_ms = worker.start()["session_ms"]
        result.parity = check(worker, expected, settings.tolerance)
        got = outputs_over(worker.run, settings, samples, batch_size(settings))
        result.quality = quality_of(settings, got, samples, f"models.{model}")
        first = next(iter(settings.outputs))
        result.agreement = agreement(wanted[first], got[first])
        result.snr_db, result.cosine = fidelity(wanted, got)
        nodes = worker.profile({name: samples[name][: batch_size(settings)] for name in settings.inputs})
        result.node_share = {provider: count / sum(nodes.values()) for provider, count in nodes.items()}
    except WorkerFailure as failure:
        contestant.fail(failure.reason)
        return
    failed = sentence(result.parity)
    if failed and (result.precision == "float32" or crashed(result.parity)):
        contestant.fail(failed)
    if not any(share > 0 for provider, share in result.node_share.items() if provider == result.provider):
        contestant.fail(f"fell back: no node ran on {result.provider}")


def _race(
    model: str, settings: ModelParams, contestants: list[Contestant], feeds: dict[str, tuple[dict[str, int], Any]]
) -> None:
    """Rounds of random order over all variants and sizes; the first round of each warms up."""
    order = random.Random(settings.seed)
    turns = [(contestant, size) for contestant in contestants for size in feeds]
    for number in range(settings.benchmark.rounds):
        order.shuffle(turns)
        for contestant, size in turns:
            if not contestant.standing:
                continue
            warmup = settings.benchmark.warmup_runs if number == 0 else 1
            try:
                found = contestant.worker.measure(feeds[size][1], settings.benchmark.round_seconds, warmup)
            except WorkerFailure as failure:
                contestant.fail(failure.reason)
                continue
            contestant.rounds.setdefault(size, []).append(found)
            time.sleep(REST_SECONDS)
        if number % 4 == 3:
            print(f"benchmark {model}: round {number + 1} of {settings.benchmark.rounds}", file=sys.stderr, flush=True)
    for contestant in contestants:
        if contestant.standing:
            try:
                contestant.result.session_ms = contestant.worker.start()["session_ms"]
                contestant.result.peak_memory_mb = contestant.worker.peak_memory_mb()
            except WorkerFailure as failure:
                contestant.fail(failure.reason)


def _figures(
    contestant: Contestant, plain: Contestant, settings: ModelParams, feeds: dict[str, tuple[dict[str, int], Any]]
) -> Measurement:
    result = contestant.result
    if not contestant.standing:
        return result
    warmup = settings.benchmark.warmup_runs + settings.benchmark.rounds - 1
    for size, (sizes, _) in feeds.items():
        latencies = [value for found in contestant.rounds[size] for value in found]
        result.latencies.append(statistics.summarize(latencies, size, sizes, warmup))
    if plain.standing:
        logs = {size: statistics.log_ratios(contestant.rounds[size], plain.rounds[size]) for size in feeds}
        result.ratios = {size: statistics.ratio(values) for size, values in logs.items()}
        result.ratios["all"] = statistics.ratio(np.mean(list(logs.values()), axis=0))
    return result


if __name__ == "__main__":
    command.run("benchmark", benchmark)
