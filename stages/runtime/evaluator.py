"""An ONNX graph computed node by node, with every operation open to be looked at or changed: onnx's own evaluator,
with the operators of operators.py in the place of its own where they cover a node.

`Wide` computes everything in float64. Nothing is rewritten for that: weights, constants and inputs are widened as they
are read, and a Cast to a float type leaves float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from stages.runtime import operators

Values = tuple[Any, ...]
Own = Callable[..., Values]

# In these, a step of the result is what float64 cannot compute around: the model itself is of whole numbers.
QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
}  # fmt: skip
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
# Operators whose operands say where to look or how large to be, by position: not to be moved by an ulp.
PLACES: dict[str, frozenset[int]] = {
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
}
# Half of the distance between 1 and the next float32: the largest relative error of rounding to it.
UNIT = 2.0**-24


class Unsupported(Exception):
    """The graph holds something that cannot be evaluated, or not in float64; the message says what."""


class OutOfTime(Exception):
    """The time for an evaluation is used up."""


def read(path: Path | str) -> onnx.ModelProto:
    """The model with all its weights, local functions put in the place of their calls, and one name for ONNX's domain.

    Raises:
        Unsupported: it is too large to be held as one message.
    """
    model = onnx.load(path)
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise Unsupported("the model is larger than 2 GB")
    if model.functions:
        model = inline_local_functions(model)
    for entry in model.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for node in nodes(model.graph):
        if node.domain == "ai.onnx":
            node.domain = ""
    return model


def graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and its subgraphs."""
    found = [graph]
    for outer in found:  # it grows on the way
        for node in outer.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    return found


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes of a graph, those of its subgraphs included."""
    return [node for part in graphs(graph) for node in part.node]


class Evaluation:
    """Computes a model; a subclass overrides `step`, `constant` or `given` to see or change what passes.

    Raises:
        Unsupported: the evaluator lacks an operator of the model.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.deadline = float("inf")
        try:
            self.evaluator: ReferenceEvaluator = type("Watched", (_Watched,), {"of": self})(model)
        except (NotImplementedError, RuntimeError) as error:
            raise Unsupported(" ".join(str(error).split(". Available")[0].split())[:300]) from None

    def run(self, inputs: Mapping[str, Any], deadline: float = float("inf")) -> dict[str, Any]:
        """Outputs by name.

        Raises:
            OutOfTime: `deadline`, by time.monotonic, passed before a node's turn.
        """
        self.deadline = deadline
        with np.errstate(all="ignore"):
            results = self.evaluator.run(None, {name: self.given(value) for name, value in inputs.items()})
        return dict(zip(self.evaluator.output_names, results, strict=True))

    def given(self, value: Any) -> Any:
        """An input, as it is fed."""
        return value

    def constant(self, value: Any) -> Any:
        """A weight, as it is kept."""
        return value

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        """What a node gives; `own` is the implementation of onnx."""
        return compute(node, opset, own, inputs)


class Wide(Evaluation):
    """In float64. With a generator in `shake`, every operand moves by up to a float32 ulp at random: how far the
    outputs move then is how far rounding moves them (Monte Carlo arithmetic, Parker 1997). Without `by_torch`, by
    onnx's own implementations alone."""

    def __init__(self, model: onnx.ModelProto, by_torch: bool = True) -> None:
        self.shake: np.random.Generator | None = None
        self.by_torch = by_torch
        self.narrow: set[str] = set()
        super().__init__(model)

    def given(self, value: Any) -> Any:
        return widened(value)

    def constant(self, value: Any) -> Any:
        return widened(value)

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        if self.shake is not None:
            inputs = shaken(node, inputs, self.shake)
        given = compute(node, opset, own, inputs) if self.by_torch else own(*inputs)
        results = in_float64(node, given, inputs)
        if any(_is_wide(value) for value in inputs) and any(_is_narrow(value) for value in results):
            self.narrow.add(node.op_type)  # computed in float32 on the way, whatever it was given
        return tuple(widened(value) for value in results)


