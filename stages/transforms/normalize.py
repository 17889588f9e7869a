"""Rewrites a float graph into the form that quantisers handle, without changing what it computes.

ONNX Runtime's quantisers fail on, or silently leave in float, what real files contain: old opsets, constants behind
nodes, a Gemm bias with two dimensions, one weight with two roles, values that the body of an If reads. Each rewrite
below names the fault that it avoids. The result runs beside the original on calibration samples and must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, inliner, numpy_helper

from onward.registry.artifact import onnx_file
from onward.registry.artifact.graph_nodes import nodes as nodes_of
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.graph_edit import (
    captured,
    drop_unused,
    set_nodes,
    store,
    subgraphs,
    unused_name,
    value_names,
)

Array = npt.NDArray[Any]

# QDQ with a scale per channel needs DequantizeLinear's attribute `axis`, which opset 13 introduced.
QDQ_OPSET = 13
# The oldest IR version in which initializers need not be graph inputs is 4; opset 13 belongs to 7.
IR_VERSION = 8
# The largest error of the rewritten graph, relative to the largest magnitude of an output. Other kernels may sum in
# another order, which leaves 1e-6.
NEAR = 1e-4
# Share of integers that may differ: an argmax of two nearly equal scores may change with the last digit.
TIES = 0.01
# Feeds with which the result is compared: one batch of several samples, or so many batches of one.
COMPARED = 4
# A folded constant may be this many times as large as the constants that it is computed from, or this many bytes.
GROWTH, SMALL_BYTES = 2, 65_536
# Operators that are not folded: their result is random, or they keep a weight in few bits on purpose.
NOT_FOLDED = {
    "Bernoulli", "DequantizeLinear", "Dropout", "Multinomial", "QuantizeLinear", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike",
}  # fmt: skip
# Inputs with weights, by operator. Each of these gets an initializer of its own role.
WEIGHTS = {
    "Attention": (1,), "Conv": (1,), "ConvTranspose": (1,), "EmbedLayerNormalization": (2, 3, 4), "GRU": (1, 2),
    "Gather": (0,), "Gemm": (1,), "LSTM": (1, 2), "MatMul": (0, 1), "RNN": (1, 2),
}  # fmt: skip
# Inputs with a bias, by operator. Its scale depends on the node's other inputs, so nodes must not share it.
BIASES = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
# The quantiser reshapes the weights of a recurrent layer in place.
OWN = {"GRU", "LSTM", "RNN"}
# What ONNX Runtime appends to a value's name to name its quantised form, scale and zero point.
SUFFIXES = ("_quantized", "_scale", "_zero_point")


class NotTheSame(Exception):
    """The rewritten graph computes something else; the message says where."""


def normalize(source: Path, target: Path, feeds: Sequence[Feed]) -> list[str]:
    """Rewrite the graph of `source` for quantisers, and write it to `target` if anything changed.

    Args:
        source: The float ONNX file.
        target: The ONNX file to write.
        feeds: Calibration inputs by name. The first ones prove that both graphs compute the same.

    Returns:
        The changes in words; empty if there is nothing to change.

    Raises:
        NotTheSame: The rewritten graph computes something else, or does not run.
    """
    model, changes = rewrite(onnx.load(source))
    if not changes:
        return []
    onnx_file.save(model, target)
    try:
        compare(source, target, feeds)
    except NotTheSame as fault:  # a fault of the opset's converter need not prevent the other rewrites
        if onnx_file.opset(onnx.load(source, load_external_data=False)) == onnx_file.opset(model):
            raise
        model, changes = rewrite(onnx.load(source), raises_opset=False)
        onnx_file.save(model, target)
        compare(source, target, feeds)
        changes.insert(0, f"opset not raised: {fault}")
    return changes


def rewrite(model: onnx.ModelProto, raises_opset: bool = True) -> tuple[onnx.ModelProto, list[str]]:
    """Apply every rewrite to a model, which is changed.

    Args:
        model: The model, with its weights.
        raises_opset: Whether to convert the model to opset 13 if it has an older one.

    Returns:
        The model, and the changes in words.
    """
    changes = []
    if model.functions:
        model = inliner.inline_local_functions(model)
        changes.append("functions inlined")
    if raises_opset and 0 < onnx_file.opset(model) < QDQ_OPSET:
        model, words = _raise_opset(model)
        changes.append(words)
    steps: list[Callable[[onnx.ModelProto], str]] = [
        _separate_inputs,
        _store_constants,
        _fold_constants,
        _flatten_gemms,
        _split_weights,
        _rename_clashes,
        _expose_captured,
        _drop_empty_inputs,
    ]
    changes += [words for words in (step(model) for step in steps) if words]
    if changes:
        model.ir_version = max(model.ir_version, IR_VERSION)
    return model, changes


def _raise_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Convert to opset 13: by onnx's converter, or by onnxscript's if that fails. If both fail, the opset stays."""
    before, reasons = onnx_file.opset(model), []
    for convert in (onnx.version_converter.convert_version, _convert_by_onnxscript):
        try:
            raised = convert(model, QDQ_OPSET)
        except Exception as error:  # both raise RuntimeError, ValueError and others, depending on the operator
            reasons.append(" ".join(str(error).split())[:200])
            continue
        if onnx_file.opset(raised) >= QDQ_OPSET:
            return raised, f"opset {before} raised to {onnx_file.opset(raised)}"
    return model, f"opset {before} not raised, although QDQ needs {QDQ_OPSET}: {'; '.join(reasons)}"


