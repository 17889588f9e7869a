"""Finds the node at which implementations of a graph differ, and which implementation is wrong. None is trusted alone.

The graph is evaluated node by node, and ONNX Runtime runs each node as a model of its own, on the same inputs. At a
node where the two differ, all implementations vote: ONNX Runtime, PyTorch (workers/operators.py) and ONNX's reference
evaluator. If there is no majority, ONNX Runtime and ONNX's evaluator vote once more, with the node converted to a newer
opset. This module imports torch, so call it in its own process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from onward.registry.evidence.records import OutputComparison
from onward.stages.parity.compare import compare, magnitude, squared_change
from onward.stages.workers import operators
from onward.stages.workers.circumstances import CURRENT
from onward.stages.workers.evaluator import Evaluation, Own, Values, compute, read, wide_step
from onward.stages.workers.jitter import PLACES, graphs, moved

Array = npt.NDArray[Any]
RUNTIME, TORCH, EVALUATOR = "ONNX Runtime", "PyTorch", "ONNX's reference evaluator"
# The opset to which a node is converted for further votes; ONNX Runtime and ONNX's evaluator support it well.
NEWER = 22
# Number of runs of one node with inputs moved by one unit in the last place. A node has few elements.
SHAKES = 4


@dataclass(frozen=True)
class Question:
    """A case on which ONNX Runtime and the evaluation of the whole graph differ.

    Attributes:
        case: Name of the case.
        inputs: Its inputs by name.
        outputs: ONNX Runtime's outputs by name, without optimisations.
        spread: As for compare.compare, by output name.
    """

    case: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    spread: dict[str, Array]


@dataclass(frozen=True)
class Dissent:
    """The cause of a difference.

    Attributes:
        ruling: The wrong implementation: "runtime" (ONNX Runtime), "other", or "open" if there is no majority.
        words: A sentence with the operator, the node and the implementations.
    """

    ruling: Literal["runtime", "other", "open"]
    words: str


def settle(model: Path, questions: Iterable[Question], rtol: float, atol: float) -> list[Dissent]:
    """Find the nodes at which implementations differ, and which implementation is wrong there.

    Args:
        model: The ONNX file.
        questions: Cases on which the implementations differ.
        rtol: Relative tolerance of a node's outputs.
        atol: Absolute tolerance; multiplied by a node's largest output if that is less than 1.

    Returns:
        One finding per operator. The search ends at the first node at which ONNX Runtime is wrong or nothing is
        certain, which is the last finding then.
    """
    graph = read(model)
    found: dict[str, Dissent] = {}
    for question in questions:
        walk = _Walk(graph, rtol, atol, found)
        try:
            outputs = walk.run(question.inputs)
        except _Ended:
            break
        if not walk.differed:
            found.setdefault("", _as_a_whole(question, outputs, rtol, atol))
            if found[""].ruling == "runtime":
                break
    return list(found.values())


def _as_a_whole(question: Question, outputs: dict[str, Any], rtol: float, atol: float) -> Dissent:
    """Explain a difference without a differing node: rounding grows, or ONNX Runtime changes the whole graph."""
    for name, value in question.outputs.items():
        got = outputs.get(name)
        if isinstance(got, np.ndarray):
            result = compare(name, value, got, rtol, atol, None, question.spread.get(name))
            if result.verdict != "ok" and question.spread:
                return Dissent(
                    "runtime",
                    f"{RUNTIME} computes a different {name} from the whole graph than node by node "
                    f"(case {question.case}: {_how_far(result)})",
                )
    return Dissent(
        "other",
        f"the float64 evaluation and {RUNTIME} differ in case {question.case}, but agree at every operator on the same "
        "inputs: the graph enlarges rounding",
    )


class _Ended(Exception):
    """ONNX Runtime is wrong at a node, or may be. Later differences can follow from it, so the search ends."""


class _Walk(Evaluation):
    """Evaluates a graph with ONNX Runtime's values, and holds a vote at every node that is computed differently."""

    def __init__(self, model: onnx.ModelProto, rtol: float, atol: float, found: dict[str, Dissent]) -> None:
        self.rtol, self.atol, self.found = rtol, atol, found
        self.differed = False
        self.nodes = _Nodes(model)
        super().__init__(model)

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        """Compute one node both ways, and continue with ONNX Runtime's outputs where it has any."""
        evaluated = compute(node, opset, own, inputs)
        runtime = self.nodes.run(node, inputs)
        if runtime is None or not all(isinstance(value, np.ndarray) for value in evaluated):
            return evaluated
        if self._difference(runtime, evaluated, None) is not None:
            spread = _spread(node, opset, own, inputs, len(runtime))
            if self._difference(runtime, evaluated, spread) is not None:
                self.differed = True
                self._vote(node, opset, own, inputs, runtime, spread)
        return tuple(other if value is None else value for value, other in zip(runtime, evaluated, strict=False))

    def _vote(
        self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any], runtime: Values, spread: list[Any]
    ) -> None:
        key = f"{node.domain}.{node.op_type}"
        if key in self.found:  # report each operator once, even if the graph contains it several times
            return
        votes: dict[str, Values] = {RUNTIME: runtime}
        for label, way in ((TORCH, lambda *values: operators.apply(node, opset, values)), (EVALUATOR, own)):
            try:
                votes[label] = way(*inputs)
            except Exception:  # an implementation that does not cover the node has no vote
                continue
        group = self._majority(votes, spread)
        if not group:
            votes |= self.nodes.newer(node, opset, inputs)
            group = self._majority(votes, spread)
        where = f"{node.op_type} {(node.name or node.output[0])!r} (opset {opset})"
        others = [label for label in votes if label != RUNTIME and label not in group]
        difference = next(
            (result for label in votes if (result := self._difference(runtime, votes[label], spread)) is not None), None
        )
        far = _how_far(difference) if difference is not None else "not at all"
        if not group:
            words = (
                f"{RUNTIME} and {_listed([label for label in votes if label != RUNTIME])} differ at {where} ({far}), "
                "and no majority of implementations shows which is right"
            )
            self.found[key] = Dissent("open", words)
            raise _Ended
        if RUNTIME in group:
            words = (
                f"{_listed(others)} {_verb(others, 'computes')} {where} differently from {_listed(group)}, which agree "
                f"({far}): {_listed(others)} {_verb(others, 'is')} wrong there"
            )
            self.found[key] = Dissent("other", words)
            return
        words = f"{RUNTIME} computes {where} differently from {_listed(group)}, which agree ({far}): it is wrong there"
        self.found[key] = Dissent("runtime", words)
        raise _Ended

    def _majority(self, votes: dict[str, Values], spread: list[Any]) -> list[str]:
        """The labels of more than half of all votes that agree with each other; empty if there is no majority."""
        for values in votes.values():
            group = [label for label, other in votes.items() if self._difference(values, other, spread) is None]
            if len(group) > len(votes) / 2:
                return group
        return []

    def _difference(self, one: Values, other: Values, spread: list[Any] | None) -> OutputComparison | None:
        """The comparison of the first output in which two results differ; None if they agree."""
        for position, (wanted, value) in enumerate(zip(one, other, strict=False)):
            if wanted is None or value is None:
                continue
            got = np.asarray(value)
            if wanted.dtype.kind in "fiub" and got.dtype.kind in "fiub":
                with np.errstate(all="ignore"):
                    got = got.astype(wanted.dtype)  # the evaluator's dtypes differ; that alone is no difference
            atol = self.atol * min(magnitude(wanted), 1.0)
            known = spread[position] if spread and position < len(spread) else None
            result = compare(str(position), wanted, got, self.rtol, atol, None, known)
            if result.verdict != "ok":
                return result
        return None


