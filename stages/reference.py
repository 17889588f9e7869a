"""What a model is held to: the PyTorch module, or, where there is none, the ONNX file as it came, optimisations off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.errors import NotReady
from stages import paths
from stages.runtime.pool import AS_IT_IS, Worker
from stages.settings import ModelParams


def trained_file(model: str, settings: ModelParams) -> Path:
    """The file that the train stage left: weights, or the ONNX model itself."""
    return paths.build(model, "train") / ("model.safetensors" if settings.is_torch else "model.onnx")


def reference_worker(model: str, settings: ModelParams, compiled: bool = False) -> Worker:
    """A worker that answers as the original model does; `compiled`, for a PyTorch module, under torch.compile."""
    file = trained_file(model, settings)
    if settings.build is None:
        return Worker.onnx(file, f"{model} as it came", options=AS_IT_IS, timeout=settings.verify.timeout)
    return Worker.torch(
        settings.build,
        file,
        list(settings.inputs),
        list(settings.outputs),
        f"{model} in PyTorch",
        settings.verify.timeout,
        compiled,
    )


def split(model: str, name: str) -> dict[str, npt.NDArray[Any]]:
    """The `evaluation` or `calibration` samples that the data stage wrote: inputs by name, and `label` if there is one.

    Raises:
        NotReady: they are not there.
    """
    path = paths.build(model, "data") / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise NotReady(f"build/{model}/data/{name}.npz is missing: run `python -m stages.data {model}`") from None
