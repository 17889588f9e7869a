"""Evaluates an ONNX graph node by node with onnx's reference evaluator.

The operators of operators.py replace onnx's own implementations for every node that they cover. `Wide` computes
everything in float64 without changing the graph: weights, constants and inputs are converted when they are read, and a
Cast to a float type keeps float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from onward.stages.workers import operators
from onward.stages.workers.jitter import graphs

Values = tuple[Any, ...]
Own = Callable[..., Values]

# These operators round to integers: in float64 the model would compute something else.
QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
}  # fmt: skip
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


class Unsupported(Exception):
    """The graph contains something that cannot be evaluated; the message says what."""


def read(path: Path | str) -> onnx.ModelProto:
    """Load a model with all its weights, with local functions inlined and the domain "ai.onnx" renamed to "".

    Raises:
        Unsupported: The model exceeds protobuf's limit of 2 GB for one message.
    """
    model = onnx.load(path)
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise Unsupported("the model is larger than 2 GB")
    if model.functions:
        model = inline_local_functions(model)
    for entry in model.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.domain = ""
    return model


def why_not_wide(model: onnx.ModelProto) -> str:
    """Why a float64 evaluation of this graph is no reference; empty if it is one."""
    kinds = sorted(QUANTISED & {node.op_type for graph in graphs(model.graph) for node in graph.node})
    return f"it is quantised ({', '.join(kinds)})" if kinds else ""


class Evaluation:
    """Evaluates a model. Subclasses override `step` or `widen` to observe or change values.

    Raises:
        Unsupported: The model contains random operators, or an operator that the evaluator lacks.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        kinds = sorted(RANDOM & {node.op_type for graph in graphs(model.graph) for node in graph.node})
        if kinds:
            raise Unsupported(f"it draws random numbers ({', '.join(kinds)})")
        try:
            self.evaluator: ReferenceEvaluator = type("Watched", (_Watched,), {"evaluation": self})(model)
        except (NotImplementedError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise Unsupported(" ".join(str(error).split(". Available")[0].split())[:300]) from None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate the model on these inputs.

        Args:
            inputs: Arrays by input name.

        Returns:
            Outputs by name.
        """
        with np.errstate(all="ignore"):
            results = self.evaluator.run(None, {name: self.widen(value) for name, value in inputs.items()})
        return dict(zip(self.evaluator.output_names, results, strict=True))

    def widen(self, value: Any) -> Any:
        """Convert an input or a weight before it is used; here it stays as it is."""
        return value

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        """Compute one node.

        Args:
            node: The node.
            opset: Opset version of the node's domain.
            own: onnx's implementation of the node.
            inputs: Its inputs; None for an omitted optional one.

        Returns:
            The node's outputs.
        """
        return compute(node, opset, own, inputs)


class Wide(Evaluation):
    """Evaluates a model in float64."""

    def widen(self, value: Any) -> Any:
        """Convert floats to float64."""
        return widened(value)

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        """Compute one node in float64."""
        return wide_step(node, opset, own, inputs)


def compute(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """Compute one node with PyTorch if operators.py covers it, else with onnx's implementation.

    Args and Returns as `Evaluation.step`.
    """
    try:
        return operators.apply(node, opset, inputs)
    except NotImplementedError:
        return own(*inputs)


def wide_step(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """Compute one node in float64. A Cast to a float type keeps float64.

    Args and Returns as `Evaluation.step`.
    """
    wide = [widened(value) for value in inputs]
    results = compute(node, opset, own, wide)
    if node.op_type == "Cast" and not node.domain and _is_float(results[0]) and wide[0].dtype.kind in "fiub":
        return (wide[0].astype(np.float64),)
    return tuple(widened(value) for value in results)


def widened(value: Any) -> Any:
    """Convert floats to float64, also inside sequences. Other values stay as they are."""
    if isinstance(value, list):
        return [widened(item) for item in value]
    return np.asarray(value).astype(np.float64) if _is_float(value) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


class _Watched(ReferenceEvaluator):
    """onnx's evaluator, which passes each node to `evaluation.step`.

    It creates evaluators of its own class for subgraphs and for operators that ONNX defines as functions. Nodes inside
    such a function belong to the operator and are not passed on.
    """

    evaluation: Evaluation

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rt_inits_ = {name: self.evaluation.widen(value) for name, value in self.rt_inits_.items()}

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        implementation = super()._load_impl(node, input_types)
        is_graph = self.onnx_graph_ is not None
        opset = self.opsets[node.domain]
        step_in_function = wide_step if isinstance(self.evaluation, Wide) else compute

        def build(built_node: onnx.NodeProto, parameters: dict[str, Any]) -> Any:
            operator = implementation(built_node, parameters)
            if operator.need_context():  # If, Loop, Scan: the nodes of their subgraphs are passed on one by one
                return operator
            own = operator.run

            def run(*inputs: Any, **options: Any) -> Values:
                step = self.evaluation.step if is_graph else step_in_function
                return step(built_node, opset, lambda *given: own(*given, **options), inputs)

            operator.run = run
            return operator

        return build
