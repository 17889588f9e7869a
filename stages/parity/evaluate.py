"""Runs a model over a whole set of samples, and judges its answers by the model's own measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError
from registry.fidelity import agreement, fidelity
from stages.params import resolve
from stages.settings import ModelParams

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


def quality_of(settings: ModelParams, outputs: Arrays, samples: Arrays, key: str = "") -> float | None:
    """The model's own measure of its answers, higher is better; null where params.yaml names none.

    Raises:
        UsageError: the measure is NaN, raises, or is no number.
    """
    if settings.quality is None:
        return None
    labels = samples.get("label")
    if labels is not None:
        labels = labels[: len(next(iter(outputs.values())))]
    try:
        value = float(resolve(settings.quality, key and f"{key}.quality")(dict(outputs), labels))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"params.yaml: {key}.quality: {settings.quality} raised {type(error).__name__}: {error}"
        ) from error
    return value


class Weighed(NamedTuple):
    """What answers over the evaluation set are worth; the fields are those of registry.vocabulary.Variant."""

    quality: float | None
    agreement: float | None
    snr_db: float | None
    cosine: float | None


def weigh(run: Callable[[Arrays], Arrays], settings: ModelParams, samples: Arrays, wanted: Arrays, key: str) -> Weighed:
    """Run a model over the evaluation samples, and judge its answers by the model's own measure and by the original's
    answers, `wanted`. `key` is the model's path in params.yaml.

    Raises:
        UsageError: as quality_of and outputs_over.
        WorkerFailure: a run came to nothing.
    """
    got = outputs_over(run, settings, samples)
    first = next(iter(settings.outputs))
    near = fidelity(wanted, got)
    return Weighed(
        quality_of(settings, got, samples, key), agreement(wanted[first], got[first]), near.snr_db, near.cosine
    )
