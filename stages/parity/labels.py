"""Asks a model's own measure, with or without labels, and refuses what says nothing.

`quality` in params.yaml is a function of (outputs by name, labels), or of the outputs alone: then it needs no labels.
Its result is a finite number, higher is better.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams
from onward.stages.workers.worker import WorkerFailure

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

# One shuffle may leave a share as it was by chance: for 50 samples of two classes, in about one of ten. Five shuffles
# all do so in about one of 100,000.
SHUFFLES = 5


def takes_labels(function: Callable[..., Any], where: str) -> bool:
    """Whether a quality function is one of (outputs, labels), and not of the outputs alone.

    Args:
        function: what `quality` names.
        where: its path in params.yaml and its name, for messages.

    Raises:
        UsageError: it can be called in neither way.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function of a C library may have no signature
        return True
    for arguments in (2, 1):
        try:
            signature.bind(*range(arguments))
        except TypeError:
            continue
        return arguments == 2
    raise UsageError(f"{where} has the signature {signature}; give it (outputs, labels), or (outputs) if it needs none")


def without_labels(settings: ModelParams, samples: Arrays, key: str) -> str:
    """Why the quality of the evaluation samples cannot be computed: it needs labels, and there are none.

    Args:
        settings: of the model, with `quality` and `samples`.
        samples: the evaluation samples.
        key: the model's path in params.yaml.

    Returns:
        the reason and the remedy; empty where nothing is missing.

    Raises:
        UsageError: the quality function does not import, or has another signature.
    """
    if settings.quality is None or "label" in samples:
        return ""
    where = f"params.yaml: {key}.quality: {settings.quality}"
    if not takes_labels(resolve(settings.quality, f"{key}.quality"), where):
        return ""
    return (
        f'{where} takes (outputs, labels), but {settings.samples}("evaluation") gives no "label": give one there, or '
        "write quality as a function of the outputs alone, if it needs no labels"
    )


def measure(settings: ModelParams, outputs: Arrays, samples: Arrays, key: str) -> float:
    """The value of the model's quality function, which has to be finite.

    Args:
        settings: of the model, with `quality` and `samples`.
        outputs: the answers by name. Where they are fewer than the samples, the last labels are left out.
        samples: the evaluation samples, with `label` where there is one.
        key: the model's path in params.yaml.

    Raises:
        UsageError: the function does not import, or has another signature.
        WorkerFailure: it needs labels and there are none, it raised, or its value is no finite number.
    """
    missing = without_labels(settings, samples, key)
    if missing:
        raise WorkerFailure("error", missing)
    assert settings.quality is not None
    where = f"{key}.quality"
    if not takes_labels(resolve(settings.quality, where), f"params.yaml: {where}: {settings.quality}"):
        return asked(settings.quality, where, dict(outputs))
    return asked(settings.quality, where, dict(outputs), np.asarray(samples["label"])[: _count(outputs)])


def asked(name: str, where: str, *arguments: Any) -> float:
    """The finite number that a function named in params.yaml returns.

    Args:
        name: `module:function`.
        where: the path in params.yaml that names it.
        arguments: what to call it with.

    Raises:
        UsageError: it does not import.
        WorkerFailure: it raised, or returned anything but a finite number.
    """
    function = resolve(name, where)
    said = f"params.yaml: {where}: {name}"
    try:
        value = float(function(*arguments))
    except UsageError:
        raise
    except Exception as error:
        raise WorkerFailure("error", f"{said} raised {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise WorkerFailure(
            "error",
            f"{said} returned {value}; wanted a finite number. Look for NaN or infinity in the outputs or in the "
            "labels, for a division by zero, or for a mean of no samples",
        )
    return value


def label_findings(settings: ModelParams, outputs: Arrays, samples: Arrays, key: str, found: float | None) -> list[str]:
    """What is odd about the labels: the quality is the same when they belong to other samples.

    Args:
        settings: of the model, with `quality` and `samples`.
        outputs: the answers by name.
        samples: the evaluation samples.
        key: the model's path in params.yaml.
        found: the quality of these outputs with the labels as they are.

    Returns:
        one finding, or none. Functions without labels, and labels that are all equal, cannot tell.
    """
    if settings.quality is None or found is None or "label" not in samples:
        return []
    where = f"params.yaml: {key}.quality: {settings.quality}"
    if not takes_labels(resolve(settings.quality, f"{key}.quality"), where):
        return []
    labels = np.asarray(samples["label"])[: _count(outputs)]
    if (labels == labels[:1]).all():
        return []
    for shuffled in _shuffled(labels):
        try:
            value = asked(settings.quality, f"{key}.quality", dict(outputs), shuffled)
        except WorkerFailure:  # it accepts these labels in their order only, so it reads them
            return []
        if not math.isclose(value, found, rel_tol=1e-9, abs_tol=1e-12):
            return []
    return [
        f"quality does not depend on the labels: shuffled, it is the same {found:.4g}. Check that {settings.quality} "
        "compares the outputs with the labels, and that the outputs differ between samples"
    ]


def _shuffled(labels: Array) -> Iterator[Array]:
    for seed in range(SHUFFLES):
        yield np.random.default_rng(seed).permutation(labels, axis=0)


def _count(outputs: Arrays) -> int:
    return len(next(iter(outputs.values())))
