"""Calls a model's own measure, with or without labels, and rejects results that are not finite.

`quality` in params.yaml is a function of (outputs by name, labels), or of the outputs only, if it needs no labels.
Its result is a finite number; higher is better.
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

# One shuffle can leave the quality unchanged by chance: for 50 samples of two classes, with a probability of about
# 0.1. For five shuffles in a row it is about 1e-5.
SHUFFLES = 5


def takes_labels(function: Callable[..., Any], where: str) -> bool:
    """Whether a quality function takes (outputs, labels), and not the outputs only.

    Args:
        function: The function that `quality` names.
        where: Its path in params.yaml and its name, for messages.

    Raises:
        UsageError: It accepts neither one nor two positional arguments.
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
    raise UsageError(
        f"{where} has the signature {signature}; it must take (outputs, labels), or (outputs) if it needs no labels"
    )


def labels_of(settings: ModelParams, samples: Arrays) -> Array | None:
    """The labels among the samples, under the key that `label` in params.yaml names; None if there are none.

    Args:
        settings: The model's settings.
        samples: Arrays by name. An input of that name is an input, not the labels.
    """
    found = None if settings.label in settings.inputs else samples.get(settings.label)
    return None if found is None else np.asarray(found)


def _needs_labels(quality: str, key: str) -> bool:
    """Whether the quality function of the model at `key` takes labels."""
    return takes_labels(resolve(quality, f"{key}.quality"), f"params.yaml: {key}.quality: {quality}")


def without_labels(settings: ModelParams, samples: Arrays, key: str) -> str:
    """Explain why the quality cannot be computed: it needs labels, and the evaluation samples have none.

    Args:
        settings: The model's settings.
        samples: The evaluation samples.
        key: The model's path in params.yaml.

    Returns:
        The reason and the remedy; empty if nothing is missing.

    Raises:
        UsageError: The quality function has the wrong signature.
        NotReady: The quality function cannot be imported.
    """
    if settings.quality is None or labels_of(settings, samples) is not None:
        return ""
    if not _needs_labels(settings.quality, key):
        return ""
    where = f"params.yaml: {key}.quality: {settings.quality} takes (outputs, labels), but "
    if settings.label in settings.inputs:
        return (
            f"{where}{settings.label!r} is an input of the model: return the labels under another name in "
            f"{settings.samples}, and set it in params.yaml, for example label: {settings.label}s"
        )
    return (
        f'{where}{settings.samples}("evaluation") returns no "{settings.label}": add it there (label: NAME in '
        "params.yaml sets another name) or, if quality needs no labels, make it a function of the outputs only"
    )


def measure(settings: ModelParams, outputs: Arrays, samples: Arrays, key: str) -> float:
    """Call the model's quality function.

    Args:
        settings: The model's settings, with `quality`.
        outputs: Outputs by name. If there are fewer than samples, the last labels are left out.
        samples: The evaluation samples, with the labels if there are any.
        key: The model's path in params.yaml.

    Raises:
        UsageError: The function has the wrong signature.
        NotReady: The function cannot be imported.
        WorkerFailure: The function needs labels that do not exist, raised, or returned no finite number.
    """
    missing = without_labels(settings, samples, key)
    if missing:
        raise WorkerFailure("error", missing)
    assert settings.quality is not None
    where = f"{key}.quality"
    if not _needs_labels(settings.quality, key):
        return asked(settings.quality, where, dict(outputs))
    labels = labels_of(settings, samples)
    assert labels is not None
    return asked(settings.quality, where, dict(outputs), labels[: _count(outputs)])


def asked(name: str, where: str, *arguments: Any) -> float:
    """Call a function that is named in params.yaml and returns a finite number.

    Args:
        name: `module:function`.
        where: The key in params.yaml that names it.
        *arguments: The function's arguments.

    Raises:
        NotReady: The function cannot be imported.
        WorkerFailure: The function raised, or returned anything but a finite number.
    """
    function = resolve(name, where)
    source = f"params.yaml: {where}: {name}"
    try:
        value = float(function(*arguments))
    except UsageError:
        raise
    except Exception as error:
        raise WorkerFailure("error", f"{source} raised {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise WorkerFailure(
            "error",
            f"{source} returned {value}; expected a finite number. Look for NaN or infinity in the outputs or labels, "
            "a division by zero, or a mean of no samples",
        )
    return value


def label_findings(settings: ModelParams, outputs: Arrays, samples: Arrays, key: str, found: float | None) -> list[str]:
    """Check whether the quality depends on the labels: it should change when the labels are shuffled.

    Args:
        settings: The model's settings.
        outputs: Outputs by name.
        samples: The evaluation samples.
        key: The model's path in params.yaml.
        found: The quality of these outputs with the correct labels.

    Returns:
        One finding, or none. Nothing is reported if the quality takes no labels, or if all labels are equal.
    """
    labels = labels_of(settings, samples)
    if settings.quality is None or found is None or labels is None:
        return []
    if not _needs_labels(settings.quality, key):
        return []
    labels = labels[: _count(outputs)]
    if (labels == labels[:1]).all():
        return []
    for shuffled in _shuffled(labels):
        try:
            value = asked(settings.quality, f"{key}.quality", dict(outputs), shuffled)
        except WorkerFailure:  # the function refuses shuffled labels, so it depends on them
            return []
        if not math.isclose(value, found, rel_tol=1e-9, abs_tol=1e-12):
            return []
    return [
        f"quality does not depend on the labels: with shuffled labels it is {found:.4g}, too. Check that "
        f"{settings.quality} compares the outputs with the labels, and that the outputs differ between samples"
    ]


def _shuffled(labels: Array) -> Iterator[Array]:
    for seed in range(SHUFFLES):
        yield np.random.default_rng(seed).permutation(labels, axis=0)


def _count(outputs: Arrays) -> int:
    return len(next(iter(outputs.values())))
