"""The test cases of a model and the original's answers, which the verify stage records for all later stages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from onward.registry import npz
from onward.registry.evidence.records import OutputKind
from onward.registry.evidence.reports import VerifyReport, load
from onward.registry.evidence.sample_axes import to_front
from onward.stages.config import paths
from onward.stages.config.layout import Layout
from onward.stages.config.schema import ModelParams, Verify
from onward.stages.parity.cases import Case, Source, Tensors, all_cases, own_cases, resized
from onward.stages.parity.check import Expected, recall
from onward.stages.parity.evaluate import Arrays
from onward.stages.parity.reference import split
from onward.stages.parity.sequences import Sequences
from onward.stages.parity.sizes import Sizes, example_sizes


def cases(model: str, settings: ModelParams, known: Verify) -> Iterator[Case]:
    """Generate all cases of a model (`all_cases`).

    Args:
        model: Name of the model.
        settings: Its settings.
        known: The numbers of draws and samples.
    """
    custom = own_cases(settings, f"models.{model}")
    samples = split(model, "evaluation")
    sequences = Sequences.of(settings, samples)
    return all_cases(
        settings.inputs, settings.free_dims, known.draws, settings.seed, custom, samples, known.samples, sequences
    )


def real_inputs(model: str, settings: ModelParams) -> Callable[[Case], Tensors]:
    """Make a function that returns valid inputs of a case's sizes, as `real_inputs_of`; never those of the case."""
    of = real_inputs_of(model, settings)
    return lambda case: of(case.sizes, case.seed, case.from_cases)


def real_inputs_of(model: str, settings: ModelParams) -> Callable[..., Tensors]:
    """Make a function of (sizes, seed, whether to use samples) that returns valid inputs of these sizes.

    They come from the model's own `cases` if there are any, else from real samples, cut or repeated.
    """
    custom = own_cases(settings, f"models.{model}")
    samples = functools.cache(lambda: split(model, "evaluation"))  # read on first use: most models refuse no case

    def real(sizes: Sizes, seed: int = 0, samples_only: bool = False) -> Tensors:
        if custom is not None and not samples_only:
            return Source(settings.inputs, custom).tensors(sizes, np.random.default_rng(seed))
        return resized(settings.inputs, _single_steps(settings, samples()), sizes)

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
        return resized(settings.inputs, _single_steps(settings, split(model, "evaluation")), sizes)
    custom = own_cases(settings, f"models.{model}")
    return Source(settings.inputs, custom).tensors(sizes, np.random.default_rng(settings.seed))


def real_example(model: str, settings: ModelParams) -> Tensors:
    """Real evaluation samples, cut or repeated to the sizes of the exporters' example (`example_sizes`)."""
    samples = _single_steps(settings, split(model, "evaluation"))
    return resized(settings.inputs, samples, example_sizes(settings.free_dims))


def _single_steps(settings: ModelParams, samples: Arrays) -> Arrays:
    """The first step of sequences, with its state; other samples as they are."""
    sequences = Sequences.of(settings, samples)
    if sequences is None:
        return samples
    axes = Layout.of(settings).inputs
    return {name: to_front(v, axes[name]) if axes[name] is not None else v for name, v in sequences.feed(0).items()}


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
