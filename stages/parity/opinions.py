"""Which of several implementations computes a graph otherwise, and at which node. No single one is believed.

The graph is evaluated node by node, and each node's inputs are given to ONNX Runtime as a model of that node alone. At
a node where the two differ, all implementations vote on the same inputs: ONNX Runtime, PyTorch (runtime/operators.py),
ONNX's own evaluator, and, where these have no majority, ONNX Runtime and ONNX's evaluator once more with the node
converted to a newer opset. Imports torch: call it in a process of its own.
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
from onward.stages.parity.check import SHAKES
from onward.stages.parity.compare import compare, squared_change
from onward.stages.workers import operators
from onward.stages.workers.evaluator import Evaluation, Own, Values, compute, read, wide_step
from onward.stages.workers.jitter import PLACES, graphs, moved

Array = npt.NDArray[Any]
RUNTIME, TORCH, EVALUATOR = "ONNX Runtime", "PyTorch", "ONNX's reference evaluator"
# To this opset a node is converted for another opinion: one that both know well.
NEWER = 22


@dataclass(frozen=True)
class Question:
    """A case on which ONNX Runtime and the evaluation of the whole graph differ.

    Attributes:
        case: its name.
        inputs: what was fed.
        outputs: what ONNX Runtime answered, its optimisations off.
        spread: as compare.compare takes it.
    """

    case: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    spread: dict[str, Array]


@dataclass(frozen=True)
class Dissent:
    """What was found out about a difference.

    Attributes:
        ruling: which implementation is wrong: ONNX Runtime, another one, or "open" where there is no majority.
        words: one sentence that says so, with the operator and the node.
    """

    ruling: Literal["runtime", "other", "open"]
    words: str


def settle(model: Path, questions: Iterable[Question], rtol: float, atol: float) -> list[Dissent]:
    """Find for each question the nodes where implementations differ, and which implementation is wrong there.

    Args:
        model: the ONNX file.
        questions: cases on which they differ.
        rtol: relative tolerance of a node's outputs.
        atol: absolute tolerance, relative to a node's largest output where that is under 1.

    Returns:
        what was found, each node once; the last one is the first node at which ONNX Runtime is not in the right.
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
    """Every node agrees: either rounding adds up along the graph, or ONNX Runtime computes the whole otherwise."""
    for name, value in question.outputs.items():
        got = outputs.get(name)
        if isinstance(got, np.ndarray):
            result = compare(name, value, got, rtol, atol, None, question.spread.get(name))
            if result.verdict != "ok" and question.spread:
                return Dissent(
                    "runtime",
                    f"{RUNTIME} computes another {name} from the whole graph than from its nodes one by one "
                    f"(case {question.case}: {_how_far(result)})",
                )
    return Dissent(
        "other",
        f"the float64 evaluation and {RUNTIME} differ in case {question.case}, and agree at every operator given the "
        "same inputs: the graph enlarges rounding",
    )


class _Ended(Exception):
    """ONNX Runtime is not in the right at a node: what follows from it needs no explanation."""


class _Walk(Evaluation):
    """Evaluates a graph along ONNX Runtime's values, and has a vote wherever another implementation differs."""

    def __init__(self, model: onnx.ModelProto, rtol: float, atol: float, found: dict[str, Dissent]) -> None:
        self.rtol, self.atol, self.found = rtol, atol, found
        self.differed = False
        self.nodes = _Nodes(model)
        super().__init__(model)

    def step(self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any]) -> Values:
        mine = compute(node, opset, own, inputs)
        theirs = self.nodes.run(node, inputs)
        if theirs is None or not all(isinstance(value, np.ndarray) for value in mine):
            return mine
        if self._apart(theirs, mine, None) is not None:
            spread = _spread(node, opset, own, inputs, len(theirs))
            result = self._apart(theirs, mine, spread)
            if result is not None:
                self.differed = True
                self._vote(node, opset, own, inputs, theirs, spread)
        return tuple(own if value is None else value for value, own in zip(theirs, mine, strict=False))

    def _vote(
        self, node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any], theirs: Values, spread: list[Any]
    ) -> None:
        key = f"{node.domain}.{node.op_type}"
        if key in self.found:  # an operator is found wrong once, however often the graph has it
            return
        votes: dict[str, Values] = {RUNTIME: theirs}
        for label, way in ((TORCH, lambda *given: operators.apply(node, opset, given)), (EVALUATOR, own)):
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
        against = next(
            (result for label in votes if (result := self._apart(theirs, votes[label], spread)) is not None), None
        )
        far = _how_far(against) if against is not None else "not at all"
        if not group:
            words = (
                f"{RUNTIME} and {_listed([label for label in votes if label != RUNTIME])} differ at {where} ({far}), "
                "and no majority of implementations tells which is right"
            )
            self.found[key] = Dissent("open", words)
            raise _Ended
        if RUNTIME in group:
            words = (
                f"{_listed(others)} {_verb(others, 'computes')} {where} otherwise than {_listed(group)}, which agree "
                f"({far}): {_listed(others)} {_verb(others, 'is')} wrong there"
            )
            self.found[key] = Dissent("other", words)
            return
        words = f"{RUNTIME} computes {where} otherwise than {_listed(group)}, which agree ({far}): it is wrong there"
        self.found[key] = Dissent("runtime", words)
        raise _Ended

    def _majority(self, votes: dict[str, Values], spread: list[Any]) -> list[str]:
        """The labels of more than half of all votes that agree with each other; empty where there are none such."""
        for mine in votes.values():
            group = [label for label, other in votes.items() if self._apart(mine, other, spread) is None]
            if len(group) > len(votes) / 2:
                return group
        return []

    def _apart(self, one: Values, other: Values, spread: list[Any] | None) -> OutputComparison | None:
        """The first output in which two differ; None where there is none such."""
        for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            if mine is None or theirs is None:
                continue
            got = np.asarray(theirs)
            if mine.dtype.kind in "fiub" and got.dtype.kind in "fiub":
                with np.errstate(all="ignore"):
                    got = got.astype(mine.dtype)  # a dtype of its own is the evaluator's habit, and no other value
            finite = np.abs(mine[np.isfinite(mine)]) if mine.dtype.kind == "f" else np.zeros(0)
            atol = self.atol * min(float(finite.max(initial=0)), 1.0)
            result = compare(
                str(at), mine, got, self.rtol, atol, None, spread[at] if spread and at < len(spread) else None
            )
            if result.verdict != "ok":
                return result
        return None


