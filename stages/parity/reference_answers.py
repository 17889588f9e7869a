"""The test cases of a model and the original's answers, which the verify stage records for all later stages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from onward.registry import npz
from onward.registry.evidence.records import OutputKind
from onward.registry.evidence.reports import VerifyReport, load
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams, Verify
from onward.stages.parity.cases import Case, Generator, Source, Tensors, all_cases, resized
from onward.stages.parity.check import Expected, recall
from onward.stages.parity.evaluate import Arrays
from onward.stages.parity.reference import split
from onward.stages.parity.sizes import Sizes, example_sizes


def _custom(model: str, settings: ModelParams) -> Generator | None:
    """The function that `cases` names in params.yaml, if there is one."""
    found: Generator | None = resolve(settings.cases, f"models.{model}.cases") if settings.cases else None
    return found


def cases(model: str, settings: ModelParams, known: Verify) -> Iterator[Case]:
    """Generate all cases of a model (`all_cases`).

    Args:
        model: Name of the model.
        settings: Its settings.
        known: The numbers of draws and samples.
    """
    custom = _custom(model, settings)
    samples = split(model, "evaluation")
    return all_cases(settings.inputs, settings.dims, known.draws, settings.seed, custom, samples, known.samples)


def real_inputs(model: str, settings: ModelParams) -> Callable[[Case], Tensors]:
    """Make a function that returns valid inputs of a case's sizes.

    They come from the model's own `cases` if there are any, else from real samples, cut or repeated.
    """
    custom = _custom(model, settings)
    samples = functools.cache(lambda: split(model, "evaluation"))  # read on first use: most models refuse no case

    def real(case: Case) -> Tensors:
        if custom is not None:
            return Source(settings.inputs, custom).tensors(case.sizes, np.random.default_rng(case.seed))
        return resized(settings.inputs, samples(), case.sizes)

    return real


def measured_inputs(model: str, settings: ModelParams, sizes: Sizes, expected: Iterable[Expected]) -> Tensors:
    """Inputs of these sizes to measure latency with: random ones, or real ones if the original refuses random ones.

    Args:
        model: Name of the model.
        settings: Its settings.
        sizes: Size of each named dimension.
        expected: The original's recorded answers.
    """
    if any(item.refused for item in expected):
        return resized(settings.inputs, split(model, "evaluation"), sizes)
    return Source(settings.inputs, _custom(model, settings)).tensors(sizes, np.random.default_rng(settings.seed))


def real_example(model: str, settings: ModelParams) -> Tensors:
    """Real evaluation samples, cut or repeated to the sizes of the exporters' example (`example_sizes`)."""
    return resized(settings.inputs, split(model, "evaluation"), example_sizes(settings.dims))


def recorded_answers(model: str, settings: ModelParams) -> list[Expected]:
    """The original's answer to every case, as recorded by the verify stage.

    Raises:
        NotReady: The verify stage has not run with these cases.
    """
    return recall(paths.build(model, "verify") / "reference.npz", cases(model, settings, settings.verify))


def recorded_outputs(model: str) -> Arrays:
    """The original's outputs over all evaluation samples, by name, as recorded by the verify stage."""
    return npz.arrays(paths.build(model, "verify") / "samples.npz")


def recorded_kinds(model: str) -> list[OutputKind]:
    """The kind of each output, as determined by the verify stage."""
    return load(VerifyReport, paths.build(model, "verify") / "report.json").kinds