def _spread(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any], outputs: int) -> list[Any]:
    """Change of each output (root mean square, in float64) when the inputs move by one unit in the last place."""
    kept = PLACES.get(node.op_type, frozenset())
    exact = wide_step(node, opset, own, inputs)
    sums: list[Any] = [0.0] * outputs
    for seed in range(SHAKES):
        rng = np.random.default_rng(seed)
        perturbed = [
            moved(value, rng)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and position not in kept
            else value
            for position, value in enumerate(inputs)
        ]
        for position, (value, true) in enumerate(zip(wide_step(node, opset, own, perturbed), exact, strict=True)):
            if (
                position < outputs
                and isinstance(value, np.ndarray)
                and value.dtype.kind in "fiub"
                and value.shape == true.shape
            ):
                sums[position] = sums[position] + squared_change(value, true)
    return [np.sqrt(total / SHAKES) if isinstance(total, np.ndarray) else None for total in sums]


class _Nodes:
    """Runs each node of a model as a model of its own, in which the model's constants are constant, too."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {tensor.name for graph in graphs(model.graph) for tensor in graph.initializer}
        self._sessions: dict[Any, onnxruntime.InferenceSession | None] = {}

    def run(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> Values | None:
        """Run one node with ONNX Runtime, without optimisations; None if it cannot run the node alone."""
        if any(
            not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" for value in inputs if value is not None
        ):
            return None
        fed = self._fed(node, inputs)
        key = (id(node), *((name, value.dtype, value.shape) for name, value in fed.items()))
        if key not in self._sessions:
            self._sessions[key] = _session(self.alone(node, inputs))
        session = self._sessions[key]
        try:
            return None if session is None else _placed(node, session.run(None, fed))
        except Exception:  # ONNX Runtime raises its own exception classes; it has no vote then
            return None

    def _fed(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> dict[str, Any]:
        """The node's inputs by name, without the model's constants."""
        return {
            name: value for name, value in zip(node.input, inputs, strict=False) if name and name not in self.constants
        }

    def alone(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> onnx.ModelProto:
        """Make a model of one node, whose inputs have exactly these shapes."""
        values = {name: value for name, value in zip(node.input, inputs, strict=False) if name}
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in values.items()
                if name not in self.constants
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [numpy_helper.from_array(value, name) for name, value in values.items() if name in self.constants],
        )
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def newer(self, node: onnx.NodeProto, opset: int, inputs: Sequence[Any]) -> dict[str, Values]:
        """The votes of ONNX Runtime and ONNX's evaluator on the node converted to opset NEWER.

        There are none if that opset has the same version of the operator, or the conversion fails.
        """
        try:
            if node.domain or _version(node, NEWER) == _version(node, opset):
                return {}
            alone = onnx.shape_inference.infer_shapes(self.alone(node, inputs))
            model = version_converter.convert_version(alone, NEWER)
        except Exception:  # the converter raises various classes; there are no such votes then
            return {}
        fed = self._fed(node, inputs)
        votes: dict[str, Values] = {}
        session = _session(model)
        if session is not None:
            votes[f"{RUNTIME} at opset {NEWER}"] = _placed(node, session.run(None, fed))
        try:
            votes[f"{EVALUATOR} at opset {NEWER}"] = _placed(node, list(ReferenceEvaluator(model).run(None, fed)))
        except Exception:  # the evaluator does not cover the node
            return votes
        return votes


def _placed(node: onnx.NodeProto, results: Sequence[Any]) -> Values:
    """One result per output of the node; None for an omitted output."""
    remaining = iter(results)
    return tuple(next(remaining) if name else None for name in node.output)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    for library in CURRENT.libraries:
        options.register_custom_ops_library(str(library))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime raises its own exception classes; it has no vote then
        return None


def _version(node: onnx.NodeProto, opset: int) -> int:
    return int(onnx.defs.get_schema(node.op_type, opset, node.domain).since_version)


def _how_far(result: OutputComparison) -> str:
    if result.out_abs is None:
        return result.reason or result.verdict
    return f"by up to {result.out_abs:.3g}, in {result.share_out:.1%} of the elements"


def _listed(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _verb(labels: Sequence[str], verb: str) -> str:
    return verb if len(labels) == 1 else {"computes": "compute", "is": "are"}[verb]