def _spread(node: onnx.NodeProto, opset: int, own: Own, inputs: Sequence[Any], outputs: int) -> list[Any]:
    """How far each output moves (root mean square) when the inputs move by one unit in the last place."""
    kept = PLACES.get(node.op_type, frozenset())
    exact = wide_step(node, opset, own, inputs)
    sums: list[Any] = [0.0] * outputs
    for seed in range(SHAKES):
        rng = np.random.default_rng(seed)
        given = [
            moved(value, rng) if isinstance(value, np.ndarray) and value.dtype.kind == "f" and at not in kept else value
            for at, value in enumerate(inputs)
        ]
        for at, (value, true) in enumerate(zip(wide_step(node, opset, own, given), exact, strict=True)):
            if (
                at < outputs
                and isinstance(value, np.ndarray)
                and value.dtype.kind in "fiub"
                and value.shape == true.shape
            ):
                sums[at] = sums[at] + squared_change(value, true)
    return [np.sqrt(total / SHAKES) if isinstance(total, np.ndarray) else None for total in sums]


class _Nodes:
    """Nodes of a model, each as a model of its own. What is constant in the model is constant there."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {tensor.name for graph in graphs(model.graph) for tensor in graph.initializer}
        self._sessions: dict[Any, onnxruntime.InferenceSession | None] = {}

    def run(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> Values | None:
        """What ONNX Runtime gives for one node, its optimisations off; None where it does not run the node alone."""
        if any(
            not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" for value in inputs if value is not None
        ):
            return None
        fed = {n: v for n, v in zip(node.input, inputs, strict=False) if n and n not in self.constants}
        key = (id(node), *((name, value.dtype, value.shape) for name, value in fed.items()))
        if key not in self._sessions:
            self._sessions[key] = _session(self.alone(node, inputs))
        session = self._sessions[key]
        try:
            return None if session is None else _placed(node, session.run(None, fed))
        except Exception:  # ONNX Runtime raises classes of its own; it has no opinion then
            return None

    def alone(self, node: onnx.NodeProto, inputs: Sequence[Any]) -> onnx.ModelProto:
        """A model of one node; its inputs have exactly these sizes."""
        given = {name: value for name, value in zip(node.input, inputs, strict=False) if name}
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in given.items()
                if name not in self.constants
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [numpy_helper.from_array(value, name) for name, value in given.items() if name in self.constants],
        )
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def newer(self, node: onnx.NodeProto, opset: int, inputs: Sequence[Any]) -> dict[str, Values]:
        """The votes of ONNX Runtime and ONNX's evaluator on the same node in a newer opset, where that has another
        version of the operator."""
        try:
            if node.domain or _version(node, NEWER) == _version(node, opset):
                return {}
            alone = onnx.shape_inference.infer_shapes(self.alone(node, inputs))
            model = version_converter.convert_version(alone, NEWER)
        except Exception:  # whatever the converter raises, there is no such vote
            return {}
        fed = {n: v for n, v in zip(node.input, inputs, strict=False) if n and n not in self.constants}
        votes: dict[str, Values] = {}
        session = _session(model)
        if session is not None:
            votes[f"{RUNTIME} at opset {NEWER}"] = _placed(node, session.run(None, fed))
        try:
            votes[f"{EVALUATOR} at opset {NEWER}"] = _placed(node, list(ReferenceEvaluator(model).run(None, fed)))
        except Exception:  # it does not cover the node
            return votes
        return votes


def _placed(node: onnx.NodeProto, results: Sequence[Any]) -> Values:
    """One result for each output of the node; None for one that is left out."""
    given = iter(results)
    return tuple(next(given) if name else None for name in node.output)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession | None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime raises classes of its own; it has no opinion then
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