def wide_step(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """What a node gives for inputs in float64."""
    return in_float64(node, compute(node, opset, own, inputs), inputs)


def in_float64(node: onnx.NodeProto, results: Values, inputs: Sequence[Any]) -> Values:
    """The results of a node; those of a Cast to a float type are its inputs, in float64."""
    if node.op_type == "Cast" and node.domain == "" and (_is_narrow(results[0]) or _is_wide(results[0])):
        return (inputs[0].astype(np.float64),) if inputs[0].dtype.kind in "fiub" else results
    return results


def compute(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """What a node gives: by PyTorch where operators.py covers it, else by onnx's own implementation."""
    try:
        return operators.apply(node, opset, inputs)
    except NotImplementedError:
        return own(*inputs)


def shaken(
    node: onnx.NodeProto, inputs: Sequence[Any], draws: np.random.Generator, relative: float = UNIT
) -> list[Any]:
    """The operands of a node, each element moved at random by up to a float32 ulp, whole numbers and places aside."""
    kept = PLACES.get(node.op_type, frozenset()) if node.domain == "" else frozenset()
    return [value if position in kept else moved(value, draws, relative) for position, value in enumerate(inputs)]


def moved(value: Any, draws: np.random.Generator, relative: float = UNIT) -> Any:
    """A float array with each element times 1 + `relative` at most; whole numbers, which are exact, stay."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    changed = value * (1 + draws.uniform(-relative, relative, value.shape))
    return np.where(np.isfinite(value) & (value != np.rint(value)), changed, value).astype(value.dtype)


def unit(value: Any) -> float:
    """The largest relative error of rounding to the dtype of `value`; 0 for whole numbers."""
    return float(np.finfo(value.dtype).eps) / 2 if value.dtype.kind == "f" else 0.0


def widened(value: Any) -> Any:
    """Floats as float64, in sequences too; all else as it is."""
    if isinstance(value, list):
        return [widened(item) for item in value]
    if isinstance(value, np.ndarray | np.generic) and _is_narrow(np.asarray(value)):
        return np.asarray(value).astype(np.float64)
    return value


def reason_against_float64(model: onnx.ModelProto) -> str:
    """Why float64 would say nothing of this graph; empty where it would."""
    kinds = {node.op_type for node in nodes(model.graph)}
    if kinds & QUANTISED:
        return f"it is quantised ({', '.join(sorted(kinds & QUANTISED))})"
    if kinds & RANDOM:
        return f"it draws at random ({', '.join(sorted(kinds & RANDOM))})"
    return ""


def _is_narrow(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.name in ("float32", "float16", "bfloat16")


def _is_wide(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _inside(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """A node of a function that is an operator's definition: its inputs are in float64, and it stays there."""
    return tuple(widened(value) for value in wide_step(node, opset, own, inputs))


class _Watched(ReferenceEvaluator):
    """onnx's evaluator, with each node handed to `of.step`. It makes evaluators of its own class for subgraphs and for
    operators that are functions; what happens inside such a function is the operator's own matter, in float64."""

    of: Evaluation

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rt_inits_ = {name: self.of.constant(value) for name, value in self.rt_inits_.items()}

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        made = super()._load_impl(node, input_types)
        self.is_graph = self.onnx_graph_ is not None
        opset = self.opsets[node.domain]

        def build(about: onnx.NodeProto, parameters: dict[str, Any]) -> Any:
            operator = made(about, parameters)
            if operator.need_context():  # If, Loop, Scan: their nodes are handed over one by one
                return operator
            own = operator.run

            def run(*inputs: Any, **options: Any) -> Values:
                if time.monotonic() > self.of.deadline:
                    raise OutOfTime
                step = self.of.step if self.is_graph else _inside
                return step(about, opset, lambda *given: own(*given, **options), inputs)

            operator.run = run
            return operator

        return build
