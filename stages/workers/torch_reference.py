"""The PyTorch module itself, asked in this process: in float32, as it is; in float64, as near to the truth as it gets;
and shaken, which shows how much of an answer is float32's rounding. Shared by the worker that other stages ask and by
the exporter, which has the module in its hands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onward.stages.workers.rebuilt import differences
from onward.stages.workers.signature import bind, name_outputs
from onward.stages.workers.torch_module import load_module

Arrays = dict[str, npt.NDArray[Any]]


class Original:
    """A module with its weights.

    Args:
        build: `module:function` of the code that builds it.
        weights: the file with its weights.
        inputs: names of the inputs, bound to the parameters of forward() by name.
        outputs: names of the outputs, which go by their keys where forward() returns keys.

    Raises:
        Mismatch: forward() does not take these inputs.
    """

    def __init__(self, build: str, weights: Path, inputs: list[str], outputs: list[str]) -> None:
        self.module = load_module(build, weights)
        self.inputs, self.outputs = inputs, outputs
        self.binding = bind(self.module, inputs)
        self.why_not_wide = ""
        self._wide: torch.nn.Module | None = None
        self._shaken: torch.nn.Module | None = None
        self._made = (build, weights)

    def arguments(self, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """(positional arguments, keyword arguments) of forward(); copies, since a module may write to its inputs."""
        return self.binding.arguments({name: torch.from_numpy(np.array(tensors[name])) for name in self.inputs})

    def run(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name, of the module as it is, or as `shake` left it.

        Raises:
            Mismatch: the module returns other outputs than are declared.
            ValueError: the module trains.
        """
        try:
            return self._call(self._shaken or self.module, *self.arguments(tensors))
        finally:
            self._refuse_training()

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[Arrays, Arrays]:
        """Outputs, and the same in float64; empty where the module does not run in it (`why_not_wide` says why)."""
        return self.run(tensors), self._truth(tensors)

    def shake(self, seed: int | None) -> None:
        """From now on, answer with every float weight moved by one unit in the last place, up or down at random; with
        None, exactly again. What changes in the answers is what float32 cannot tell."""
        self._shaken = None
        if seed is not None:
            self._shaken = load_module(*self._made)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for value in (*self._shaken.parameters(), *self._shaken.buffers()):
                    if value.dtype in (torch.float32, torch.float64):
                        value.copy_(_moved(value, generator))

    def _refuse_training(self) -> None:
        training = [name or "the module" for name, module in self.module.named_modules() if module.training]
        if training:
            raise ValueError(
                f"forward() puts {', '.join(training)} back into training mode, so that the answers depend on the "
                "batch, or on chance: take the call of train() out"
            )

    def _truth(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if self.why_not_wide:
            return {}
        try:
            if self._wide is None:
                self._wide = self._widened(tensors)
                if self._wide is None:
                    return {}
            with default_dtype(torch.float64):
                positional, keywords = self.arguments(tensors)
                return self._call(
                    self._wide, tuple(map(_wide, positional)), {name: _wide(value) for name, value in keywords.items()}
                )
        except Exception as error:  # a dtype written into forward(): there is no truth then, which is no fault
            self.why_not_wide = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return {}

    def _widened(self, tensors: Mapping[str, npt.NDArray[Any]]) -> torch.nn.Module | None:
        """The module in float64; None, with `why_not_wide`, where a second build() gives another module."""
        second = load_module(*self._made)
        different = differences(self.module, second)
        one, other = (self._call(module, *self.arguments(tensors)) for module in (self.module, second))
        different += [
            f"{name} is another one for the same inputs"
            for name in one
            if one[name].shape != other[name].shape or not np.allclose(one[name], other[name], equal_nan=True)
        ]
        if different:
            self.why_not_wide = f"build() gives another module each time: {different[0]}"
            return None
        return second.double()

    def _call(
        self, module: torch.nn.Module, positional: tuple[torch.Tensor, ...], keywords: Mapping[str, torch.Tensor]
    ) -> Arrays:
        with torch.inference_mode():
            results = module(*positional, **keywords)
        return {name: tensor.numpy() for name, tensor in name_outputs(results, self.outputs).outputs.items()}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _moved(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One unit in the last place up or down. Whole numbers stay: zeros that pruning left, bounds of categories."""
    up = torch.rand(value.shape, generator=generator) < 0.5
    infinity = torch.full((), float("inf"), dtype=value.dtype)
    moved = torch.where(up, torch.nextafter(value, infinity), torch.nextafter(value, -infinity))
    return torch.where((value == value.round()) | ~torch.isfinite(value), value, moved)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What tensors are made as where forward() does not say."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