def _convert_by_onnxscript(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert to opset 18, the oldest that onnxscript's converter gives. It takes models over 2 GB, onnx's does not."""
    from onnxscript import version_converter

    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    version_converter.convert_version(raised, max(version, 18), fallback=True)
    return raised


def _separate_inputs(model: onnx.ModelProto) -> str:
    """Remove initializers from the graph's inputs: the quantisers replace constants only."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    count = len(model.graph.input) - len(inputs)
    if count:
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    return f"{count} initializers removed from the graph's inputs" if count else ""


def _store_constants(model: onnx.ModelProto) -> str:
    """Replace Constant nodes by initializers: a weight counts as constant only as an initializer."""
    outputs = {value.name for value in model.graph.output}
    kept, count = [], 0
    for node in model.graph.node:
        value = _constant(node) if node.op_type == "Constant" and node.output[0] not in outputs else None
        if value is None:
            kept.append(node)
        else:
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            count += 1
    if count:
        set_nodes(model.graph, kept)
    return f"{count} Constant nodes stored as initializers" if count else ""


def _constant(node: onnx.NodeProto) -> Array | None:
    """The value of a Constant node; None if it is no numeric tensor."""
    kinds = {
        "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
    }  # fmt: skip
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type != onnx.TensorProto.STRING:
            value: Array = numpy_helper.to_array(attribute.t)
            return value
        if attribute.name in kinds:
            return np.asarray(helper.get_attribute_value(attribute), kinds[attribute.name])
    return None


def _fold_constants(model: onnx.ModelProto) -> str:
    """Compute what depends on constants alone, such as a transposed weight or the gates of an LSTM in another order."""
    graph = model.graph
    nodes = list(graph.node)
    constant = {tensor.name: _bytes(tensor) for tensor in graph.initializer}  # bytes of what each is computed from
    foldable = set()
    for index, node in enumerate(nodes):
        read = {name for name in node.input if name}
        is_plain = node.domain in ("", "ai.onnx") and node.op_type not in NOT_FOLDED | {"Constant"}
        if is_plain and read and read <= set(constant) and not any(subgraphs(node)):
            foldable.add(index)
            constant |= {name: sum(constant[one] for one in read) for name in node.output if name}
    if not foldable:
        return ""
    others = [node for index, node in enumerate(nodes) if index not in foldable]
    read = {name for node in others for name in node.input} | captured(graph)
    made = [nodes[index] for index in sorted(foldable)]
    values = _computed(model, made, sorted(name for node in made for name in node.output if name and name in read))
    fit = {name: v for name, v in values.items() if v.nbytes <= max(SMALL_BYTES, GROWTH * constant[name])}
    needed = (read | {value.name for value in graph.output}) - set(fit)
    kept = []
    for index in reversed(range(len(nodes))):
        if index not in foldable or needed & set(nodes[index].output):
            kept.append(nodes[index])
            needed |= set(nodes[index].input) - set(fit)
    again = {name for node in kept for name in node.output} & set(fit)
    for node in kept:  # it also gives a value that is too large to store
        node.output[:] = [f"{name}.unfolded" if name in again else name for name in node.output]
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in fit.items())
    count = len(nodes) - len(kept)
    set_nodes(graph, kept[::-1])
    drop_unused(graph)
    return f"{count} nodes of constants folded" if count else ""


