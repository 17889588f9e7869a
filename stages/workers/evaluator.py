"""An ONNX graph computed node by node: onnx's own evaluator, with the operators of operators.py in place of its own
where they cover a node.

`Wide` computes everything in float64. The graph is not rewritten for that: weights, constants and inputs are widened as
they are read, and a Cast to a float type leaves float64.
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

# The result of these is rounded to whole numbers: computed in float64, the model is another one.
QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
}  # fmt: skip
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


class Unsupported(Exception):
    """The graph holds something that cannot be evaluated; the message says what."""


def read(path: Path | str) -> onnx.ModelProto:
    """The model with all its weights, local functions put in place of their calls, and one name for ONNX's domain.

    Raises:
        Unsupported: it is larger than one message may be.
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
    """Why float64 says nothing of this graph; empty where it does."""
    kinds = sorted(QUANTISED & {node.op_type for graph in graphs(model.graph) for node in graph.node})
    return f"it is quantised ({', '.join(kinds)})" if kinds else ""


class Evaluation:
    """Computes a model. A subclass overrides `step` or `widen` to see or to change what passes.

    Raises:
        Unsupported: the evaluator lacks an operator of the model, or the model draws at random.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        kinds = sorted(RANDOM & {node.op_type for graph in graphs(model.graph) for node in graph.node})
        if kinds:
            raise Unsupported(f"it draws at random ({', '.join(kinds)})")
        try:
            self.evaluator: ReferenceEvaluator = type("Watched", (_Watched,), {"of": self})(model)
        except (NotImplementedError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise Unsupported(" ".join(str(error).split(". Available")[0].split())[:300]) from None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name."""
        with np.errstate(all="ignore"):
            results = self.evaluator.run(None, {name: self.widen(value) for name, value in inputs.items()})
        return dict(zip(self.evaluator.output_names, results, strict=True))

    def widen(self, value: Any) -> Any:
        """An input or a weight, as it is computed with."""
        return value

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        """What a node gives; `own` is onnx's implementation."""
        return compute(node, opset, own, inputs)


class Wide(Evaluation):
    """In float64."""

    def widen(self, value: Any) -> Any:
        return widened(value)

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        return wide_step(node, opset, own, inputs)


def compute(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """What a node gives: by PyTorch where operators.py covers it, else by onnx's own implementation."""
    try:
        return operators.apply(node, opset, inputs)
    except NotImplementedError:
        return own(*inputs)


def wide_step(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
    """What a node gives in float64; a Cast from one float type to another changes nothing."""
    wide = [widened(value) for value in inputs]
    results = compute(node, opset, own, wide)
    if node.op_type == "Cast" and not node.domain and _is_float(results[0]) and wide[0].dtype.kind in "fiub":
        return (wide[0].astype(np.float64),)
    return tuple(widened(value) for value in results)


def widened(value: Any) -> Any:
    """Floats as float64, in sequences too; all else as it is."""
    if isinstance(value, list):
        return [widened(item) for item in value]
    return np.asarray(value).astype(np.float64) if _is_float(value) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


class _Watched(ReferenceEvaluator):
    """onnx's evaluator, with each node handed to `of.step`. It makes evaluators of its own class for subgraphs, and for
    operators that ONNX defines as functions: what happens inside such a function is the operator's own matter."""

    of: Evaluation

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rt_inits_ = {name: self.of.widen(value) for name, value in self.rt_inits_.items()}

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        made = super()._load_impl(node, input_types)
        is_graph = self.onnx_graph_ is not None
        opset = self.opsets[node.domain]
        inside = wide_step if isinstance(self.of, Wide) else compute

        def build(about: onnx.NodeProto, parameters: dict[str, Any]) -> Any:
            operator = made(about, parameters)
            if operator.need_context():  # If, Loop, Scan: their nodes are handed over one by one
                return operator
            own = operator.run

            def run(*inputs: Any, **options: Any) -> Values:
                step = self.of.step if is_graph else inside
                return step(about, opset, lambda *given: own(*given, **options), inputs)

            operator.run = run
            return operator

        return build
