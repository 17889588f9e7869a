"""The four ways in which torch can export a module to ONNX; stages/export.py chooses between them.

dynamo       torch.export, with the declared name and bounds of each dynamic dimension
dynamo-auto  torch.export with automatic dimensions: torch may find relations that the declared names exclude
script       torch.jit.script and the TorchScript exporter: keeps branches and loops that depend on values
trace        torch.jit.trace and the TorchScript exporter: follows one example (stages/exporting/tracing.py)
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
from onward.registry.evidence import size_expressions
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.config.schema import Dim, ModelParams
from onward.stages.parity.cases import Source, Tensors, own_cases
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
# The newest opset of the TorchScript exporter.
TORCHSCRIPT_OPSET = 20
# The tracer's warnings about conversions that stages/exporting/tracing.py did not see.
_CONVERTED = re.compile(r"TracerWarning: (Converting a tensor|Iterating over a tensor|Using len)")


@dataclass(frozen=True)
class Written:
    """An exporter's remarks on the file that it wrote.

    Attributes:
        warnings: Its warnings, each once.
        baked: Values of the example that the tracer baked into the graph, in words (stages/exporting/tracing.py).
    """

    warnings: list[str]
    baked: list[str]


def write(strategy: str, settings: ModelParams, weights: Path, target: Path, real: Tensors) -> Written:
    """Export a module in this process.

    Args:
        strategy: One of STRATEGIES.
        settings: The model's settings, with `build`.
        weights: The trained safetensors file.
        target: The ONNX file to write.
        real: Real inputs of the sizes of `example`, for modules that reject made-up ones.
    """
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
    """Reorder the graph's inputs as params.yaml lists them; forward() may use another order."""
    model = onnx_file.load_graph(path)
    found = {value.name: value for value in model.graph.input}
    if not found.keys() >= set(names) or [name for name in found if name in names] == names:
        return
    ordered = [*(found[name] for name in names), *(value for name, value in found.items() if name not in names)]
    model.graph.ClearField("input")
    model.graph.input.extend(ordered)
    path.write_bytes(model.SerializeToString(deterministic=True))


def example(settings: ModelParams, sizes: Sizes | None = None, draw: int = 0) -> dict[str, Any]:
    """Make one valid input for each name.

    Args:
        settings: The model's settings.
        sizes: Size of each named dimension; by default, sizes that no exporter treats specially (0 or 1).
        draw: Selects the random values: each number gives another example.

    Returns:
        Arrays by input name, of the declared shapes and dtypes.
    """
    rng = np.random.default_rng(settings.seed + draw)
    source = Source(settings.inputs, own_cases(settings))
    return source.tensors(example_sizes(settings.free_dims) if sizes is None else sizes, rng)


def dynamo(strategy: str, settings: ModelParams, module: torch.nn.Module, real: Tensors) -> Any:
    """Export with torch.export.

    Args:
        strategy: "dynamo", or "dynamo-auto" for automatic dimensions.
        settings: The model's settings.
        module: The module, with its weights.
        real: Real inputs of the sizes of `example`, for modules that reject made-up ones.

    Returns:
        torch's ONNXProgram. Its `exported_program` is the graph before the translation to ONNX.
    """
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
    """Prepare a module for the exporters.

    Args:
        settings: The model's settings.
        module: The module, with its weights.
        real: Real inputs of the sizes of `example`, used if the module rejects made-up ones.

    Returns:
        The module with positional tensors as inputs and outputs, the names of its inputs in its own order, and an
        example of each input.

    Raises:
        Mismatch: The module does not take or return what params.yaml declares.
    """
    import torch

    from onward.stages.workers.signature import Mismatch, exportable

    names = list(settings.inputs), list(settings.outputs)
    given = {name: torch.from_numpy(value) for name, value in example(settings).items()}
    try:
        return *exportable(module, *names, given), given
    except Mismatch:
        raise
    except Exception:  # the module may raise anything on made-up values, although params.yaml allows them
        given = {name: torch.from_numpy(np.array(real[name], order="C")) for name in settings.inputs}
        return *exportable(module, *names, given), given