def _computed(model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]) -> dict[str, Array]:
    """Values of some nodes that read constants only."""
    if not wanted:
        return {}
    part = onnx.ModelProto(ir_version=max(model.ir_version, IR_VERSION), opset_import=model.opset_import)
    part.graph.name = "constants"
    read = {name for node in nodes for name in node.input}
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    part.graph.node.extend(nodes)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    values = _session(part.SerializeToString()).run(wanted, {})
    return {name: value for name, value in zip(wanted, values, strict=True) if isinstance(value, np.ndarray)}


def _flatten_gemms(model: onnx.ModelProto) -> str:
    """Give each Gemm a bias of shape [n] and the factors alpha and beta of 1.

    A bias of [1, n] fails with "The truth value of an array with more than one element is ambiguous". Dynamic
    quantisation leaves a Gemm with factors in float.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = value_names(graph)
    nodes, count = [], 0
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        factors = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        alpha, beta = float(factors.get("alpha", 1.0)), float(factors.get("beta", 1.0))
        weight, changed = tensors.get(node.input[1]), False
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        if alpha != 1.0:
            values = numpy_helper.to_array(weight) * np.float32(alpha)
            node.input[1] = store(graph, values, node.input[1], names)
            _set_factor(node, "alpha")
            changed = True
        bias = tensors.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if bias is not None and bias.data_type == onnx.TensorProto.FLOAT:
            width = weight.dims[0 if factors.get("transB", 0) else 1]
            values = numpy_helper.to_array(bias)
            if beta != 1.0 or values.shape != (width,):
                values = values * np.float32(beta)
                _set_factor(node, "beta")
                changed = True
                if values.size == 1 or values.shape in ((width,), (1, width)):
                    flat = np.broadcast_to(values.reshape(-1), (width,))
                    node.input[2] = store(graph, np.ascontiguousarray(flat), bias.name, names)
                else:  # another bias for each row
                    rows, result = store(graph, values, bias.name, names), node.output[0]
                    product = unused_name(f"{result}.product", names)
                    del node.input[2:]
                    node.output[0] = product
                    nodes.append(helper.make_node("Add", [product, rows], [result], name=f"{result}.bias"))
        count += changed
    if count:
        set_nodes(graph, nodes)
        drop_unused(graph)
    return f"{count} Gemm nodes brought to a bias of shape [n] and factors of 1" if count else ""


def _set_factor(node: onnx.NodeProto, name: str) -> None:
    """Remove a factor; its default is 1."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _split_weights(model: onnx.ModelProto) -> str:
    """Copy an initializer that has two roles: a quantiser gives it one scale, or changes it for one of its readers."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names, inside = value_names(graph), captured(graph)
    roles: dict[str, dict[tuple[Any, ...], str]] = {}
    count = 0
    for number, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if name not in tensors:
                continue
            known = roles.setdefault(name, {("captured",): name} if name in inside else {})
            role = _role(node, slot, number)
            if role not in known:
                if not known or (
                    ("other",) in (role, *known) and len(known) == 1 and role[0] not in ("weight", "bias")
                ):
                    known[role] = name
                else:
                    known[role] = store(graph, numpy_helper.to_array(tensors[name]), name, names)
                    count += 1
            node.input[slot] = known[role]
    return f"{count} copies of initializers with several roles" if count else ""


def _role(node: onnx.NodeProto, slot: int, number: int) -> tuple[Any, ...]:
    """The role of a node's input: readers with one role can share an initializer."""
    if BIASES.get(node.op_type) == slot:
        return ("bias", number)
    if slot not in WEIGHTS.get(node.op_type, ()):
        return ("other",)
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return ("weight", node.op_type, slot, transposed, number if node.op_type in OWN else -1)


def _rename_clashes(model: onnx.ModelProto) -> str:
    """Rename initializers whose names a quantiser would make from those of other values, such as `w_scale` of `w`."""
    graph = model.graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        return ""  # it is quantised already: these are its scales
    names = value_names(graph)
    fixed = captured(graph) | {value.name for value in graph.output}
    renamed = {}
    for tensor in graph.initializer:
        stem = next((tensor.name.removesuffix(end) for end in SUFFIXES if tensor.name.endswith(end)), "")
        if stem in names and tensor.name not in fixed:
            renamed[tensor.name] = tensor.name = unused_name(f"{tensor.name}.own", names)
    for node in graph.node if renamed else ():
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return f"{len(renamed)} initializers renamed" if renamed else ""


