"""Reads, checks, copies and writes ONNX files together with their external data."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import checker, external_data_helper, shape_inference

from onward.registry.errors import UsageError
from onward.registry.evidence.records import FileDigest, GraphInfo, TensorSpec, dimension
from onward.registry.files import write_atomically

# protobuf refuses messages of 2 GiB. Below that, a single file is simpler.
EXTERNAL_DATA_BYTES = 2_000_000_000


def load_graph(path: Path) -> onnx.ModelProto:
    """Load a graph without the weights in its external data."""
    return onnx.load(path, load_external_data=False)


def files(path: Path) -> list[Path]:
    """List the .onnx and the external data files that it refers to.

    Args:
        path: The .onnx.

    Returns:
        The .onnx, then its data files in order of their names.

    Raises:
        UsageError: It is not an ONNX file, or a data file is missing or is outside the folder of the .onnx.
    """
    return [path, *_external(_sound_graph(path), path)]


def digests(path: Path) -> list[FileDigest]:
    """Compute the digests of the .onnx and its external data, with paths relative to the folder of the .onnx."""
    return [FileDigest.of(file, path.parent) for file in files(path)]


def take_in(source: Path, target: Path) -> None:
    """Copy an .onnx and put its external data into one place.

    The source's external data may have any names and any number of files. It goes into the target .onnx, or, above
    EXTERNAL_DATA_BYTES, into one file `NAME.onnx.data` beside it. A file without external data is copied unchanged.

    Args:
        source: The .onnx to copy.
        target: The .onnx to write.

    Raises:
        UsageError: As `files`; or the external data is shorter than the graph declares.
    """
    found = files(source)
    if len(found) == 1:
        shutil.copyfile(source, target)
        return
    model = load_graph(source)
    try:
        for tensor in _external_tensors(model):
            external_data_helper.load_external_data_for_tensor(tensor, str(source.parent))
    except (checker.ValidationError, ValueError, OSError) as error:
        raise UsageError(f"{source.name}: its external data cannot be read: {' '.join(str(error).split())}") from error
    save(model, target, EXTERNAL_DATA_BYTES, sum(file.stat().st_size for file in found))


def check(path: Path, label: str = "") -> None:
    """Check that a file is valid ONNX.

    It must be readable, its operators and attributes must match their opset, and types and shapes must be consistent.

    Args:
        path: The .onnx.
        label: What the message calls the file; the file's name if empty.

    Raises:
        UsageError: The file is not valid.
    """
    files(path)
    try:
        checker.check_model(str(path), full_check=True)
        if sum(file.stat().st_size for file in files(path)) < EXTERNAL_DATA_BYTES:
            shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError) as error:  # ValueError: data too short
        first = " ".join(str(error).split())
        raise UsageError(f"{label or path.name}: is not valid ONNX: {first[:500]}") from error


def opset(model: onnx.ModelProto) -> int:
    """The version of the default operator set; 0 if the model declares none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def describe(path: Path) -> GraphInfo:
    """Describe the graph of an ONNX file.

    Args:
        path: The .onnx.

    Returns:
        Its inputs, outputs, operators, opsets and size.

    Raises:
        UsageError: As `files`.
    """
    model = _sound_graph(path)
    initializers = {tensor.name for tensor in model.graph.initializer}
    return GraphInfo(
        ir_version=model.ir_version,
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        inputs=[_spec(value) for value in model.graph.input if value.name not in initializers],
        outputs=[_spec(value) for value in model.graph.output],
        parameters=sum(_elements(tensor) for tensor in model.graph.initializer),
        nodes=len(model.graph.node),
        operators=dict(sorted(Counter(_operator(node) for node in model.graph.node).items())),
        size_bytes=sum(file.stat().st_size for file in [path, *_external(model, path)]),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def no_tensors(model: onnx.ModelProto) -> Iterator[str]:
    """Describe each input and output that is not a tensor, for example the maps of a converted classifier.

    Args:
        model: The model.

    Yields:
        One sentence per such input or output, with its remedy.
    """
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.WhichOneof("value")
        if kind == "tensor_type" or kind is None:
            continue
        words = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "optional"}.get(kind, kind)
        maps = kind == "sequence_type" and value.type.sequence_type.elem_type.HasField("map_type")
        remedy = "give every output as one tensor"
        if maps or kind == "map_type":
            words = "a sequence of maps" if maps else words
            remedy = "convert with options={'zipmap': False}"
        yield f"{value.name} is {words}, not a tensor: {remedy}"


def save(model: onnx.ModelProto, path: Path, external_over: int = EXTERNAL_DATA_BYTES, size: int | None = None) -> None:
    """Write a model to one file or, above `external_over` bytes, to a graph and a file with its weights.

    Args:
        model: The model.
        path: The .onnx to write.
        external_over: The size in bytes above which the weights go into `NAME.onnx.data`.
        size: The model's size in bytes if it is known; protobuf cannot compute sizes above 2 GiB.
    """
    if (model.ByteSize() if size is None else size) > external_over:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    else:
        write_atomically(path, model.SerializeToString(deterministic=True))


def _sound_graph(path: Path) -> onnx.ModelProto:
    try:
        model = load_graph(path)
    except FileNotFoundError:
        raise UsageError(f"{path.name}: there is no such file") from None
    except Exception as error:  # protobuf's DecodeError is not in its stable interface
        raise UsageError(f"{path.name}: is not an ONNX file, or is truncated ({type(error).__name__})") from error
    if not model.graph.node and not model.graph.initializer:
        raise UsageError(f"{path.name}: is not an ONNX file, or its graph is empty")
    return model


def _external(model: onnx.ModelProto, path: Path) -> list[Path]:
    names = {
        os.path.normpath(entry.value)  # "./weights" and "weights" are one file
        for tensor in _external_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = []
    for name in sorted(names):
        data = path.parent / name
        if Path(name).is_absolute() or not data.resolve().is_relative_to(path.parent.resolve()):
            raise UsageError(f"{path.name}: its external data {name!r} is outside the folder of the .onnx file")
        if not data.is_file():
            raise UsageError(f"{path.name}: its external data {name!r} is missing; put it beside the .onnx file")
        found.append(data)
    return found


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    declared = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim]
    shape = ["?" if known is None else known for known in map(dimension, declared)]
    return TensorSpec(name=value.name, dtype=_dtype(kind.elem_type), shape=shape)


def _dtype(kind: int) -> str:
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except KeyError:
        return onnx.TensorProto.DataType.Name(kind).lower() if kind else "not a tensor"


def _external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Every tensor of the model, including those in attributes of nodes and in subgraphs."""
    found: list[Any] = _weights(model.graph)
    waiting: list[Any] = list(model.graph.node) + [node for function in model.functions for node in function.node]
    while waiting:
        node = waiting.pop()
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
            for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                found += _weights(graph)
                waiting += graph.node
    return found


def _weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    sparse = [part for tensor in graph.sparse_initializer for part in (tensor.values, tensor.indices)]
    return [*graph.initializer, *sparse]
