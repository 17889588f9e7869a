"""Edits to an ONNX file from elsewhere that do not change what it computes: its interface, its format, its opset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.text import suggestion
from onward.stages.config.schema import ModelParams
from onward.stages.parity.one_by_one import frozen_batch

# Since this IR version, initializers need not be graph inputs.
_FREE_INITIALIZERS = 4
# Ways to convert a file to another opset, in the order in which they are tried.
CONVERTERS = ("onnx.version_converter", "onnxscript.version_converter")


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own opset; 1 if the file names none."""
    return onnx_file.opset(model) or 1


def converted(model: onnx.ModelProto, version: int, converter: str) -> onnx.ModelProto:
    """Convert a model to another opset.

    Args:
        model: The model with all its weights, below 2 GB.
        version: The opset to convert to.
        converter: One of CONVERTERS.

    Returns:
        A converted copy, with the same inputs, outputs and metadata.

    Raises:
        ValueError: The converter failed, or left another opset or other inputs or outputs.
    """
    names = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
    try:
        if converter == CONVERTERS[0]:
            found = version_converter.convert_version(model, version)
        else:
            from onnxscript import version_converter as scripted

            found = onnx.ModelProto()
            found.CopyFrom(model)
            scripted.convert_version(found, version, fallback=False)
    except Exception as error:  # the converters raise errors without a common base
        raise ValueError(_first_line(error)) from error
    if opset(found) != version:
        raise ValueError(f"it left the opset at {opset(found)}")
    if names != [[value.name for value in values] for values in (found.graph.input, found.graph.output)]:
        raise ValueError("it changed the names of inputs or outputs")
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    found.ir_version = max(found.ir_version, helper.find_min_ir_version_for(found.opset_import, ignore_unknown=True))
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def fold_inputs(model: onnx.ModelProto, constants: Mapping[str, Any], where: str) -> None:
    """Replace inputs by constants, so that the file no longer has them and ONNX Runtime can fold what depends on them.

    Args:
        model: The model, with or without weights, which is changed.
        constants: The value of each input: a number, or a list that fits its shape.
        where: The key in params.yaml, for messages.

    Raises:
        UsageError: There is no such input, or the value does not fit its type or shape.
    """
    inputs = {value.name: value for value in model.graph.input}
    for name, value in constants.items():
        if name not in inputs:
            raise UsageError(f"{where}.{name}: there is no such input" + suggestion(name, inputs))
        kind = inputs[name].type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        try:
            array = np.array(np.broadcast_to(np.asarray(value, dtype), shape))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}.{name}: {value!r} does not fit the input, {dtype} {shape}: {error}") from None
        if 0 in shape:
            raise UsageError(f"{where}.{name}: the file leaves a size of this input open, so it cannot be a constant")
        model.graph.input.remove(inputs[name])
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name == name]:
            model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def tidy(model: onnx.ModelProto, settings: ModelParams, keep_initializers: bool = False) -> list[str]:
    """Bring a file's interface into the form that params.yaml declares, as far as that changes no value.

    Args:
        model: The model, with or without weights, which is changed.
        settings: The model's settings.
        keep_initializers: Whether initializers may be graph inputs.

    Returns:
        Findings.
    """
    return [
        *_without_old_initializers(model, keep_initializers),
        *_without_zipmaps(model),
        *_with_declared_outputs(model, list(settings.outputs)),
        *_with_named_dimensions(model, settings),
    ]


def _without_old_initializers(model: onnx.ModelProto, keep: bool) -> Iterator[str]:
    """Remove initializers from the graph's inputs; they cannot be folded there."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if keep or len(inputs) == len(model.graph.input):
        return
    count = len(model.graph.input) - len(inputs)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _FREE_INITIALIZERS)
    yield f"{count} initializers of the file were graph inputs, too (an old format); they are constants now"


def _without_zipmaps(model: onnx.ModelProto) -> Iterator[str]:
    """Replace each output of ZipMap, a sequence of maps from class to probability, by the tensor that it packs."""
    outputs = {value.name: value for value in model.graph.output}
    for node in [node for node in model.graph.node if node.op_type == "ZipMap" and node.output[0] in outputs]:
        classes = [
            list(value.ints) or list(value.strings) for value in node.attribute if value.name.startswith("class")
        ]
        tensor, name = node.input[0], node.output[0]
        if not classes or classes[0] != sorted(classes[0]):
            continue  # ONNX Runtime sorts the maps: they have another order than the tensor's columns
        node.CopyFrom(helper.make_node("Identity", [tensor], [name]))
        outputs[name].type.CopyFrom(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None, len(classes[0])]))
        yield f"{name} was a sequence of maps (ZipMap); it is the tensor of probabilities now, classes in sorted order"


def _with_declared_outputs(model: onnx.ModelProto, declared: Sequence[str]) -> Iterator[str]:
    """Bring the outputs into the declared order, and remove those that are not declared."""
    found = {value.name: value for value in model.graph.output}
    if not set(declared) <= set(found) or list(declared) == list(found):
        return
    kept = [found[name] for name in declared]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    left = [name for name in found if name not in declared]
    if left:
        yield f"the file's outputs {', '.join(left)} are not declared in params.yaml, and were removed"


def _with_named_dimensions(model: onnx.ModelProto, settings: ModelParams) -> Iterator[str]:
    """Give open dimensions (-1, 0 or unnamed) and a batch that is fixed at 1 the names that params.yaml declares."""
    batch = frozen_batch(model, settings)
    opened = 0
    for values, specs in ((model.graph.input, settings.inputs), (model.graph.output, settings.outputs)):
        for value in values:
            spec = specs.get(value.name)
            sizes = value.type.tensor_type.shape.dim
            if spec is None or len(sizes) != len(spec.shape):
                continue
            for wanted, size in zip(spec.shape, sizes, strict=True):
                is_open = not size.dim_value > 0 and not size.dim_param
                if (
                    isinstance(wanted, str)
                    and wanted in settings.dims
                    and (is_open or (wanted == batch and size.dim_value == 1))
                ):
                    opened += not is_open
                    size.dim_param = wanted
                elif isinstance(wanted, int) and size.dim_value < 0:
                    size.Clear()
    if opened:
        del model.graph.value_info[:]  # the file's sizes of inner values, with a batch of 1
        yield (
            f"the file fixes the batch at 1; params.yaml declares {batch!r} for it, so its inputs and outputs have "
            "that name now. verify compares other sizes with the file's answers to one sample at a time"
        )


def string_tensors(model: onnx.ModelProto) -> Iterator[str]:
    """Describe each input and output of strings, with the remedy."""
    for values, kind in ((model.graph.input, "input"), (model.graph.output, "output")):
        for value in values:
            if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
                remedy = (
                    "encode the strings as numbers before the model, and start the graph behind its encoder"
                    if kind == "input"
                    else f"remove {value.name} from outputs: in params.yaml, and it is removed from the file, or train "
                    "with classes that are integers"
                )
                yield f"the {kind} {value.name} is a tensor of strings, which Onward does not run: {remedy}"


def unfit(model: onnx.ModelProto) -> list[str]:
    """Inputs and outputs that no stage can handle: sequences, maps and strings."""
    return [*onnx_file.no_tensors(model), *string_tensors(model)]