def _dynamic_shapes(
    settings: ModelParams, module: torch.nn.Module, names: list[str], automatic: bool
) -> tuple[Any, ...]:
    """The dynamic axes of each argument, in the structure of forward()'s signature: `*args` is one tuple."""
    import torch

    varying = _varying(settings)
    dims = {name: torch.export.Dim.AUTO if automatic else _named(name, dim) for name, dim in varying.items()}
    # torch.export finds sizes that follow from others itself: it has no form for the sum of two dimensions.
    axes = tuple(
        {
            axis: dims.get(size, torch.export.Dim.AUTO)
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str) and not varying.keys().isdisjoint(size_expressions.names(size))
        }
        for spec in (settings.inputs[name] for name in names)
    )
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return axes
    before = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:before], axes[before:]) if len(axes) > before else axes


def _named(name: str, dim: Dim) -> Any:
    """A dimension for torch.export; a multiple of a number is that number times another dimension."""
    import torch

    factor = dim.multiple_of
    if factor == 1:
        return torch.export.Dim(name, min=dim.min, max=dim.max)
    return factor * torch.export.Dim(f"{name}_by_{factor}", min=dim.min // factor, max=dim.max // factor)


def _varying(settings: ModelParams) -> dict[str, Dim]:
    """The inputs' own dimensions that are not fixed."""
    return {name: dim for name, dim in settings.free_dims.items() if dim.varies}


def _translations(settings: ModelParams) -> dict[Any, Any] | None:
    """The model's own table of torch operators and their ONNX functions.

    Raises:
        UsageError: `export.custom_translations` names neither a table nor a function that returns one.
    """
    name = settings.export.custom_translations
    if name is None:
        return None
    table: Any = resolve(name, "export.custom_translations", wants="a table or a function")
    if not isinstance(table, Mapping) and callable(table):
        table = table()
    if not isinstance(table, Mapping):
        raise UsageError(
            f"params.yaml: export.custom_translations: {name} gives {type(table).__name__}, wanted a mapping from "
            "torch operators to ONNX functions, or a function that returns one"
        )
    return dict(table)


def _torchscript(
    strategy: str, settings: ModelParams, module: torch.nn.Module, target: Path, real: Tensors
) -> list[str]:
    """Export with the TorchScript exporter; returns the values that a trace baked into the graph, in words."""
    import torch

    from onward.stages.exporting import tracing

    made, names, given = as_exported(settings, module, real)
    arguments = tuple(given[name] for name in names)
    fixed = {name for name, dim in settings.dims.items() if dim.size is None and not dim.varies}
    shapes = {name: spec.shape for name, spec in settings.inputs.items()}
    shapes |= {name: spec.shape for name, spec in settings.outputs.items()}
    axes = {
        name: {
            axis: size
            for axis, size in enumerate(shape)
            if isinstance(size, str) and not fixed.issuperset(size_expressions.names(size))
        }
        for name, shape in shapes.items()
    }
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
        difference: tracing.of(made, tuple(torch.from_numpy(other[name]) for name in names))
        for difference, other in _other_examples(settings)
    }
    return tracing.baked(first, others)


def _other_examples(settings: ModelParams) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs that the exporter did not see, each with a description of what differs."""
    yield "other values", example(settings, draw=1)
    for sizes in (
        {name: dim.min or dim.multiple_of for name, dim in settings.free_dims.items()},
        {name: dim.max for name, dim in settings.free_dims.items()},
    ):
        if sizes:
            yield ", ".join(f"{name} {size}" for name, size in sizes.items()), example(settings, sizes)


def _free_names(model: Any, settings: ModelParams) -> None:
    """Rename internal values that have the name of an input or output; such a file is invalid."""
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
    """All initializers and node outputs."""
    found = list(model.graph.initializers.values())
    for node in model.graph.all_nodes():
        found += node.outputs
    return found


@contextmanager
def gathered_warnings(verbose: bool) -> Iterator[list[str]]:
    """Collect the warnings of a block from Python's `warnings` and from torch's loggers.

    Args:
        verbose: Also print what torch's loggers report.

    Yields:
        A list that is filled when the block ends: each warning once, without absolute paths.
    """
    texts: dict[str, None] = {}

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            """Keep the message."""
            texts[paths.without_paths(record.getMessage())] = None

    collect = Collect(logging.WARNING)
    shown = {
        name: list(logger.handlers)
        for name, logger in [("torch", logging.getLogger("torch")), *logging.root.manager.loggerDict.items()]
        if name.split(".")[0] == "torch" and isinstance(logger, logging.Logger)
    }
    for name, handlers in shown.items():
        own = [collect] if name == "torch" or handlers else []
        logging.getLogger(name).handlers = [*own, *(handlers if verbose else [])]
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
