"""Takes a model to ONNX, in evaluation mode, and says what the file is; one from elsewhere is taken as it is.

The bytes depend on the model and the toolchain alone: torch writes the absolute path of every source line into the
graph, which is made relative to the repository here, and nothing is added that changes while the model does not.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from registry import onnx_file
from registry.errors import UsageError
from registry.evidence import ExportReport, GraphInfo, load, sha256_file
from registry.evidence import TrainReport as Trained
from stages import command, paths
from stages.module import load_module
from stages.params import section
from stages.parity.cases import draw
from stages.reference import trained_file
from stages.reports import blocked
from stages.runtime import isolate
from stages.runtime.pool import WorkerFailure
from stages.settings import Dim, ModelParams

# The exporter's own minutes are few; a hang is a verdict on the model.
TIMEOUT = 1800.0


def export(model: str, folder: Path) -> ExportReport:
    """Export a model to ONNX with named dynamic dimensions, check the file's structure, and describe it.

    Writes build/MODEL/export/: model.onnx (over 2 GB with model.onnx.data beside it) and report.json.
    """
    settings = section(model, "export")
    reason = blocked(model, "train")
    if reason:
        return ExportReport(model=model, status="not attempted", reason=reason)
    weights = trained_file(model, settings)
    target = folder / "model.onnx"
    caught: list[str] = []
    try:
        if settings.is_torch:
            caught = isolate.call(TIMEOUT, _export, settings, weights, target)
        else:
            for path in onnx_file.files(weights):
                shutil.copyfile(path, folder / path.name)
        _finish(model, settings, target, sha256_file(weights))
        onnx_file.check(target)
        graph = onnx_file.describe(target)
        problems = list(_differences(settings, graph))
    except WorkerFailure as failure:
        return ExportReport(model=model, status="failed", reason=_plain(failure.reason))
    except UsageError as error:  # about a file that we made: a verdict on the export, not a user's mistake
        return ExportReport(model=model, status="failed", reason=str(error))
    return ExportReport(
        model=model,
        status="failed" if problems else "passed",
        reason="; ".join(problems),
        how="torch.onnx.export (dynamo)" if settings.is_torch else _origin(model),
        files=onnx_file.digests(target),
        graph=graph,
        warnings=caught,
    )


def example_sizes(dims: dict[str, Dim]) -> dict[str, int]:
    """A size for each dimension to export with: 2 or more, for the exporter takes 0 and 1 to be fixed, and no two
    alike where that can be had, or it may take two dimensions to be one."""
    sizes: dict[str, int] = {}
    for name, dim in dims.items():
        fitting = [size for size in range(max(2, dim.min), dim.max + 1) if size not in sizes.values()]
        sizes[name] = fitting[0] if fitting else dim.max
    return sizes


def _export(settings: ModelParams, weights: Path, target: Path) -> list[str]:
    """Export in this process; returns the exporter's warnings."""
    import torch

    assert settings.build is not None
    module = load_module(settings.build, weights)
    sizes = example_sizes(settings.dims)
    example = draw(settings.inputs, sizes, np.random.default_rng(settings.seed))
    dims = {name: torch.export.Dim(name, min=d.min, max=d.max) for name, d in settings.dims.items() if d.max > d.min}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str) and size in dims}
        for spec in settings.inputs.values()
    )
    with _warnings(settings.export.verbose) as caught, torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(example[name]) for name in settings.inputs),
            dynamo=True,
            opset_version=settings.export.opset,
            input_names=list(settings.inputs),
            output_names=list(settings.outputs),
            dynamic_shapes=shapes,
            optimize=settings.export.constant_folding,
            verbose=settings.export.verbose,
        )
        assert program is not None
        program.save(
            target,
            keep_initializers_as_inputs=settings.export.keep_initializers_as_inputs,
            external_data=weights.stat().st_size > onnx_file.EXTERNAL_DATA_BYTES,
        )
    return caught


@contextmanager
def _warnings(verbose: bool) -> Iterator[list[str]]:
    """Every warning, once each, from Python's warnings and from torch's loggers, without paths; on the terminal, too,
    where the exporter is to be verbose."""
    texts: dict[str, None] = {}

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts[_without_paths(record.getMessage())] = None

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
            texts[f"{item.category.__name__}: {_without_paths(str(item.message))}"] = None
        found += texts


