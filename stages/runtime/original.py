"""The PyTorch module itself, asked in this process: in float32, as it is, and in float64, as near to the truth as it
gets. Shared by the worker that others ask and by the exporter, which has the module in its hands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stages.runtime.module import load_module

Arrays = dict[str, npt.NDArray[Any]]


class Original:
    """A module with its weights. `inputs` and `outputs` name its arguments and results in order."""

    def __init__(self, build: str, weights: Path, inputs: list[str], outputs: list[str]) -> None:
        self.module = load_module(build, weights)
        self.inputs, self.outputs = inputs, outputs
        self.why_not_wide = ""
        self._wide: torch.nn.Module | None = None
        self._made = (build, weights)

    def arguments(self, tensors: Mapping[str, npt.NDArray[Any]]) -> list[torch.Tensor]:
        """Copies: a module may write to its inputs."""
        return [torch.from_numpy(np.array(tensors[name])) for name in self.inputs]

    def run(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name.

        Raises:
            ValueError: the module returns another number of outputs than is declared, or trains.
        """
        try:
            with torch.inference_mode():
                results = self.module(*self.arguments(tensors))
        finally:
            self._refuse_training()
        return self._named(results)

    def _refuse_training(self) -> None:
        training = [name or "the module" for name, module in self.module.named_modules() if module.training]
        if training:
            raise ValueError(
                f"forward() puts {', '.join(training)} back into training mode, so that the answers depend on the "
                "batch, or on chance: take the call of train() out"
            )

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[Arrays, Arrays]:
        """Outputs, and the same in float64; empty where the module does not run in it (`why_not_wide` says why)."""
        return self.run(tensors), self._truth(tensors)

    def _truth(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if self.why_not_wide:
            return {}
        try:
            if self._wide is None:
                self._wide = load_module(*self._made).double()
            with torch.inference_mode(), default_dtype(torch.float64):
                arguments = (t.double() if t.is_floating_point() else t for t in self.arguments(tensors))
                return self._named(self._wide(*arguments))
        except Exception as error:  # a dtype written into forward(): there is no truth then, which is no fault
            self.why_not_wide = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return {}

    def _named(self, results: Any) -> Arrays:
        if isinstance(results, torch.Tensor):
            results = (results,)
        elif isinstance(results, dict):
            results = tuple(results.values())
        if len(results) != len(self.outputs):
            raise ValueError(f"the module returns {len(results)} outputs, params.yaml declares {len(self.outputs)}")
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, results, strict=True)}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What tensors are made as where forward() does not say."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
