"""Runs the PyTorch module in this process: unchanged, in float64, and with perturbed weights ("shaken").

The float64 result is the best available approximation of the exact one. The change under perturbation shows how much of
an output is rounding in float32. The PyTorch worker (torch_worker.py) and the export stage use this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onward.stages.workers import ties
from onward.stages.workers.jitter import moved
from onward.stages.workers.rebuilt import differences
from onward.stages.workers.signature import bind, name_outputs
from onward.stages.workers.torch_module import load_module

Arrays = dict[str, npt.NDArray[Any]]


class Original:
    """The original module with its weights.

    Args:
        build: `package.module:function` that returns the module.
        weights: File with the weights.
        inputs: Names of the inputs, matched with the parameters of forward() by name.
        outputs: Names of the outputs, matched with the keys that forward() returns, or by position.

    Attributes:
        module: The module in evaluation mode.
        why_not_wide: Why there are no float64 results; empty as long as there are.
        met: Operators that choose among equal values, as met by runs after `shake`.

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
        self._seed: int | None = None
        self._reorders = True
        self.met: list[str] = []
        self._made = (build, weights)
        self._lower: torch.dtype | None = None

    def lower(self, dtype: torch.dtype) -> None:
        """Convert the module to a lower precision, for good; its outputs are converted back to float32."""
        self.module.to(dtype)
        torch.set_default_dtype(dtype)  # of the tensors that forward() creates without a dtype
        self._lower = dtype

    def arguments(self, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        """(positional arguments, keyword arguments) of forward(), copied because a module may write to its inputs."""
        given = {name: torch.from_numpy(np.array(tensors[name])) for name in self.inputs}
        if self._lower is not None:
            given = {
                name: value.to(self._lower) if value.dtype == torch.float32 else value for name, value in given.items()
            }
        return self.binding.arguments(given)

    def run(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the module, with perturbed weights after `shake`.

        Args:
            tensors: Inputs by name.

        Returns:
            Outputs by name.

        Raises:
            Mismatch: The module returns other outputs than declared.
            ValueError: forward() switches the module to training mode.
        """
        module = self._shaken or self.module
        try:
            if self._seed is not None and self._reorders:
                try:
                    return self._call(module, *self.arguments(tensors), reorder=self._seed)
                except Exception:  # higher-order operators such as torch.cond do not run in a dispatch mode
                    self._reorders = False
            return self._call(module, *self.arguments(tensors))
        finally:
            self._refuse_training()

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]]) -> tuple[Arrays, Arrays]:
        """Run the module unchanged and in float64.

        Args:
            tensors: Inputs by name.

        Returns:
            Outputs by name, and the same in float64, which are empty if the module does not run in it
            (`why_not_wide` says why).
        """
        return self.run(tensors), self._truth(tensors)

    def shake(self, seed: int | None) -> None:
        """Perturb every float weight by one unit in the last place, up or down at random, for all later runs.

        Operators that choose among equal values (top-k, argmax) see these in another order (`ties`).

        Args:
            seed: Seed of the random directions; None restores the exact weights.
        """
        self._shaken, self._seed = None, seed
        if seed is not None:
            self._shaken = load_module(*self._made)
            rng = np.random.default_rng(seed)
            with torch.no_grad():
                for value in (*self._shaken.parameters(), *self._shaken.buffers()):
                    if value.dtype in (torch.float16, torch.float32, torch.float64):
                        value.copy_(torch.from_numpy(moved(value.detach().numpy(), rng)))
                    elif value.dtype == torch.bfloat16:  # NumPy has no such dtype; its unit in the last place is 2^-8
                        signs = torch.from_numpy(rng.choice([-1.0, 1.0], tuple(value.shape)))
                        value.mul_(1 + signs * 2.0**-8)

    def _refuse_training(self) -> None:
        training = [name or "the module" for name, module in self.module.named_modules() if module.training]
        if training:
            raise ValueError(
                f"forward() switches {', '.join(training)} to training mode, so that its outputs depend on the batch "
                "or on random numbers; remove the call of train()"
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
        except Exception as error:  # such as a fixed dtype in forward(); that is allowed, there is no float64 then
            self.why_not_wide = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return {}

    def _widened(self, tensors: Mapping[str, npt.NDArray[Any]]) -> torch.nn.Module | None:
        """A second module in float64; None, with `why_not_wide` set, if a second build() returns a different one."""
        second = load_module(*self._made)
        different = differences(self.module, second)
        one, other = (self._call(module, *self.arguments(tensors)) for module in (self.module, second))
        different += [
            f"{name} differs for the same inputs"
            for name in one
            if one[name].shape != other[name].shape or not np.allclose(one[name], other[name], equal_nan=True)
        ]
        if different:
            self.why_not_wide = f"build() returns a different module each time: {different[0]}"
            return None
        return second.double()

    def _call(
        self,
        module: torch.nn.Module,
        positional: tuple[torch.Tensor, ...],
        keywords: Mapping[str, torch.Tensor],
        reorder: int | None = None,
    ) -> Arrays:
        with torch.inference_mode(), nullcontext() if reorder is None else ties.mode(reorder, self.met):
            results = module(*positional, **keywords)
        found = name_outputs(results, self.outputs).outputs
        return {name: (value.float() if value.dtype == self._lower else value).numpy() for name, value in found.items()}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the dtype of tensors that forward() creates without a dtype."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
