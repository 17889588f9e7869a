"""What a model is asked, and what the original answers: recorded once, by the verify stage, for all later ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from onward.registry import npz
from onward.registry.evidence.records import OutputKind
from onward.registry.evidence.reports import VerifyReport, load
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams, Verify
from onward.stages.parity.cases import Case, Source, Tensors, all_cases, resized
from onward.stages.parity.check import Expected, recall
from onward.stages.parity.evaluate import Arrays
from onward.stages.parity.reference import split
from onward.stages.parity.sizes import example_sizes


def cases(model: str, settings: ModelParams, known: Verify) -> Iterator[Case]:
    """All cases of a model: seeded draws, fills and real evaluation samples, over typical and odd sizes."""
    custom = resolve(settings.cases, f"models.{model}.cases") if settings.cases else None
    samples = split(model, "evaluation")
    return all_cases(settings.inputs, settings.dims, known.draws, settings.seed, custom, samples, known.samples)


def real_inputs(model: str, settings: ModelParams) -> Callable[[Case], Tensors]:
    """Gives valid inputs of a case's sizes: of the model's own `cases` where it has them, else real samples, cut or
    repeated."""
    custom = resolve(settings.cases, f"models.{model}.cases") if settings.cases else None
    samples = functools.cache(lambda: split(model, "evaluation"))  # most models refuse nothing

    def real(case: Case) -> Tensors:
        if custom is not None:
            return Source(settings.inputs, custom).tensors(case.sizes, np.random.default_rng(case.seed))
        return resized(settings.inputs, samples(), case.sizes)

    return real


def real_example(model: str, settings: ModelParams) -> Tensors:
    """Real evaluation samples of the sizes that exporters are given (exporters.example)."""
    return resized(settings.inputs, split(model, "evaluation"), example_sizes(settings.dims))


def recorded_answers(model: str, settings: ModelParams) -> list[Expected]:
    """What the original answers to every case, as the verify stage recorded it."""
    return recall(paths.build(model, "verify") / "reference.npz", cases(model, settings, settings.verify))


def recorded_outputs(model: str) -> Arrays:
    """The original's outputs over all evaluation samples, as the verify stage recorded them."""
    return npz.arrays(paths.build(model, "verify") / "samples.npz")


def recorded_kinds(model: str) -> list[OutputKind]:
    """What each output is, as the verify stage found it."""
    return load(VerifyReport, paths.build(model, "verify") / "report.json").kinds
