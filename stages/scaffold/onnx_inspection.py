"""What an ONNX file says of its inputs and outputs, and the output shapes that it leaves open, found by running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import shape_inference

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.evidence.records import dimension
from onward.stages.scaffold.dimension_names import DimensionNames
from onward.stages.scaffold.found_model import BATCH, FoundDim, FoundModel, FoundShape, FoundTensor
from onward.stages.scaffold.output_shapes import Run, described_shape, unknown_axes
from onward.stages.workers.worker import AS_IT_IS, Worker, WorkerFailure

# Sizes to run a file at: small ones first; convolutions and pools may refuse these and take larger ones.
_SIZES = (2, 32, 224)
RUN_TIMEOUT_S = 60.0


def inspect_file(path: Path) -> FoundModel:
    """Read inputs, outputs and dimensions from an ONNX file. Native code checks it: call this in an isolated process.

    Raises:
        UsageError: the file is not valid ONNX, or has inputs or outputs that are no tensors.
    """
    onnx_file.check(path)
    model = onnx_file.load_graph(path)
    if problem := next(onnx_file.no_tensors(model), None):
        raise UsageError(f"{path.name}: {problem}")
    info = onnx_file.describe(path)
    declared = {value.name: value for value in model.graph.input}
    inputs = [(spec.name, spec.dtype, _declared_shape(declared[spec.name])) for spec in info.inputs]
    for name, _, shape in inputs:
        if shape is None:
            raise UsageError(
                f"{path.name}: input {name!r} has no shape, not even a number of axes: set it in the file, for "
                "instance with onnx.helper.make_tensor_value_info, and try again"
            )
    names = DimensionNames([(name, shape or ()) for name, _, shape in inputs])
    inferred = _inferred_shapes(model)
    outputs = []
    for spec in info.outputs:
        known = inferred.get(spec.name)
        outputs.append(FoundTensor(spec.name, spec.dtype, None if known is None else names.of_output(known)))
    rows = _embedding_rows(model)
    found = tuple(
        FoundTensor(name, dtype, names.inputs[name], (0, rows[name] - 1) if name in rows else None)
        for name, dtype, _ in inputs
    )
    first = {tensor.shape[0] for tensor in found if tensor.shape}
    used = dict.fromkeys(size for tensor in found for size in tensor.shape or () if isinstance(size, str))
    return FoundModel(found, tuple(outputs), {name: BATCH if name in first else FoundDim() for name in used})


def complete_outputs(path: Path, model: FoundModel) -> FoundModel:
    """Find the output sizes that the file leaves open by running it at two sizes of each dimension.

    Where the file cannot be run, an open axis 0 is assumed to be the batch.

    Args:
        path: the file.
        model: what `inspect_file` found in it.
    """
    if all(tensor.shape is not None and None not in tensor.shape for tensor in model.outputs):
        return model
    runs = _runs(path, model)
    first = next((t.shape[0] for t in model.inputs if t.shape and isinstance(t.shape[0], str)), None)
    completed = []
    for tensor in model.outputs:
        shape = tensor.shape
        found = described_shape(tensor.name, runs)
        if shape is None:
            shape = found
        elif found is not None and len(found) == len(shape):
            shape = tuple(new if old is None else old for old, new in zip(shape, found, strict=True))
        elif not runs and shape and shape[0] is None:
            shape = (first, *shape[1:])
        completed.append(replace(tensor, shape=shape, note=unknown_axes(tensor.name, shape, runs)))
    return replace(model, outputs=tuple(completed))


def _runs(path: Path, model: FoundModel) -> list[Run]:
    """Two runs with different sizes of every dimension; none where ONNX Runtime refuses all that were tried."""
    with Worker.onnx(path, path.name, options=AS_IT_IS, timeout=RUN_TIMEOUT_S) as worker:
        for smallest in _SIZES:
            runs = []
            for sizes in _two_sizes(list(model.dims), smallest):
                try:
                    answers = worker.run({tensor.name: _filled(tensor, sizes) for tensor in model.inputs})
                except WorkerFailure:
                    break
                runs.append(Run(sizes, {name: value.shape for name, value in answers.items()}))
            if len(runs) == 2:
                return runs
    return []


def _two_sizes(dims: list[str], smallest: int) -> Iterator[dict[str, int]]:
    """Sizes for two runs: no two alike, and not in the same order, so that no sum of sizes looks like another size."""
    yield {name: smallest + number for number, name in enumerate(dims)}
    yield {name: smallest + len(dims) + 3 * number for number, name in enumerate(reversed(dims), 1)}


def _filled(tensor: FoundTensor, sizes: Mapping[str, int]) -> npt.NDArray[Any]:
    """A tensor that most models take: 0 is a valid index, and True keeps what a mask covers."""
    shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape or ()]
    return np.full(shape, tensor.dtype == "bool", np.dtype(tensor.dtype))  # type: ignore[arg-type]  # all are known


def _declared_shape(value: onnx.ValueInfoProto) -> FoundShape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in kind.shape.dim
    )


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, FoundShape | None]:
    """Shapes of the outputs: what the file declares, and what shape inference adds to it."""
    shapes = {value.name: _declared_shape(value) for value in model.graph.output}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # of native code, about shapes alone: running the file finds them
        return shapes
    for value in inferred.graph.output:
        found = _declared_shape(value)
        own = shapes[value.name]
        if own is None:
            shapes[value.name] = found
        elif found is not None and len(found) == len(own):
            shapes[value.name] = tuple(_better(*pair) for pair in zip(own, found, strict=True))
    return shapes


def _better(declared: int | str | None, inferred: int | str | None) -> int | str | None:
    """The more certain of two statements about an axis: a size, a name, nothing."""
    for kind in (int, str):
        for size in (declared, inferred):
            if isinstance(size, kind) and size != 0 and dimension(size) is not None:
                return size
    return declared


def _embedding_rows(model: onnx.ModelProto) -> dict[str, int]:
    """Inputs that select rows of a weight (an embedding), and how many rows the smallest such weight has."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    source = {value.name: value.name for value in model.graph.input if value.name not in weights}
    rows: dict[str, int] = {}
    for node in model.graph.node:
        given = source.get(node.input[0]) if node.input else None
        if node.op_type in ("Cast", "Identity") and given is not None:
            source[node.output[0]] = given
        if node.op_type != "Gather" or len(node.input) < 2 or not weights.get(node.input[0]):
            continue
        index = source.get(node.input[1])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if index is not None:
            size = weights[node.input[0]][axis]
            rows[index] = min(size, rows.get(index, size))
    return rows