def _expose_captured(model: onnx.ModelProto) -> str:
    """Put an Identity behind each value that a subgraph reads.

    The quantisers look at the inputs of nodes only. They may rename or remove a value that only a subgraph reads.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output if name}
    inside, names = sorted(captured(graph) & made), value_names(graph)
    only_copies = {n.output[0] for n in graph.node if n.op_type == "Identity" and n.output[0].endswith(".captured")}
    copies = {name: unused_name(f"{name}.captured", names) for name in inside if name not in only_copies}
    if not copies:
        return ""
    nodes = []
    for node in graph.node:
        for inner in subgraphs(node):
            _rename_inside(inner, copies)
        nodes.append(node)
        nodes += [
            helper.make_node("Identity", [name], [copies[name]], name=copies[name])
            for name in node.output
            if name in copies
        ]
    set_nodes(graph, nodes)
    return f"{len(copies)} values that subgraphs read made visible"


def _rename_inside(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    """Rename values from outside in a subgraph. A subgraph cannot return an outer value, so outputs are its own."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    left = {name: new for name, new in renamed.items() if name not in own}
    for node in graph.node:
        node.input[:] = [left.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            _rename_inside(inner, left)
    for value in graph.output:
        value.name = left.get(value.name, value.name)


def _drop_empty_inputs(model: onnx.ModelProto) -> str:
    """Remove empty inputs at the end: a Conv with the bias "" fails."""
    count = 0
    for node in nodes_of(model):
        while node.input and not node.input[-1]:
            node.input.pop()
            count += 1
    return f"{count} empty inputs removed" if count else ""


def compare(source: Path, target: Path, feeds: Sequence[Feed]) -> None:
    """Run a graph and a rewritten one on the first feeds.

    Args:
        source: The original ONNX file.
        target: The rewritten ONNX file.
        feeds: Calibration inputs by name.

    Raises:
        NotTheSame: They differ, or the rewritten one does not run.
    """
    if not feeds:
        return
    is_batch = any(len(value) > 1 for value in feeds[0].values() if np.ndim(value))
    feeds = feeds[: 1 if is_batch else COMPARED]
    before = _session(source)
    wanted = [before.run(None, feed) for feed in feeds]
    try:
        after = _session(target)
        answers = [after.run(None, feed) for feed in feeds]
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise NotTheSame(f"the rewritten graph does not run: {' '.join(str(error).split())[:300]}") from error
    names = [value.name for value in before.get_outputs()]
    for one, other in zip(wanted, answers, strict=True):
        for name, expected, got in zip(names, one, other, strict=True):
            difference = difference_of(expected, got)
            if difference:
                raise NotTheSame(f"the rewritten graph computes another {name}: {difference}")


def difference_of(expected: Any, got: Any) -> str:
    """Say how two values of an output differ by more than rounding; empty if they do not.

    Values that are no numbers, such as strings and maps, must be equal.
    """
    if not isinstance(expected, np.ndarray) or expected.dtype.kind not in "fiub":
        same = np.array_equal(expected, got) if isinstance(expected, np.ndarray) else expected == got
        return "" if same else "its entries differ"
    if expected.shape != got.shape:
        return f"shape {list(got.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind != "f":
        changed = float(np.mean(expected != got)) if expected.size else 0.0
        return f"{changed:.1%} of the entries differ" if changed > TIES else ""
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        return "NaN or infinity in other places"
    if not finite.any():
        return ""
    off = float(np.abs(got[finite].astype(np.float64) - expected[finite]).max())
    largest = float(np.abs(expected[finite]).max())
    return "" if off <= NEAR * max(largest, 1e-3) else f"the error is {off:.3g}, the largest value {largest:.3g}"


def _session(model: Path | bytes) -> Any:
    """A session on the CPU that takes the graph as it is, with one thread, so that no threads remain when it forks."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    given = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _bytes(tensor: onnx.TensorProto) -> int:
    count = int(np.prod(tensor.dims, dtype=np.int64))
    try:
        return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        return count
