"""Runs a model over a set of samples, and judges its outputs by the model's own measure and by their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.registry.evidence.kinds import agreement, judge
from onward.registry.evidence.records import OutputFidelity, OutputKind
from onward.registry.evidence.similarity import fidelity
from onward.stages.config.schema import ModelParams
from onward.stages.parity.labels import asked, measure
from onward.stages.workers.worker import WorkerFailure

Arrays = Mapping[str, npt.NDArray[Any]]

BATCH = 64


def batch_size(settings: ModelParams, most: int = BATCH) -> int:
    """Number of samples per batch: the first dimension's size if it is fixed, else `most`, limited by `dims`."""
    first = next(iter(settings.inputs.values())).shape[0]
    if isinstance(first, int):
        return first
    dim = settings.dims[first]
    return max(1, dim.min, min(most, dim.max))


def batches(settings: ModelParams, samples: Arrays, most: int = BATCH) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Split samples into batches of a size that `dims` allows. A remainder that is too small is left out.

    Args:
        settings: The model's settings.
        samples: Arrays by input name, samples on the first axis.
        most: Largest number of samples per batch.

    Returns:
        Arrays by input name, per batch.

    Raises:
        UsageError: The samples do not fill one batch.
    """
    first = next(iter(settings.inputs.values())).shape[0]
    size = batch_size(settings, most)
    least = size if isinstance(first, int) else settings.dims[first].min
    count = len(samples[next(iter(settings.inputs))])
    if count < max(1, least):
        raise UsageError(f"{count} samples do not fill a batch: the first dimension must be at least {max(1, least)}")
    for start in range(0, count, size):
        if min(size, count - start) >= least:
            yield {name: samples[name][start : start + size] for name in settings.inputs}


def outputs_over(
    run: Callable[[Arrays], Arrays], settings: ModelParams, samples: Arrays, most: int = BATCH
) -> dict[str, npt.NDArray[Any]]:
    """Run a model over all samples that `batches` returns.

    Args:
        run: Computes the outputs of one batch.
        settings: The model's settings.
        samples: Arrays by input name, samples on the first axis.
        most: Largest number of samples per batch.

    Returns:
        Outputs by name, samples on the first axis.

    Raises:
        UsageError: As `batches`.
    """
    parts = [run(batch) for batch in batches(settings, samples, most)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def quality_of(
    settings: ModelParams, outputs: Arrays, samples: Arrays, key: str = "", wanted: Arrays | None = None
) -> float | None:
    """Judge outputs by the model's own measure; higher is better.

    The measure is `quality` of the outputs (and labels), or `fidelity` of the reference's outputs and these.

    Args:
        settings: The model's settings.
        outputs: The outputs to judge, by name.
        samples: The evaluation samples, with the labels if there are any.
        key: The model's path in params.yaml.
        wanted: The reference's outputs for `fidelity`; without them, only `quality` is used.

    Returns:
        The result; None if params.yaml names no measure.

    Raises:
        UsageError: The measure has the wrong signature.
        NotReady: The measure cannot be imported.
        WorkerFailure: The measure raised, returned no finite number, or needs labels that do not exist.
    """
    if settings.quality is None and wanted is not None and settings.fidelity is not None:
        reference = {name: values[: len(outputs[name])] for name, values in wanted.items()}
        return asked(settings.fidelity, f"{key}.fidelity", reference, dict(outputs))
    if settings.quality is None:
        return None
    return measure(settings, outputs, samples, key)


def judged_by_quality(settings: ModelParams, wanted: Arrays, samples: Arrays, key: str) -> set[str]:
    """Find the outputs that the model's own measure depends on.

    The measure depends on an output if it changes when the output's values are moved to other samples.

    Args:
        settings: The model's settings.
        wanted: The reference's outputs by name.
        samples: The evaluation samples.
        key: The model's path in params.yaml.

    Returns:
        Names of outputs; empty if the model has no measure.

    Raises:
        UsageError, NotReady, WorkerFailure: As `quality_of`.
    """
    exact = quality_of(settings, wanted, samples, key, wanted)
    if exact is None:
        return set()
    found = set()
    for name, values in wanted.items():
        for shift in (1, 7):  # two shifts, because neighbouring samples may have the same label
            moved = {**wanted, name: np.roll(values, shift, axis=0)}
            try:
                same = quality_of(settings, moved, samples, key, wanted) == exact
            except WorkerFailure:  # the measure refuses the moved values, so it depends on them
                same = False
            if not same:
                found.add(name)
    return found


class Weighed(NamedTuple):
    """Results over the evaluation set. The fields are those of onward.registry.evidence.records.Variant.

    Attributes:
        quality: Result of the model's own measure; None if it has none.
        agreement: Share of samples with the original's top-1 answer, the lowest of all outputs that have one.
        snr_db: Signal-to-noise ratio, in dB.
        cosine: Cosine similarity of the worst sample.
        fidelity: Loss of each output by the measure of its kind.
    """

    quality: float | None
    agreement: float | None
    snr_db: float | None
    cosine: float | None
    fidelity: list[OutputFidelity]


def weigh(
    run: Callable[[Arrays], Arrays],
    settings: ModelParams,
    samples: Arrays,
    wanted: Arrays,
    kinds: Sequence[OutputKind],
    key: str,
) -> Weighed:
    """Run a model over the evaluation samples, and judge its outputs by the model's own measure and by their kinds.

    Args:
        run: Computes the outputs of one batch.
        settings: The model's settings.
        samples: The evaluation samples.
        wanted: The original's outputs for them.
        kinds: The kind of each output.
        key: The model's path in params.yaml.

    Raises:
        UsageError, NotReady: As `quality_of` and `outputs_over`.
        WorkerFailure: A run or the measure failed.
    """
    got = outputs_over(run, settings, samples)
    near = fidelity(wanted, got)
    shares = [agreement(kind, wanted[kind.output], got[kind.output]) for kind in kinds]
    return Weighed(
        quality_of(settings, got, samples, key, wanted),
        min((share for share in shares if share is not None), default=None),
        near.snr_db,
        near.cosine,
        [one for kind in kinds for one in judge(kind, wanted, got, settings.budget.quality_drop)],
    )
