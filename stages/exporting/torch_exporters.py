"""The four ways in which torch can write a module as ONNX. Which one to believe, stages/export.py finds out.

dynamo       torch.export with each dynamic dimension by its declared name and bounds
dynamo-auto  torch.export, which may find relations between dimensions that the names did not allow
script       torch.jit.script, which keeps branches and loops that depend on values
trace        torch.jit.trace by way of the older exporter, which follows one example (stages/exporting/tracing.py)
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams
from onward.stages.parity.cases import Source, Tensors
from onward.stages.parity.sizes import Sizes, example_sizes
from onward.stages.workers.torch_module import load_module

if TYPE_CHECKING:
    import torch

STRATEGIES = ("dynamo", "dynamo-auto", "script", "trace")
HOW = {
    "dynamo": "torch.onnx.export (dynamo, named dimensions)",
    "dynamo-auto": "torch.onnx.export (dynamo, automatic dimensions)",
    "script": "torch.jit.script, then torch.onnx.export",
    "trace": "torch.jit.trace, then torch.onnx.export",
}
# The older exporter's newest opset.
TORCHSCRIPT_OPSET = 20
# The tracer's warnings of a conversion, where stages/exporting/tracing.py did not see it.
_CONVERTED = re.compile(r"TracerWarning: (Converting a tensor|Iterating over a tensor|Using len)")


@dataclass(frozen=True)
class Written:
    """What an exporter said of the file that it wrote: its warnings, and which values of its one example a tracer
    baked into the graph (stages/exporting/tracing.py)."""

    warnings: list[str]
    baked: list[str]


def write(strategy: str, settings: ModelParams, weights: Path, target: Path, real: Tensors) -> Written:
    """Export in this process to `target`. `real` are real inputs of the sizes of `example`."""
    assert settings.build is not None
    module = load_module(settings.build, weights)
    baked: list[str] = []
    with gathered_warnings(settings.export.verbose) as caught:
        if strategy in ("dynamo", "dynamo-auto"):
            program = dynamo(strategy, settings, module, real)
            _free_names(program.model, settings)
            program.save(
                target,
                keep_initializers_as_inputs=settings.export.keep_initializers_as_inputs,
                external_data=weights.stat().st_size > onnx_file.EXTERNAL_DATA_BYTES,
            )
        else:
            baked = _torchscript(strategy, settings, module, target, real)
        _order_inputs(target, list(settings.inputs))
    unexplained = [text for text in caught if _CONVERTED.match(text)]
    return Written(caught, baked + unexplained)


def _order_inputs(path: Path, names: list[str]) -> None:
    """Put the graph's inputs in the order of params.yaml: forward() may take them in another one."""
    model = onnx_file.load_graph(path)
    found = {value.name: value for value in model.graph.input}
    if not found.keys() >= set(names) or [name for name in found if name in names] == names:
        return
    ordered = [*(found[name] for name in names), *(value for name, value in found.items() if name not in names)]
    model.graph.ClearField("input")
    model.graph.input.extend(ordered)
    path.write_bytes(model.SerializeToString(deterministic=True))


def example(settings: ModelParams, sizes: Sizes | None = None, draw: int = 0) -> dict[str, Any]:
    """One valid input by name: of sizes that no exporter takes to be special, or of the given ones. Each `draw` is
    another one."""
    custom = resolve(settings.cases) if settings.cases else None
    rng = np.random.default_rng(settings.seed + draw)
    return Source(settings.inputs, custom).tensors(example_sizes(settings.dims) if sizes is None else sizes, rng)


def dynamo(strategy: str, settings: ModelParams, module: torch.nn.Module, real: Tensors) -> Any:
    """The ONNXProgram of torch.onnx.export; `exported_program` in it is the graph that was translated."""
    import torch

    made, names, given = as_exported(settings, module, real)
    with torch.no_grad():
        program = torch.onnx.export(
            made,
            tuple(given[name] for name in names),
            dynamo=True,
            opset_version=settings.export.opset,
            input_names=names,
            output_names=list(settings.outputs),
            dynamic_shapes=_dynamic_shapes(settings, made, names, automatic=strategy == "dynamo-auto"),
            custom_translation_table=_translations(settings),
            optimize=settings.export.constant_folding,
            verbose=settings.export.verbose,
        )
    assert program is not None
    return program


def as_exported(
    settings: ModelParams, module: torch.nn.Module, real: Tensors
) -> tuple[torch.nn.Module, list[str], dict[str, torch.Tensor]]:
    """The module as exporters take it, the names of its inputs in that order, and an example of each: made up from
    params.yaml, or the `real` one where the module refuses that."""
    import torch

    from onward.stages.workers.signature import Mismatch, exportable

    names = list(settings.inputs), list(settings.outputs)
    given = {name: torch.from_numpy(value) for name, value in example(settings).items()}
    try:
        return *exportable(module, *names, given), given
    except Mismatch:
        raise
    except Exception:  # whatever the team's own module says to values that params.yaml allows
        given = {name: torch.from_numpy(np.ascontiguousarray(real[name])) for name in settings.inputs}
        return *exportable(module, *names, given), given


