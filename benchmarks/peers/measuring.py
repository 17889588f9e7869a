"""Time one architecture's module, plain export, Onward's choice and the peers' files side by side.

Each file runs in its own worker process. All get the same tensors, in rounds of random order. All are judged with the
same cases and budget, by the code of Onward's benchmark stage.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.making import Outcome
from benchmarks.peers.recipes import OPENVINO, TORCH
from benchmarks.peers.results import EAGER, ONWARD, Entry, Result, Speed
from onward.registry.evidence.records import PLAIN, REFERENCE, FileDigest, Ratio, Winner, by_speed
from onward.registry.evidence.reports import BenchmarkReport, ExportReport, SelectReport, load
from onward.registry.evidence.session_options import CPU, OPENVINO_NATIVE
from onward.registry.host.environments import python
from onward.stages.config import paths
from onward.stages.config.load import read
from onward.stages.config.schema import ModelParams
from onward.stages.measuring.race import BenchmarkedVariant, Feed, Questions, Turn, blank, race, turns_of
from onward.stages.measuring.samples import Samples
from onward.stages.measuring.statistics import undisturbed
from onward.stages.parity.budget import Judgement
from onward.stages.parity.cases import Source, own_cases
from onward.stages.parity.evaluate import Arrays, outputs_over, quality_of
from onward.stages.parity.reference import reference_worker, split
from onward.stages.parity.reference_answers import recorded_answers, recorded_kinds, recorded_outputs
from onward.stages.parity.sizes import size_key, typical_sizes
from onward.stages.workers.worker import Tensors, Worker

# Typical sizes that are not measured, because no target refers to them.
LEFT_OUT = {"minilm": ({"batch": 8, "sequence": 16},)}
TURN_SECONDS = 0.1
WARMUP = 5
NATIVE = "openvino-native"
ORIGINALS = (EAGER, TORCH)
FEW_ROUNDS = 3


class Lenient(Worker):
    """A worker that feeds zeros to inputs without a value.

    A peer that exports the model itself keeps the input token_type_ids, which is zero for a single sentence.
    """

    def _write(self, inputs: Tensors) -> str:
        first = next(iter(inputs.values()))
        missing = [name for name, *_ in self.loaded.get("inputs", ()) if name not in inputs]
        return super()._write({**inputs, **{name: np.zeros_like(first) for name in missing}})


def measure(
    architecture: str,
    outcomes: Sequence[Outcome],
    rounds: int,
    changed: Callable[[Arrays, Arrays], float] | None = None,
) -> Result:
    """Judge and time all files of an architecture.

    Its stages must have run in the project `onward.stages.config.paths.root()`.

    Args:
        architecture: Its name in params.yaml.
        outcomes: What the peers made.
        rounds: Number of rounds of the race.
        changed: The share of task outcomes that differ between two sets of outputs.
    """
    settings = read().models[architecture]
    feeds = feeds_of(architecture, settings)
    questions, reference_quality = questions_of(architecture, settings)
    with ExitStack() as stack:
        competitors = dict(_competitors(architecture, settings, outcomes, stack))
        for name, competitor in competitors.items():
            if name not in ORIGINALS:
                questions.judge(competitor)
        plain = competitors[PLAIN]
        order, kept = random.Random(settings.seed), Samples()
        standing = [competitor for competitor in competitors.values() if competitor.standing]
        least = dict.fromkeys(feeds, Turn(TURN_SECONDS / 4, WARMUP))
        for _ in race(standing, feeds, least, range(1), order, kept, "warm-up"):
            pass
        lasting = turns_of(plain.p50_ms, feeds, TURN_SECONDS, 1)
        for competitor in standing:
            competitor.rounds.clear()
        for number in race(
            standing, feeds, lasting, range(rounds), order, kept, "single stream", session_lifetime_rounds=1
        ):
            print(f"{architecture}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        judgement = Judgement.of(reference_quality, settings, questions.kinds)
        select = load(SelectReport, paths.build(architecture, "select") / "report.json")
        best = by_speed(select.winners)[0]
        ours = _name(best)
        share = None
        if changed and competitors[ours].standing:
            answers = outputs_over(competitors[ours].worker.run, settings, questions.samples)
            share = changed(questions.wanted, answers)
        entries = [
            _entry(name, one, competitors, competitors[ours], judgement, feeds) for name, one in competitors.items()
        ]
    failed = [
        Entry(name=f"{o.peer} {o.recipe}", peer=o.peer, reason=o.reason, seconds=o.seconds)
        for o in outcomes
        if not o.file
    ]
    by_name = {f"{o.peer} {o.recipe}": o for o in outcomes}
    for entry in entries:
        if entry.name == TORCH:
            entry.peer = TORCH
        if entry.name in by_name:
            entry.peer, entry.seconds = by_name[entry.name].peer, by_name[entry.name].seconds
    chosen = next(winner for winner in select.winners if winner.runtime == "cpu")
    return Result(
        architecture=architecture,
        sizes=list(feeds),
        rounds=rounds,
        chosen=f"{chosen.variant} ({chosen.options})",
        best=ours,
        released=f"{best.variant} on {best.runtime} ({best.options})",
        changed=share,
        machine=_machine(architecture),
        entries=[*entries, *failed],
    )


def fidelity_of_fastest(architecture: str, outcomes: Sequence[Outcome]) -> float | None:
    """The worst sample's cosine of the peers' fastest file, by a few rounds on this machine; None without a file.

    It is the limit for Onward. It cannot be fixed in advance, because int8 computes different numbers on each machine.
    """
    settings = read().models[architecture]
    feeds = feeds_of(architecture, settings)
    questions, _ = questions_of(architecture, settings)
    with ExitStack() as stack:
        peers = [competitor for _, competitor in _peers(settings, outcomes, stack)]
        for competitor in peers:
            questions.judge(competitor)
        lasting = dict.fromkeys(feeds, Turn(TURN_SECONDS, WARMUP))
        for _ in race(peers, feeds, lasting, range(FEW_ROUNDS), random.Random(0), Samples(), "peers alone"):
            pass
        fastest = min((c for c in peers if c.standing), key=undisturbed_p50, default=None)
        return None if fastest is None else fastest.result.cosine


def undisturbed_p50(competitor: BenchmarkedVariant) -> float:
    """The latency in the undisturbed rounds: the geometric mean over sizes, in milliseconds."""
    return float(np.exp(np.mean([undisturbed(np.log(competitor.medians(size))) for size in competitor.rounds])))


def questions_of(architecture: str, settings: ModelParams) -> tuple[Questions, float | None]:
    """The cases and samples for all files, and the quality of the original's answers."""
    samples = split(architecture, "evaluation")
    questions = Questions(
        architecture, settings, recorded_answers(architecture, settings), recorded_outputs(architecture), samples,
        recorded_kinds(architecture),
    )  # fmt: skip
    return questions, quality_of(settings, questions.wanted, samples, f"models.{architecture}")


