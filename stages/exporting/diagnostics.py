"""Recognises common export failures and explains each in a sentence with its remedy.

docs/export-pitfalls.md shows each with code before and after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import numpy_helper

from onward.registry.artifact import onnx_file
from onward.registry.artifact.graph_nodes import nodes, origin
from onward.stages.config.paths import without_paths

# Patterns in the messages of exporters, checkers and runtimes, with their explanations. The first match is used.
_MEANINGS = {
    r"data-dependent|GuardOnDataDependent|vmap.*control flow|Dynamic control flow": (
        "a branch depends on input values, which an exported graph cannot follow: "
        "compute both sides and choose with torch.where, use torch.cond, or let torch.jit.script keep the branch "
        "(export.strategy: script)"
    ),
    r"No ONNX function found|UnsupportedOperator|DispatchError|ConversionError.*registered|Exporting the operator": (
        "an operator of the model has no ONNX translation: replace it by supported ones, raise export.opset, "
        "or supply your own translation (export.custom_translations: module:table)"
    ),
    r"Constraints violated|specializ": "a dimension that params.yaml declares dynamic is fixed in the model's code: "
    "take sizes from x.shape instead of hard-coding them",
    r"forward\(\).*(argument|positional)": "forward() does not take the inputs that params.yaml declares",
    r"output_names|[Nn]umber of output": "the module does not return the outputs that params.yaml declares",
    r"[Oo]pset \d+ is under development|opset version \d+.*(support|guarantee)|No Op registered for|"
    r"domain_version|only \*guarantees\* support": (
        "the model requires an opset that the runtime does not support: export with a lower export.opset, "
        "convert the file with onnx.version_converter, or install a newer onnxruntime"
    ),
    r"NOT_IMPLEMENTED.*Could not find an implementation": (
        "ONNX Runtime has no kernel on the CPU for an operator in the type that the model computes in; if that is "
        "float16 or bfloat16, return module.float() from build() (or convert the file to float32): Onward makes "
        "variants in float16 and bfloat16 itself and measures them"
    ),
    r"ShapeInferenceError|InferenceError|[Ss]hape inference": (
        "the shapes in the graph contradict each other: an axis or a size is hard-coded that should come "
        "from the input (torch.narrow, x.shape)"
    ),
    r"Unknown type annotation|NotSupportedError|torch\.jit\.frontend|Can't redefine|could not be script": (
        "torch.jit.script does not support the module's code"
    ),
}


# The characters of a tool's own words that are quoted. torch's summary of several dimensions needs about 600.
SHOWN = 1000
# The same for an ONNX file from elsewhere, which has no code to change.
_MEANINGS_OF_A_FILE = {
    r"not a registered function/op|No Op registered for": (
        "the file contains an operator that ONNX Runtime lacks: name a library that implements it (custom_ops in "
        "params.yaml), convert the file to another opset, or install a newer onnxruntime"
    ),
    r"register_custom_ops_library|RegisterCustomOps|Failed to load library|invalid ELF header|file too short": (
        "the library of custom operators (custom_ops in params.yaml) cannot be loaded on this machine"
    ),
    r"[Oo]pset \d+ is under development|opset version \d+.*(support|guarantee)|domain_version|"
    r"only \*guarantees\* support|Unsupported model IR version": (
        "the file requires an opset or format that the runtime does not support: set a lower export.opset, convert the "
        "file, or install a newer onnxruntime"
    ),
    r"ShapeInferenceError|InferenceError|[Ss]hape inference": (
        "the shapes in the file contradict each other: correct the sizes that it states for inputs, outputs and inner "
        "values (graph.value_info), or convert the model again"
    ),
}


def explain(reason: str, opening: str = "the exporter refused", is_torch: bool = True) -> str:
    """Explain a tool's failure in one sentence, followed by the most telling line of its message.

    Args:
        reason: The tool's message, of any number of lines.
        opening: What failed, in words. It introduces the quoted line.
        is_torch: Whether the model is a PyTorch module, not an ONNX file from elsewhere.
    """
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or ["no message"]
    # torch prints its summary below pages of advice. The lines up to the next empty one belong to it.
    summary = re.search(r"<class '([^']+)'>: (.+(?:\n(?!\s*\n).+)*)", reason)
    cause = f"{summary[1].rpartition('.')[2]}: {' '.join(summary[2].split())}" if summary else ""
    likely = (line for line in lines if re.search(r"(Error|Exception|Could not|Cannot|Fail)", line))
    cause = cause or next(likely, lines[0])
    for pattern, meaning in (_MEANINGS if is_torch else _MEANINGS_OF_A_FILE).items():
        if re.search(pattern, reason):
            return f"{meaning} ({opening}: {without_paths(cause)[:SHOWN]})"
    return f"{opening}: {without_paths(cause)[:SHOWN]}"


def traced(baked: list[str]) -> str:
    """Describe the values of its example that a trace baked into the graph.

    Args:
        baked: One description for each value, from `tracing.baked`.

    Returns:
        A sentence that quotes the first value; empty if there is none.
    """
    if not baked:
        return ""
    more = f", and {len(baked) - 1} more" if len(baked) > 1 else ""
    return f"the graph contains values of the one example that was traced: {baked[0]}{more}"


# The remedy for such a trace.
UNTRACED = (
    "choose with torch.where, keep the branch with torch.cond or torch.jit.script, take sizes from x.shape; if the "
    "values are intended, declare export: {allow_traced_constants: true} in params.yaml"
)


def problems(model: onnx.ModelProto, is_torch: bool = True) -> Iterator[str]:
    """Yield the faults that make a graph unfit for deployment, even if it passes every case.

    Args:
        model: The graph.
        is_torch: As for `explain`.
    """
    remedy = "call eval() on that module before the export, and do not call train() in forward()"
    if not is_torch:
        remedy = "convert the model again in inference mode"
    yield from onnx_file.no_tensors(model)
    for node in nodes(model):
        if _trains(node, model):
            yield (
                f"{node.op_type} {node.name or node.output[0]!r}{_origin(node)} is in training mode: it would "
                f"normalise by batch statistics or drop values at random; {remedy}"
            )


def findings(model: onnx.ModelProto, is_torch: bool = True) -> Iterator[str]:
    """Yield properties of a graph that are unusual but not faults.

    Args:
        model: The graph.
        is_torch: As for `explain`.
    """
    kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if onnx.TensorProto.DOUBLE not in kinds:
        wide = list(_wide(model))
        if wide:
            yield (
                f"{len(wide)} float64 constant{'s' if len(wide) > 1 else ''} in a graph without float64 inputs "
                f"(the first: {wide[0]}): operators that use them compute in float64"
                + ("; create them in the input's dtype (torch.tensor(..., dtype=x.dtype), no NumPy scalars)" * is_torch)
            )
    random = [node for node in nodes(model) if node.op_type in _RANDOM]
    if random:
        yield (
            f"{random[0].op_type}{_origin(random[0])} draws random numbers: outputs differ from run to run; "
            "take the noise as an input"
        )


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


def _origin(node: onnx.NodeProto) -> str:
    """The node's source line and module in brackets; empty if the exporter recorded neither."""
    module, source = origin(node)
    place = " of ".join(filter(None, (f"in {source}" if source else "", module)))
    return f" ({place})" if place else ""


def _trains(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether a BatchNormalization or Dropout node is in training mode."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "BatchNormalization":
        return bool(attributes.get("training_mode", 0))
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        return any(bool(value.any()) for value in _constants(model, node.input[2]))
    return False


def _constants(model: onnx.ModelProto, name: str) -> Iterator[Any]:
    """The value of an initializer or Constant node of this name."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            yield numpy_helper.to_array(tensor)
    for node in nodes(model):
        if node.op_type == "Constant" and name in node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield numpy_helper.to_array(attribute.t)


def _wide(model: onnx.ModelProto) -> Iterator[str]:
    """Names of the float64 constants."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            yield tensor.name
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.DOUBLE:
                yield f"{node.output[0]}{_origin(node)}"
