"""Runs a model over a whole set of samples, and judges its answers by the model's own measure."""

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
    """Samples to feed at once: the first dimension's size where that is fixed, else `most` as far as `dims` allows."""
    first = next(iter(settings.inputs.values())).shape[0]
    if isinstance(first, int):
        return first
    dim = settings.dims[first]
    return max(1, dim.min, min(most, dim.max))


def batches(settings: ModelParams, samples: Arrays, most: int = BATCH) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The inputs of all samples, in batches of sizes that `dims` allows. Of a remainder that is too small for a batch
    nothing is fed.

    Raises:
        UsageError: the samples do not fill one batch.
    """
    first = next(iter(settings.inputs.values())).shape[0]
    size = batch_size(settings, most)
    least = size if isinstance(first, int) else settings.dims[first].min
    count = len(samples[next(iter(settings.inputs))])
    if count < max(1, least):
        raise UsageError(f"{count} samples do not fill a batch: the first dimension is at least {max(1, least)}")
    for start in range(0, count, size):
        if min(size, count - start) >= least:
            yield {name: samples[name][start : start + size] for name in settings.inputs}


def outputs_over(
    run: Callable[[Arrays], Arrays], settings: ModelParams, samples: Arrays, most: int = BATCH
) -> dict[str, npt.NDArray[Any]]:
    """Outputs for all samples that fit in `batches`, stacked on the first axis."""
    parts = [run(batch) for batch in batches(settings, samples, most)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def quality_of(
    settings: ModelParams, outputs: Arrays, samples: Arrays, key: str = "", wanted: Arrays | None = None
) -> float | None:
    """The model's own measure of its answers, higher is better: `quality` of the outputs and labels, or `fidelity` of
    the reference's outputs and these; null where params.yaml names neither.

    Args:
        settings: of the model.
        outputs: the answers to judge, by name.
        samples: the evaluation samples, with `label` where there is one.
        key: the model's path in params.yaml.
        wanted: the reference's answers, which `fidelity` compares with; without them, `quality` alone is asked.

    Raises:
        UsageError: the measure does not import, or has another signature.
        WorkerFailure: it raises, is no finite number, or needs labels where there are none.
    """
    if settings.quality is None and wanted is not None and settings.fidelity is not None:
        before = {name: values[: len(outputs[name])] for name, values in wanted.items()}
        return asked(settings.fidelity, f"{key}.fidelity", before, dict(outputs))
    if settings.quality is None:
        return None
    return measure(settings, outputs, samples, key)


def judged_by_quality(settings: ModelParams, wanted: Arrays, samples: Arrays, key: str) -> set[str]:
    """The outputs that the model's own measure depends on: it changes when their answers are moved to other samples."""
    exact = quality_of(settings, wanted, samples, key, wanted)
    if exact is None:
        return set()
    found = set()
    for name, values in wanted.items():
        for shift in (1, 7):  # neighbours may have the same label
            moved = {**wanted, name: np.roll(values, shift, axis=0)}
            try:
                same = quality_of(settings, moved, samples, key, wanted) == exact
            except WorkerFailure:  # such answers have no quality
                same = False
            if not same:
                found.add(name)
    return found


class Weighed(NamedTuple):
    """What answers over the evaluation set are worth; the fields are those of
    onward.registry.evidence.records.Variant."""

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
    """Run a model over the evaluation samples, and judge its answers by the model's own measure, and each output by the
    original's answers and its kind.

    Args:
        run: answers a batch.
        settings: of the model.
        samples: the evaluation samples.
        wanted: the original's answers to them.
        kinds: what each output is.
        key: the model's path in params.yaml.

    Raises:
        UsageError: as quality_of and outputs_over.
        WorkerFailure: a run came to nothing.
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
