"""Inputs, outputs and dimensions of a PyTorch module, found by running it on an example.

Imports torch and the team's code: call it in an isolated process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from onward.registry.errors import UsageError
from onward.stages.config.load import resolve
from onward.stages.scaffold.callables import in_a_line, keep_stdout_clean, require_defined
from onward.stages.scaffold.dimension_names import BATCH, unique_name
from onward.stages.scaffold.embeddings import embedding_rows
from onward.stages.scaffold.found_model import BATCH as BATCH_SIZES
from onward.stages.scaffold.found_model import FoundDim, FoundModel, FoundShape, FoundTensor
from onward.stages.scaffold.output_shapes import Run, described_shape, unknown_axes
from onward.stages.scaffold.varying_axes import Group, smallest_size, varying_groups
from onward.stages.workers.signature import (
    Mismatch,
    bind,
    name_outputs,
    output_names,
    parameter_names,
    positional_names,
)
from onward.stages.workers.torch_module import load_module

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def inspect_module(build: str, example: str) -> FoundModel:
    """Build a module and run it on its example and on other sizes of it.

    Args:
        build: `package.module:function` that returns the module.
        example: `package.module:name` of one example: a tensor or array, a tuple, a dict by name, or a function that
            returns one of these.

    Raises:
        UsageError: one of the two does not import or raises, or the module does not accept the example.
    """
    keep_stdout_clean()
    warnings.simplefilter("ignore")
    try:
        module = load_module(build, None)
    except UsageError as error:
        raise UsageError(f"--build: {error}") from error
    except Exception as error:
        raise UsageError(f"--build: {build} raised {in_a_line(error)}") from error
    require_defined("--build", build)
    runner = _Runner(module, _example(module, example), f"--build: {build}", example)
    groups = varying_groups(runner.shapes, runner.accepts, runner.images())
    return _described(runner, groups)


def _example(module: torch.nn.Module, name: str) -> Tensors:
    """The example as tensors by input, in the order of forward()."""
    where = f"--example: {name}"
    try:
        value = resolve(name, wants="an example input, or a function that returns one")
        if callable(value) and not isinstance(value, torch.Tensor):
            value = value()
    except UsageError as error:
        raise UsageError(f"--example: {error}") from error
    except Exception as error:
        raise UsageError(f"{where} raised {in_a_line(error)}") from error
    try:
        if isinstance(value, Mapping):
            known = [key for key in parameter_names(module) if key in value]
            named = {str(key): value[key] for key in (*known, *(key for key in value if key not in known))}
        else:
            values = list(value) if isinstance(value, tuple | list) else [value]
            named = dict(zip(positional_names(module, len(values)), values, strict=True))
        tensors = {key: _tensor(key, item) for key, item in named.items() if item is not None}
        bind(module, list(tensors))
    except Mismatch as error:
        raise UsageError(f"{where}: {error}") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return tensors


def _tensor(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray | np.generic):
        try:
            value = torch.from_numpy(np.array(value, order="C"))
        except TypeError as error:
            raise UsageError(f"the array for {name!r} is of dtype {value.dtype}, which torch does not have") from error
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"gives {type(value).__name__} for the input {name!r}; wanted: a tensor or an array. Set other arguments "
            "of forward() in build()"
        )
    if 0 in value.shape:
        raise UsageError(f"the tensor for {name!r} is empty: its shape is {list(value.shape)}")
    return value.detach().clone()


class _Runner:
    """A module and its example, run at other sizes of the example's axes."""

    def __init__(self, module: torch.nn.Module, example: Tensors, where: str, example_name: str) -> None:
        self.module, self.example = module, example
        self.shapes: Shapes = {name: tuple(value.shape) for name, value in example.items()}
        self.binding = bind(module, list(example))
        self.rows: dict[str, int] = {}
        try:
            with embedding_rows(example, self.rows):
                results = self._call(example)
        except Exception as error:
            raise UsageError(
                f"{where}: the module does not accept the example {example_name}: {in_a_line(error)}"
            ) from (error)
        try:
            self.outputs = output_names(results)
            named = name_outputs(results, self.outputs).outputs
        except Mismatch as error:
            raise UsageError(f"{where}: {error}") from error
        self.dtypes = {name: _dtype(value) for name, value in named.items()}
        self.answer: Shapes = {name: tuple(value.shape) for name, value in named.items()}

    def run(self, changes: Mapping[Group, int]) -> Shapes | None:
        """Shapes of the outputs with other sizes of some axes; None where the module refuses these."""
        tensors = dict(self.example)
        for group, size in changes.items():
            for name, axis in group:
                index = torch.arange(size) % self.example[name].shape[axis]
                tensors[name] = tensors[name].index_select(axis, index)
        try:
            named = name_outputs(self._call(tensors), self.outputs).outputs
        except Exception:  # whatever the team's module says to a size that it does not support
            return None
        return {name: tuple(value.shape) for name, value in named.items()}

    def accepts(self, group: Group, size: int) -> bool:
        """Whether the module runs with a group of axes at another size, and its outputs keep their number of axes."""
        shapes = self.run({group: size})
        return shapes is not None and all(len(shapes[name]) == len(self.answer[name]) for name in self.answer)

    def images(self) -> set[tuple[str, int]]:
        """Axes of pictures and videos: they are served at one size, even where the module would accept others."""
        return {
            (name, axis)
            for name, value in self.example.items()
            for axis in range(1, value.ndim)
            if value.ndim >= 4 and value.is_floating_point()
        }

    def _call(self, tensors: Tensors) -> Any:
        positional, keywords = self.binding.arguments({name: value.clone() for name, value in tensors.items()})
        with torch.no_grad():
            return self.module(*positional, **keywords)