def _dynamic_shapes(
    settings: ModelParams, module: torch.nn.Module, names: list[str], automatic: bool
) -> tuple[Any, ...]:
    """The dynamic axes of each argument, in the structure of forward()'s signature: what `*args` takes is one tuple."""
    import torch

    varying = {name: dim for name, dim in settings.dims.items() if dim.max > dim.min}
    dims: dict[str, Any] = {
        name: torch.export.Dim.AUTO if automatic else torch.export.Dim(name, min=dim.min, max=dim.max)
        for name, dim in varying.items()
    }
    axes = tuple(
        {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str) and size in dims}
        for spec in (settings.inputs[name] for name in names)
    )
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return axes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:named], axes[named:]) if len(axes) > named else axes


def _translations(settings: ModelParams) -> dict[Any, Any] | None:
    """The model's own table: torch operator to ONNX function; a function that returns one is as good.

    Raises:
        UsageError: it is neither.
    """
    name = settings.export.custom_translations
    if name is None:
        return None
    table: Any = resolve(name, "export.custom_translations", wants="a table or a function")
    if not isinstance(table, Mapping) and callable(table):
        table = table()
    if not isinstance(table, Mapping):
        raise UsageError(f"params.yaml: export.custom_translations: {name} gives no table of torch operators")
    return dict(table)


def _torchscript(
    strategy: str, settings: ModelParams, module: torch.nn.Module, target: Path, real: Tensors
) -> list[str]:
    """Export by the older exporter; returns which values a trace baked in."""
    import torch

    from onward.stages.exporting import tracing

    made, names, given = as_exported(settings, module, real)
    arguments = tuple(given[name] for name in names)
    varying = {name for name, dim in settings.dims.items() if dim.max > dim.min}
    shapes = {name: spec.shape for name, spec in settings.inputs.items()}
    shapes |= {name: spec.shape for name, spec in settings.outputs.items()}
    axes = {name: {axis: size for axis, size in enumerate(shape) if size in varying} for name, shape in shapes.items()}
    watched = tracing.watched(len(arguments)) if strategy == "trace" else nullcontext(tracing.Conversions())
    with torch.no_grad(), watched as found:
        torch.onnx.export(
            torch.jit.script(made) if strategy == "script" else made,
            arguments,
            target,
            dynamo=False,
            opset_version=min(settings.export.opset, TORCHSCRIPT_OPSET),
            input_names=names,
            output_names=list(settings.outputs),
            dynamic_axes={name: found for name, found in axes.items() if found},
            do_constant_folding=settings.export.constant_folding,
            keep_initializers_as_inputs=settings.export.keep_initializers_as_inputs,
            verbose=settings.export.verbose,
        )
    if not found.of_sizes:
        return tracing.baked(found, {})
    first = tracing.of(made, arguments)
    first.of_values = found.of_values
    others = {
        what: tracing.of(made, tuple(torch.from_numpy(other[name]) for name in names))
        for what, other in _other_examples(settings)
    }
    return tracing.baked(first, others)


def _other_examples(settings: ModelParams) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs that an exporter did not see, each with what is other about them."""
    yield "other values", example(settings, draw=1)
    for sizes in (
        {name: max(1, dim.min) for name, dim in settings.dims.items()},
        {name: dim.max for name, dim in settings.dims.items()},
    ):
        if sizes:
            yield ", ".join(f"{name} {size}" for name, size in sizes.items()), example(settings, sizes)


def _free_names(model: Any, settings: ModelParams) -> None:
    """Rename internal values that bear the name of an input or output: torch writes both, and the file is invalid."""
    taken = {*settings.inputs, *settings.outputs}
    outward = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    used = {value.name for value in _values(model)}
    for value in _values(model):
        if value.name in taken and id(value) not in outward:
            number = 1
            while f"{value.name}_{number}" in used:
                number += 1
            value.name = f"{value.name}_{number}"
            used.add(value.name)


def _values(model: Any) -> list[Any]:
    found = list(model.graph.initializers.values())
    for node in model.graph.all_nodes():
        found += node.outputs
    return found


@contextmanager
def gathered_warnings(verbose: bool) -> Iterator[list[str]]:
    """Every warning, once each, from Python's warnings and from torch's loggers, without paths; on the terminal, too,
    where the exporter is to be verbose."""
    texts: dict[str, None] = {}

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts[paths.without_paths(record.getMessage())] = None

    collect = Collect(logging.WARNING)
    shown = {
        name: list(logger.handlers)
        for name, logger in [("torch", logging.getLogger("torch")), *logging.root.manager.loggerDict.items()]
        if name.split(".")[0] == "torch" and isinstance(logger, logging.Logger)
    }
    for name, handlers in shown.items():
        mine = [collect] if name == "torch" or handlers else []
        logging.getLogger(name).handlers = [*mine, *(handlers if verbose else [])]
    found: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always")
            yield found
    finally:
        for name, handlers in shown.items():
            logging.getLogger(name).handlers = handlers
        for item in recorded:
            texts[f"{item.category.__name__}: {paths.without_paths(str(item.message))}"] = None
        found += texts