def feeds_of(architecture: str, settings: ModelParams) -> dict[str, Feed]:
    """Valid tensors for each size, the same for all files."""
    custom = own_cases(settings)
    source = Source(settings.inputs, custom)
    return {
        size_key(sizes): Feed(sizes, source.tensors(sizes, np.random.default_rng(settings.seed)))
        for sizes in typical_sizes(settings.free_dims)
        if sizes not in LEFT_OUT.get(architecture, ())
    }


def _competitors(
    architecture: str, settings: ModelParams, outcomes: Sequence[Outcome], stack: ExitStack
) -> list[tuple[str, BenchmarkedVariant]]:
    export = load(ExportReport, paths.build(architecture, "export") / "report.json")
    select = load(SelectReport, paths.build(architecture, "select") / "report.json")
    timeout = settings.verify.timeout
    plain = paths.build(architecture, "export") / export.files[0].path

    def competitor(
        name: str, precision: str, worker: Worker, files: list[FileDigest]
    ) -> tuple[str, BenchmarkedVariant]:
        return name, BenchmarkedVariant(blank(name, "cpu", CPU, precision, files=files), stack.enter_context(worker))

    made = [competitor(PLAIN, "float32", Worker.onnx(plain, "the plain export", timeout=timeout), export.files)]
    if settings.is_torch:
        for name in (EAGER, TORCH):
            original = reference_worker(architecture, settings, compiled=name == TORCH)
            made.append((name, BenchmarkedVariant(blank(REFERENCE, "cpu", name, "float32"), original)))
            stack.enter_context(original)
    for winner in select.winners:
        worker = Worker.onnx(
            paths.root() / winner.files[0].path,
            "Onward's choice",
            winner.provider,
            options=winner.options,
            python=python(winner.runtime, paths.root()),
            timeout=timeout,
        )
        blanked = blank(
            ONWARD, winner.runtime, winner.provider, _precision(architecture, winner.variant), files=winner.files
        )
        made.append((_name(winner), BenchmarkedVariant(blanked, stack.enter_context(worker))))
    return made + _peers(settings, outcomes, stack)


