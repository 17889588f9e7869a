"""Loads the samples of a model by the function that params.yaml names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams

Arrays = dict[str, npt.NDArray[Any]]


def load(settings: ModelParams, name: str, key: str) -> Arrays:
    """Call the model's `samples` function.

    Args:
        settings: The model's settings.
        name: Name of the split, such as "evaluation".
        key: The model's place in params.yaml, such as "models.cnn".

    Returns:
        Arrays by input name, plus the labels if there are any (`labels.labels_of`), as the function returns them:
        samples are on axis 0.

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
    missing = [k for k in settings.inputs if k not in arrays]
    extra = [k for k in arrays if k not in settings.inputs and k != settings.label]
    if missing or extra:
        raise UsageError(
            f"{where}: gives {', '.join(arrays)}; wanted {', '.join(settings.inputs)} and, if there are labels, "
            + ("their key (label: NAME in params.yaml)" if settings.label in settings.inputs else settings.label)
        )
    return arrays
