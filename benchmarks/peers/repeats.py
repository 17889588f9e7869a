"""Repeat the whole selection, and compare each choice with a long run of all candidates."""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.peers import measuring, pipeline
from benchmarks.peers.measuring import undisturbed_p50
from benchmarks.peers.results import Repeat
from onward.registry.evidence.records import FileDigest, Winner
from onward.registry.evidence.reports import BenchmarkReport, SelectReport, load
from onward.registry.evidence.session_options import CPU, SessionOptions
from onward.stages.benchmark import candidates
from onward.stages.config import paths
from onward.stages.config.load import read
from onward.stages.measuring.race import BenchmarkedVariant, Turn, blank, race
from onward.stages.measuring.samples import Samples
from onward.stages.parity.budget import Judgement
from onward.stages.workers.worker import Worker

# The long run has this many times the rounds of a race between peers.
LONG = 3
TURN_SECONDS = 0.1
WARMUP = 10


def measure(place: Path, architecture: str, times: int, rounds: int) -> list[Repeat]:
    """Measure and select an architecture `times` times, and compare each choice with the fastest candidate.

    A long run times every candidate within the budget and every choice side by side.
    """
    choices: list[Winner] = []
    for number in range(times):
        print(f"{architecture}: selection {number + 1} of {times}", file=sys.stderr, flush=True)
        pipeline.repro(place, architecture, ("benchmark", "select"), force=True)
        select = load(SelectReport, paths.build(architecture, "select") / "report.json")
        choices.append(next(winner for winner in select.winners if winner.runtime == "cpu"))
    truth = _long_run(architecture, choices, rounds * LONG)
    best = min(truth.values())
    return [
        Repeat(variant=f"{choice.variant} ({choice.options})", behind=truth[_key(choice)] / best - 1)
        for choice in choices
    ]


def _key(choice: Winner) -> tuple[str, SessionOptions]:
    return choice.variant, choice.options


def _long_run(architecture: str, choices: list[Winner], rounds: int) -> dict[tuple[str, SessionOptions], float]:
    """The undisturbed latency in milliseconds, by variant and session options."""
    settings = read().models[architecture]
    questions, reference_quality = measuring.questions_of(architecture, settings)
    feeds = measuring.feeds_of(architecture, settings)
    field: dict[tuple[str, SessionOptions], tuple[str, list[FileDigest]]] = {}
    for name, precision, files in candidates(architecture):
        field[name, SessionOptions()] = precision, files
    report = load(BenchmarkReport, paths.build(architecture, "benchmark") / "report.json")
    precisions = {m.variant: m.precision for m in report.measurements}
    for choice in choices:
        field[_key(choice)] = precisions.get(choice.variant, "float32"), choice.files
    with ExitStack() as stack:
        accepted = []
        for (name, options), (precision, files) in field.items():
            made = blank(name, "cpu", CPU, precision, files=files, options=options)
            worker = Worker.onnx(paths.root() / files[0].path, name, options=options, timeout=settings.verify.timeout)
            competitor = BenchmarkedVariant(made, stack.enter_context(worker))
            questions.judge(competitor)
            judgement = Judgement.of(reference_quality, settings, questions.kinds)
            faults = list(judgement.faults(made))
            if competitor.standing and not faults:
                accepted.append(competitor)
            else:
                worker.close()
        lasting = dict.fromkeys(feeds, Turn(TURN_SECONDS, WARMUP))
        for number in race(
            accepted, feeds, lasting, range(rounds), random.Random(0), Samples(), "long run", session_lifetime_rounds=1
        ):
            if number % 10 == 9:
                print(f"{architecture}: long run, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        return {(c.result.variant, c.result.options): undisturbed_p50(c) for c in accepted if c.standing}