def _described(runner: _Runner, groups: list[tuple[Group, int]]) -> FoundModel:
    """Name the dimensions and describe the outputs by them.

    A dimension other than the batch is fixed where it changes an output's size to one that params.yaml cannot describe,
    such as half of it.
    """
    while True:
        names: dict[Group, str] = {}
        for group, _ in groups:
            first = group[0]
            wanted = BATCH if any(axis == 0 for _, axis in group) else f"{first[0]}_axis{first[1]}"
            names[group] = unique_name(wanted, names.values())
        base = {names[group]: runner.shapes[group[0][0]][group[0][1]] for group in names}
        runs = [Run(base, runner.answer)]
        for group, size in groups:
            runs.append(Run({**base, names[group]: size}, runner.run({group: size}) or {}))
        shapes = {name: described_shape(name, runs) for name in runner.outputs}
        culprits = {
            number - 1
            for name, shape in shapes.items()
            for axis, known in enumerate(shape or ())
            if known is None
            for number, run in enumerate(runs)
            if run.shapes[name][axis] != runner.answer[name][axis] and not _has_batch(groups[number - 1][0])
        }
        if not culprits:
            break
        groups = [item for number, item in enumerate(groups) if number not in culprits]
    dims = {}
    for group, dim in names.items():
        shaped = {
            name: tuple("?" if size == dim else seen for size, seen in zip(shape, runner.answer[name], strict=True))
            for name, shape in shapes.items()
            if shape is not None
        }
        dims[dim] = _dim(runner, group, shaped)
    return FoundModel(
        tuple(_input(runner, name, names) for name in runner.example),
        tuple(_output(runner, name, shape, runs) for name, shape in shapes.items()),
        dims,
    )


def _has_batch(group: Group) -> bool:
    return any(axis == 0 for _, axis in group)


def _dim(runner: _Runner, group: Group, wanted: Mapping[str, tuple[int | str, ...]]) -> FoundDim:
    """The sizes of a dimension. `wanted` are the shapes of the outputs, with "?" where they have its size."""

    def accepts(size: int) -> bool:
        shapes = runner.run({group: size})
        return shapes is not None and all(
            shapes[name] == tuple(size if known == "?" else known for known in shape) for name, shape in wanted.items()
        )

    size = runner.shapes[group[0][0]][group[0][1]]
    least = smallest_size(size, accepts)
    if _has_batch(group):
        most = max(size, BATCH_SIZES.max or size)
        typical = tuple(dict.fromkeys(max(least, usual) for usual in BATCH_SIZES.typical or ()))
        return FoundDim(least, most, typical)
    return FoundDim(least, size, (size,))


def _input(runner: _Runner, name: str, names: Mapping[Group, str]) -> FoundTensor:
    shape: list[int | str] = list(runner.shapes[name])
    for group, dim in names.items():
        for place, axis in group:
            if place == name:
                shape[axis] = dim
    value, rows = runner.example[name], runner.rows.get(name)
    whole = value.dtype != torch.bool and not value.is_floating_point() and not value.is_complex()
    seen = (int(value.min()), int(value.max())) if whole else None
    return FoundTensor(name, _dtype(value), tuple(shape), (0, rows - 1) if rows else None, seen)


def _output(runner: _Runner, name: str, shape: FoundShape | None, runs: list[Run]) -> FoundTensor:
    found = FoundTensor(name, runner.dtypes[name], shape)
    return replace(found, note=unknown_axes(name, shape, runs))


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
