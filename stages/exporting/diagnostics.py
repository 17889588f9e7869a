"""What commonly goes wrong between PyTorch and a runtime: each recognised, and said in a sentence with its remedy.

docs/export-pitfalls.md shows each with before and after.
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

# What exporters, checkers and runtimes say, and what it means. The first that fits is told.
_MEANINGS = {
    r"data-dependent|GuardOnDataDependent|vmap.*control flow|Dynamic control flow": (
        "a branch depends on input values, which an exported graph cannot follow: "
        "compute both sides and choose with torch.where, use torch.cond, or let torch.jit.script keep the branch "
        "(export.strategy: script)"
    ),
    r"No ONNX function found|UnsupportedOperator|DispatchError|ConversionError.*registered|Exporting the operator": (
        "an operator of the model has no ONNX translation: replace it by supported ones, raise export.opset, "
        "or give a translation of your own (export.custom_translations: module:table)"
    ),
    r"Constraints violated|specializ": "a dimension that params.yaml declares dynamic is fixed in the model's code: "
    "take sizes from x.shape instead of writing them down",
    r"forward\(\).*(argument|positional)": "forward() does not take the inputs that params.yaml declares",
    r"output_names|[Nn]umber of output": "the module does not return the outputs that params.yaml declares",
    r"[Oo]pset \d+ is under development|opset version \d+.*(support|guarantee)|No Op registered for|"
    r"domain_version|only \*guarantees\* support": (
        "the model asks for an opset that the runtime does not know: export with a lower export.opset, "
        "convert the file with onnx.version_converter, or take a newer onnxruntime"
    ),
    r"ShapeInferenceError|InferenceError|[Ss]hape inference": (
        "the shapes in the graph contradict each other: an axis or a size was written down where it should come "
        "from the input (torch.narrow, x.shape)"
    ),
    r"Unknown type annotation|NotSupportedError|torch\.jit\.frontend|Can't redefine|could not be script": (
        "torch.jit.script does not understand the code of the module"
    ),
}


def explain(reason: str, opening: str = "the exporter refused") -> str:
    """A tool's failure as a person would say it, followed by the tool's own first words."""
    words = [line.strip() for line in reason.splitlines() if line.strip()] or ["it said nothing"]
    summary = re.search(r"<class '([^']+)'>: (.+)", reason)  # torch's own, below pages of advice
    caused = f"{summary[1].rpartition('.')[2]}: {summary[2]}" if summary else ""
    likely = (line for line in words if re.search(r"(Error|Exception|Could not|Cannot|Fail)", line))
    caused = caused or next(likely, words[0])
    for pattern, meaning in _MEANINGS.items():
        if re.search(pattern, reason):
            return f"{meaning} ({opening}: {without_paths(caused)[:300]})"
    return f"{opening}: {without_paths(caused)[:500]}"


def traced(baked: list[str]) -> str:
    """What it means that a trace baked values of its example into the graph; empty where it did not."""
    if not baked:
        return ""
    more = f", and {len(baked) - 1} more" if len(baked) > 1 else ""
    return f"the graph holds values of the one example that was traced: {baked[0]}{more}"


# What to do about such a trace.
UNTRACED = (
    "choose with torch.where, keep the branch with torch.cond or torch.jit.script, take sizes from x.shape; if it is "
    "intended, declare export: {allow_traced_constants: true} in params.yaml"
)


def problems(model: onnx.ModelProto) -> Iterator[str]:
    """What makes a graph unfit to be deployed, whatever it computes on the cases."""
    yield from onnx_file.no_tensors(model)
    for node in nodes(model):
        if _trains(node, model):
            yield (
                f"{node.op_type} {node.name or node.output[0]!r}{_origin(node)} is in training mode: it would "
                "normalise by each batch, or drop at random; call eval() on that module before the export, and do "
                "not call train() in forward()"
            )


def findings(model: onnx.ModelProto) -> Iterator[str]:
    """What is odd about a graph without being wrong."""
    kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if onnx.TensorProto.DOUBLE not in kinds:
        wide = list(_wide(model))
        if wide:
            yield (
                f"{len(wide)} float64 constant{'s' if len(wide) > 1 else ''} in a graph without float64 inputs "
                f"(the first: {wide[0]}): what they touch is cast and computed in float64; make them of the input's "
                "dtype (torch.tensor(..., dtype=x.dtype), no NumPy scalars)"
            )
    random = [node for node in nodes(model) if node.op_type in _RANDOM]
    if random:
        yield (
            f"{random[0].op_type}{_origin(random[0])} draws at random: no two runs answer alike; "
            "take the noise as an input"
        )


_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


def _origin(node: onnx.NodeProto) -> str:
    module, source = origin(node)
    said = " of ".join(filter(None, (f"in {source}" if source else "", module)))
    return f" ({said})" if said else ""


def _trains(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "BatchNormalization":
        return bool(attributes.get("training_mode", 0))
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        return any(bool(value.any()) for value in _constants(model, node.input[2]))
    return False


def _constants(model: onnx.ModelProto, name: str) -> Iterator[Any]:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            yield numpy_helper.to_array(tensor)
    for node in nodes(model):
        if node.op_type == "Constant" and name in node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield numpy_helper.to_array(attribute.t)


def _wide(model: onnx.ModelProto) -> Iterator[str]:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            yield tensor.name
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == onnx.TensorProto.DOUBLE:
                yield f"{node.output[0]}{_origin(node)}"
