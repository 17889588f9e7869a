"""Finds the first node of a graph that ONNX Runtime computes differently from a float64 evaluation of the same inputs,
and asks the other implementations about it. Imports torch and onnxruntime: call it in a process of its own.

The walk follows ONNX Runtime: each node is given the values that ONNX Runtime itself computed before it, so that
rounding of earlier nodes, and what a threshold makes of it, is never held against a node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, version_converter

from stages.parity.opinions import (
    EVALUATOR,
    RUNTIME,
    TORCH,
    Array,
    By,
    Difference,
    Opinion,
    Outcome,
    judge,
    outside,
    within,
)
from stages.runtime import evaluator, operators
from stages.runtime.evaluator import Own, Values

# What a node may be off: relative to the element; absolute (polynomials of tanh and sigmoid are that near to 0);
# and in float32 roundings of its operands, as the spread of some draws shows them.
RTOL, ATOL, ROUNDINGS, DRAWS = 1e-3, 2.0**-22, 256.0, 4
# Opsets to convert a node to, the newest first: what ONNX Runtime and ONNX's converter both know.
NEWER = (21, 18, 17, 15, 13)


def walk(path: Path, inputs: dict[str, Array], outputs: dict[str, Array], seconds: float) -> Outcome:
    """Compute the model of `path` node by node in ONNX Runtime; `outputs` is what it gave for the whole graph.

    Raises:
        TimeoutError: it takes longer than `seconds`.
        stages.runtime.evaluator.Unsupported: the evaluator lacks an operator.
    """
    steps = _Steps(evaluator.read(path))
    try:
        chained = steps.run(inputs, time.monotonic() + seconds)
    except evaluator.OutOfTime:
        raise TimeoutError(f"the nodes could not all be compared within {seconds:g} s") from None
    except _Found:
        return Outcome(tuple(steps.differences))
    differences = tuple(steps.differences)
    for name, whole in outputs.items():
        one = chained.get(name)
        if not isinstance(one, np.ndarray) or one.shape != whole.shape:
            return Outcome(differences, adds_up=False)
        unit = evaluator.unit(one)
        allowed = (RTOL + ROUNDINGS * unit) * np.abs(whole.astype(np.float64)) + ATOL
        if outside(one, whole, np.nan_to_num(allowed, nan=0.0, posinf=0.0)).any():
            return Outcome(differences, adds_up=False)
    return Outcome(differences)


class _Found(Exception):
    """There is no need to go on."""


class _Steps(evaluator.Evaluation):
    """Each node computed by ONNX Runtime, and held to the evaluation in float64 of the same inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self.draws = np.random.default_rng(0)
        self.differences: list[Difference] = []
        graphs = evaluator.graphs(model.graph)
        self.constants = {tensor.name for graph in graphs for tensor in graph.initializer} | {
            name for graph in graphs for node in graph.node if node.op_type == "Constant" for name in node.output
        }

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        if node.op_type == "Constant" or not all(value is None or isinstance(value, np.ndarray) for value in inputs):
            return evaluator.compute(node, opset, own, inputs)
        single = self._alone(node, inputs)
        try:
            got = _in_runtime(single, node, inputs)
        except Exception:  # a kernel that ONNX Runtime has within larger graphs alone: float16 on a CPU, for one
            return evaluator.compute(node, opset, own, inputs)
        wide = [evaluator.widened(value) for value in inputs]

        def compute(operands: Sequence[Any]) -> list[Any]:
            return _named(node, evaluator.wide_step(node, opset, own, operands))

        wanted = compute(wide)
        if not all(isinstance(value, np.ndarray) for value in (*got, *wanted)):
            return _all(node, got)
        if not within(got, wanted, [_plain(value) for value in wanted]):
            spread = self._spread(node, wide, wanted, compute, max(evaluator.unit(value) for value in got))
            allowed = [_plain(value) + extra for value, extra in zip(wanted, spread, strict=True)]
            if not within(got, wanted, allowed):
                self.differences.append(self._difference(node, opset, own, inputs, single, got, wanted, allowed))
                if RUNTIME not in self.differences[-1].ruling.right:
                    raise _Found
        return _all(node, got)

    def _spread(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Any],
        wanted: Sequence[Array],
        compute: Callable[[Sequence[Any]], list[Any]],
        unit: float,
    ) -> list[Array]:
        """ROUNDINGS times how far each element moves when the operands move by an ulp; for an integer that moves at
        all, infinitely far."""
        squares = [np.zeros(value.shape) for value in wanted]
        for _ in range(DRAWS):
            moved = compute(evaluator.shaken(node, inputs, self.draws, unit))
            for square, one, other in zip(squares, moved, wanted, strict=True):
                if one.shape != other.shape:
                    square[...] = np.inf
                elif other.dtype.kind != "f":
                    square[one != other] = np.inf
                else:
                    with np.errstate(invalid="ignore", over="ignore"):
                        square += np.nan_to_num(np.square(one - other), nan=0.0, posinf=np.inf)
        return [ROUNDINGS * np.sqrt(square / DRAWS) for square in squares]

    def _alone(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> onnx.ModelProto:
        """A model of this node: its weights are initializers, for some kernels want to know them beforehand."""
        given = dict(zip(node.input, inputs, strict=True))
        feeds = [
            helper.make_tensor_value_info(name, _kind(value), list(value.shape))
            for name, value in given.items()
            if value is not None and name not in self.constants
        ]
        weights = [
            numpy_helper.from_array(value, name)
            for name, value in given.items()
            if value is not None and name in self.constants
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "one node", feeds, outputs, weights)
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def _difference(
        self,
        node: onnx.NodeProto,
        opset: int,
        own: Own,
        inputs: Sequence[Any],
        single: onnx.ModelProto,
        got: list[Array],
        wanted: list[Array],
        allowed: list[Array],
    ) -> Difference:
        wide = [evaluator.widened(value) for value in inputs]
        # The evaluation is PyTorch's where operators.py covers the node, and the evaluator's elsewhere.
        opinions = [
            Opinion(RUNTIME, tuple(got)),
            *_asked(TORCH, lambda: _named(node, operators.apply(node, opset, wide))),
            *_asked(EVALUATOR, lambda: _named(node, evaluator.in_float64(node, own(*wide), wide))),
        ]
        newer = _newer(single, node, opset)
        if newer is not None:
            opinions += _asked(RUNTIME, lambda: _in_runtime(newer, node, inputs), True)
            opinions += _asked(EVALUATOR, lambda: _in_evaluator(newer, node, inputs), True)

        def same(one: Sequence[Array], other: Sequence[Array]) -> bool:
            return within(one, other, [2 * limit for limit in allowed])

        out, at = _farthest(got, wanted, allowed)
        values: dict[By, float] = {
            opinion.by: float(opinion.values[out].reshape(-1)[at])
            for opinion in opinions
            if not opinion.converted and opinion.values[out].size > at
        }
        outputs = [name for name in node.output if name]
        return Difference(node.op_type, node.name, outputs[out], opset, judge(opinions, same), values)


def _farthest(got: Sequence[Array], wanted: Sequence[Array], allowed: Sequence[Array]) -> tuple[int, int]:
    """The output that differs, and which of its elements does most."""
    for number, (one, other, limit) in enumerate(zip(got, wanted, allowed, strict=True)):
        if one.shape != other.shape:
            return number, 0
        apart = outside(one, other, limit)
        if apart.any():
            with np.errstate(invalid="ignore", over="ignore"):
                distance = np.abs(one.astype(np.float64) - other.astype(np.float64))
            return number, int(np.argmax(np.where(apart, np.nan_to_num(distance, nan=np.inf), -1.0)))
    raise AssertionError("called where nothing differs")


def _asked(by: By, ask: Callable[[], Sequence[Any]], converted: bool = False) -> list[Opinion]:
    """The opinion; none where an implementation does not cover the node."""
    try:
        values = ask()
    except Exception:  # whatever it is, it is no answer
        return []
    if not all(isinstance(value, np.ndarray) for value in values):
        return []
    return [Opinion(by, tuple(values), converted)]


def _newer(single: onnx.ModelProto, node: onnx.NodeProto, opset: int) -> onnx.ModelProto | None:
    """The same node in a newer opset, as ONNX's converter writes it; None where it cannot."""
    for newer in (number for number in NEWER if number > opset and not node.domain):
        try:
            return version_converter.convert_version(single, newer)
        except Exception:  # the converter lacks this step
            continue
    return None


def _in_runtime(model: onnx.ModelProto, node: onnx.NodeProto, inputs: Sequence[Any]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    feed = {name: value for name, value in zip(node.input, inputs, strict=True) if name in wanted}
    results: list[Array] = session.run([name for name in node.output if name], feed)
    return results


def _in_evaluator(model: onnx.ModelProto, node: onnx.NodeProto, inputs: Sequence[Any]) -> list[Any]:
    plain = evaluator.Wide(model, by_torch=False)
    wanted = set(plain.evaluator.input_names)
    feed = {name: value for name, value in zip(node.input, inputs, strict=True) if name in wanted}
    results = plain.run(feed)
    return [results[name] for name in node.output if name]


def _named(node: onnx.NodeProto, results: Sequence[Any]) -> list[Any]:
    """The results that have a name: an output that nobody reads may be left out."""
    return [value for name, value in zip(node.output, results, strict=False) if name]


def _all(node: onnx.NodeProto, results: Sequence[Any]) -> Values:
    """The results, one an output, with None for one without a name."""
    waiting = iter(results)
    return tuple(next(waiting) if name else None for name in node.output)


def _plain(value: Array) -> Array:
    """What is allowed without looking at the operands."""
    if value.dtype.kind != "f":
        return np.zeros(value.shape)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(RTOL * np.abs(value) + ATOL, nan=0.0, posinf=0.0)


def _kind(value: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))
