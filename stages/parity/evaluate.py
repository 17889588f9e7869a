"""Runs a model over a whole set of samples, and judges its answers by the model's own measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError
from registry.fidelity import agreement, fidelity
from stages.params import resolve
from stages.settings import ModelParams

Arrays = Mapping[str, npt.NDArray[Any]]

BATCH = 64


def batch_size(settings: ModelParams, dims: bool = True) -> int:
    """Samples fed at once: the first dimension's own size where that is fixed, else no more than it may be."""
    first = next(iter(settings.inputs.values())).shape[0]
    if isinstance(first, int):
        return first
    return min(BATCH, settings.dims[first].max) if dims else BATCH


def outputs_over(
    run: Callable[[Arrays], Arrays], settings: ModelParams, samples: Arrays, batch: int
) -> dict[str, npt.NDArray[Any]]:
    """Outputs for all samples, stacked on the first axis. Where the batch is fixed, a remainder is left out."""
    count = len(samples[next(iter(settings.inputs))])
    fixed = isinstance(next(iter(settings.inputs.values())).shape[0], int)
    stop = count - count % batch if fixed else count
    if stop == 0:
        raise UsageError(f"{count} evaluation samples do not fill one batch of {batch}")
    parts = [
        run({name: samples[name][start : min(start + batch, stop)] for name in settings.inputs})
        for start in range(0, stop, batch)
    ]
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
    got = outputs_over(run, settings, samples, batch_size(settings))
    first = next(iter(settings.outputs))
    near = fidelity(wanted, got)
    return Weighed(
        quality_of(settings, got, samples, key), agreement(wanted[first], got[first]), near.snr_db, near.cosine
    )