def _peers(
    settings: ModelParams, outcomes: Sequence[Outcome], stack: ExitStack
) -> list[tuple[str, BenchmarkedVariant]]:
    made = []
    for outcome in outcomes:
        if outcome.file:
            name = f"{outcome.peer} {outcome.recipe}"
            runtime, provider = (NATIVE, OPENVINO_NATIVE) if outcome.peer == OPENVINO else ("cpu", CPU)
            at, interpreter = Path(outcome.file), python(runtime, paths.root())
            given = Worker.onnx(at, name, provider, python=interpreter, timeout=settings.verify.timeout)
            lenient = Lenient(given.label, given.command, given.load, given.timeout, given.memory_bytes)
            files = [FileDigest.of(path, at.parent) for path in (at, at.with_suffix(".bin")) if path.is_file()]
            blanked = blank(name, runtime, provider, "int8", files=files)
            made.append((name, BenchmarkedVariant(blanked, stack.enter_context(lenient))))
    return made


def _name(winner: Winner) -> str:
    return ONWARD if winner.runtime == "cpu" else f"{ONWARD} on {winner.runtime}"


def _precision(architecture: str, variant: str) -> str:
    report = load(BenchmarkReport, paths.build(architecture, "benchmark") / "report.json")
    return next((m.precision for m in report.measurements if m.variant == variant), "float32")


def _entry(
    name: str,
    competitor: BenchmarkedVariant,
    competitors: dict[str, BenchmarkedVariant],
    ours: BenchmarkedVariant,
    judgement: Judgement,
    feeds: dict[str, Feed],
) -> Entry:
    result = competitor.result
    entry = Entry(name=name, reason=result.reason if not competitor.standing else "")
    entry.quality, entry.cosine, entry.snr_db = result.quality, result.cosine, result.snr_db
    entry.size_mb = sum(file.size_bytes for file in result.files) / 1e6 or None
    if not competitor.standing:
        return entry
    if name not in ORIGINALS:
        entry.faults = "; ".join(judgement.faults(result))
    p50_ms = competitor.p50_ms
    entry.p50_ms = {size: p50_ms[size] for size in feeds}
    entry.to_plain = _speeds(competitor, competitors[PLAIN])
    if ours.standing:
        entry.onward_to_it = _speeds(ours, competitor)
    return entry


def _speeds(one: BenchmarkedVariant, other: BenchmarkedVariant) -> dict[str, Speed]:
    if not other.standing:
        return {}
    return {size: _speed(found) for size, found in one.ratios(other).items()}


def _speed(found: Ratio) -> Speed:
    return Speed(value=found.value, low=found.low, high=found.high)


def _machine(architecture: str) -> dict[str, Any]:
    report = load(BenchmarkReport, paths.build(architecture, "benchmark") / "report.json")
    return report.machine.model_dump() if report.machine else {}
