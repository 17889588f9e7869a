"""Loads the samples of a model by the function that params.yaml names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams
from onward.stages.parity.sequences import has_steps

Arrays = dict[str, npt.NDArray[Any]]


def load(settings: ModelParams, name: str, key: str) -> Arrays:
    """Call the model's `samples` function.

    Args:
        settings: The model's settings.
        name: Name of the split, such as "evaluation".
        key: The model's place in params.yaml, such as "models.cnn".

    Returns:
        Arrays by input name, plus the labels if there are any (`labels.labels_of`). Samples are on axis 0, whatever
        axis the model has them on. Inputs with one value only are left out; an input without an axis of samples has
        one array for all.

    Raises:
        UsageError: The function fails, or returns no array for an input or one that the model does not have.
    """
    where = f"params.yaml: {key}.samples"
    try:
        found = resolve(settings.samples, f"{key}.samples")(name)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: {settings.samples}({name!r}) raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping):
        raise UsageError(f"{where}: gives {type(found).__name__}, wanted a mapping of input names to arrays")
    arrays = {str(k): np.asarray(v) for k, v in found.items()}
    optional = {*settings.states, *(k for k, spec in settings.inputs.items() if spec.is_fixed)}
    missing = [k for k in settings.inputs if k not in arrays and k not in optional]
    extra = [k for k in arrays if k not in settings.inputs and k != settings.label]
    if missing or extra:
        raise UsageError(
            f"{where}: gives {', '.join(arrays)}; wanted {', '.join(settings.inputs)} and, if there are labels, "
            + ("their key (label: NAME in params.yaml)" if settings.label in settings.inputs else settings.label)
        )
    arrays = {k: v for k, v in arrays.items() if k not in settings.inputs or not settings.inputs[k].is_fixed}
    if any(v.dtype.kind not in "fiub" for v in arrays.values()):
        raise UsageError(f"{where}: arrays must be of numbers, not { ({k: str(v.dtype) for k, v in arrays.items()}) }")
    arrays = _samples_first(settings, arrays, name, where)
    absent = [state for state in settings.states if state not in arrays]
    if absent and not has_steps(settings, arrays):
        raise UsageError(
            f"{where}: the {name} split has no {', '.join(absent)}: a model with `states` takes sequences of steps, "
            "with arrays [samples, steps, ...] for every other input; for single steps, give the states as well"
        )
    return arrays


def _samples_first(settings: ModelParams, arrays: Arrays, name: str, where: str) -> Arrays:
    """Move the axis of samples of every array to the front, and check that all have equally many."""
    axes = {k: _axis(settings, k, v) for k, v in arrays.items()}
    sizes = {
        k: arrays[k].shape[axis] if arrays[k].ndim > axis else None for k, axis in axes.items() if axis is not None
    }
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise UsageError(
            f"{where}: the arrays of the {name} split have different numbers of samples: {sizes}. Samples are counted "
            "on axis 0 of every array, if params.yaml declares no other axis: set sample_axis of the input, or "
            "sample_axis: none for an input that all samples share"
        )
    return {k: np.ascontiguousarray(np.moveaxis(v, axes[k] or 0, 0)) if axes[k] else v for k, v in arrays.items()}


def _axis(settings: ModelParams, name: str, values: npt.NDArray[Any]) -> int | None:
    """The axis of samples of an array; sequences of steps always have samples first and steps second."""
    if name not in settings.inputs:
        return 0
    spec = settings.inputs[name]
    is_sequence = bool(settings.states) and name not in settings.states and values.ndim == len(spec.shape) + 1
    return 0 if is_sequence and spec.samples_on is not None else spec.samples_on
