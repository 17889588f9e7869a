"""Runs a model over a set of samples, and judges its outputs by the model's own measure and by their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.registry.evidence.kinds import agreement, judge
from onward.registry.evidence.records import Measurement, OutputFidelity, OutputKind
from onward.registry.evidence.sample_axes import to_front
from onward.registry.evidence.similarity import fidelity
from onward.stages.config.layout import Layout, largest_size
from onward.stages.config.schema import ModelParams
from onward.stages.parity.cases import feed_of
from onward.stages.parity.filling import fill_up
from onward.stages.parity.labels import asked, measure
from onward.stages.parity.sequences import Sequences, drift, has_steps
from onward.stages.workers.worker import WorkerFailure

Arrays = Mapping[str, npt.NDArray[Any]]

BATCH = 64


def batch_size(settings: ModelParams, most: int = BATCH) -> int:
    """Number of samples per batch: `most`, limited by `dims`; 1 if an output has no axis of samples."""
    layout = Layout.of(settings)
    if isinstance(layout.size, int):
        return layout.size
    if layout.one_by_one:
        return 1
    dim = settings.dims[layout.size]
    return largest_size(dim.sizes, most) or max(1, dim.min or dim.multiple_of)


def batches(settings: ModelParams, samples: Arrays, most: int = BATCH) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Split samples into batches of a size that `dims` allows. A remainder that is too small is left out.

    Args:
        settings: The model's settings.
        samples: Arrays by input name, samples on axis 0.
        most: Largest number of samples per batch.

    Returns:
        Arrays by input name, in the model's own layout, per batch. Of sequences, the first step.

    Raises:
        UsageError: The samples do not fill one batch.
    """
    sequences = Sequences.of(settings, samples)
    for start, size in spans(settings, samples, most):
        if sequences is None:
            yield feed_of(settings.inputs, samples, start, size)
        else:
            yield sequences.part(start, size).feed(0)


def spans(settings: ModelParams, samples: Arrays, most: int = BATCH) -> Iterator[tuple[int, int]]:
    """The first sample and the size of each batch, as for `batches`."""
    layout, size = Layout.of(settings), batch_size(settings, most)
    count = layout.count(samples)
    allowed = range(size, size + 1) if isinstance(layout.size, int) else settings.dims[layout.size].sizes
    if count < max(1, allowed[0]):
        raise UsageError(f"{count} samples do not fill a batch: the batch must be at least {max(1, allowed[0])}")
    for start in range(0, count, size):
        fitting = largest_size(allowed, min(size, count - start))
        if fitting:
            yield start, fitting


def outputs_over(
    run: Callable[[dict[str, npt.NDArray[Any]]], Arrays],
    settings: ModelParams,
    samples: Arrays,
    most: int = BATCH,
) -> dict[str, npt.NDArray[Any]]:
    """Run a model over all samples that `batches` returns.

    Args:
        run: Computes the outputs of one batch.
        settings: The model's settings.
        samples: Arrays by input name, samples on axis 0.
        most: Largest number of samples per batch.

    Returns:
        Outputs by name, samples on axis 0. If the size of another axis differs from call to call, the outputs are
        filled up to the largest with NaN, -1 or False. Outputs over sequences are [samples, steps, ...].

    Raises:
        UsageError: As `batches`.
    """
    sequences, axes = Sequences.of(settings, samples), Layout.of(settings).outputs
    if sequences is not None:
        parts = [sequences.part(*span).outputs(run) for span in spans(settings, samples, most)]
    else:
        parts = [
            {name: to_front(values, axes.get(name, 0)) for name, values in run(batch).items()}
            for batch in batches(settings, samples, most)
        ]
    return {name: np.concatenate(fill_up([part[name] for part in parts])) for name in parts[0]}


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


def _alike(settings: ModelParams, wanted: Arrays, got: Arrays) -> tuple[Arrays, Arrays]:
    """Give outputs whose size depends on the data the same shape, so that they can be compared.

    A row that only one of them has is compared with a row of zeros, so it counts as an error of its own size.
    """
    first, second = dict(wanted), dict(got)
    for name in settings.data_sized & wanted.keys() & got.keys():
        one, other = wanted[name], got[name]
        if one.ndim != other.ndim:
            continue
        one, other = fill_up([one, other])
        if one.dtype.kind == "f" and other.dtype.kind == "f" and one.shape == other.shape:
            alone = np.isnan(one) != np.isnan(other)
            one, other = np.where(alone & np.isnan(one), 0, one), np.where(alone & np.isnan(other), 0, other)
        first[name], second[name] = one, other
    return first, second


class Weighed(NamedTuple):
    """Results over the evaluation set. The fields are those of Variant and Measurement (registry/evidence/records.py).

    Attributes:
        quality: Result of the model's own measure; None if it has none.
        agreement: Share of samples with the original's top-1 answer, the lowest of all outputs that have one.
        snr_db: Signal-to-noise ratio, in dB.
        cosine: Cosine similarity of the worst sample.
        fidelity: Loss of each output by the measure of its kind.
        drift: Error of each output at each step of sequences; empty if the samples are single steps.
    """

    quality: float | None
    agreement: float | None
    snr_db: float | None
    cosine: float | None
    fidelity: list[OutputFidelity]
    drift: dict[str, list[float]]

    def store(self, measurement: Measurement) -> None:
        """Write the results to the fields of a measurement."""
        for name, value in self._asdict().items():
            setattr(measurement, name, value)


def weigh(
    run: Callable[[dict[str, npt.NDArray[Any]]], Arrays],
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
    wanted, got = _alike(settings, wanted, outputs_over(run, settings, samples))
    near = fidelity(wanted, got)
    shares = [agreement(kind, wanted[kind.output], got[kind.output]) for kind in kinds]
    return Weighed(
        quality_of(settings, got, samples, key, wanted),
        min((share for share in shares if share is not None), default=None),
        near.snr_db,
        near.cosine,
        [one for kind in kinds for one in judge(kind, wanted, got, settings.budget.quality_drop)],
        drift(wanted, got) if has_steps(settings, samples) else {},
    )