def _finish(model: str, settings: ModelParams, path: Path, weights: str) -> None:
    """Make source paths relative, and write into the model what it is: name, inputs, outputs, digest of its weights."""
    graph = onnx_file.load_graph(path)
    for node in _nodes(graph):
        for entry in node.metadata_props:
            if entry.key.endswith("stack_trace"):
                entry.value = _without_paths(entry.value)
    about = {
        "onward.name": model,
        "onward.inputs": json.dumps({name: spec.model_dump() for name, spec in settings.inputs.items()}),
        "onward.outputs": json.dumps({name: spec.model_dump() for name, spec in settings.outputs.items()}),
        "onward.weights_sha256": weights,
    }
    kept = [entry for entry in graph.metadata_props if entry.key not in about]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    graph.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in about.items())
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _differences(settings: ModelParams, graph: GraphInfo) -> Iterator[str]:
    """Where the graph's inputs and outputs are not what params.yaml declares."""
    for kind, declared, found in (
        ("input", settings.inputs, {spec.name: spec for spec in graph.inputs}),
        ("output", settings.outputs, {spec.name: spec for spec in graph.outputs}),
    ):
        if list(declared) != list(found):
            yield f"the graph has the {kind}s {', '.join(found)}; params.yaml declares {', '.join(declared)}"
            continue
        for name, spec in declared.items():
            dtype = getattr(spec, "dtype", None)
            if dtype is not None and dtype != found[name].dtype:
                yield f"{kind} {name} is {found[name].dtype} in the graph, {dtype} in params.yaml"
            shape = found[name].shape
            if len(shape) != len(spec.shape):
                yield f"{kind} {name} has shape {shape} in the graph, {list(spec.shape)} in params.yaml"
                continue
            for wanted, size in zip(spec.shape, shape, strict=True):
                varies = isinstance(wanted, str) and settings.dims[wanted].min < settings.dims[wanted].max
                if varies and isinstance(size, int):
                    yield f"{kind} {name}: the dimension {wanted!r} is declared dynamic; the graph froze it at {size}"
                elif isinstance(wanted, int) and isinstance(size, int) and wanted != size:
                    yield f"{kind} {name} has shape {shape} in the graph, {list(spec.shape)} in params.yaml"


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _without_paths(text: str) -> str:
    """Paths of installed packages from the package on, paths of the repository from its root on, others by name."""
    text = re.sub(r"(/[^\s\"':,()]+)?/(site-packages|lib/python3\.\d+)/", "", text)
    text = text.replace(f"{paths.root()}/", "")
    return re.sub(r"(?<![\w.])/(?:[^\s\"':,()/]+/)+([^\s\"':,()/]+)", r"\1", text)


def _plain(reason: str) -> str:
    """The exporter's failure as a person would say it, followed by its own first words."""
    known = {
        r"data-dependent|GuardOnDataDependent|vmap.*control flow|Dynamic control flow": (
            "a branch depends on input values, which an exported graph cannot follow: "
            "compute both sides and choose with torch.where, or use torch.cond"
        ),
        r"No ONNX function found|UnsupportedOperator|DispatchError|ConversionError.*registered": (
            "an operator of the model has no ONNX translation: replace it by supported ones, or raise export.opset"
        ),
        r"Constraints violated|specializ": "a dimension that params.yaml declares dynamic is fixed in the model's code",
        r"forward\(\).*(argument|positional)": "forward() does not take the inputs that params.yaml declares",
        r"output_names|[Nn]umber of output": "the module does not return the outputs that params.yaml declares",
    }
    words = [line.strip() for line in reason.splitlines() if line.strip()]
    caused = next((line for line in words if re.search(r"(Error|Exception|Could not|Cannot)", line)), words[0])
    for pattern, sentence in known.items():
        if re.search(pattern, reason):
            return f"{sentence} (the exporter: {_without_paths(caused)[:300]})"
    return f"the exporter refused: {_without_paths(caused)[:500]}"


def _origin(model: str) -> str:
    return load(Trained, paths.build(model, "train") / "report.json").how


if __name__ == "__main__":
    command.run("export", export)
