"""Feeds the same cases to a model and to its reference, and judges what comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onward.registry import npz
from onward.registry.errors import NotReady
from onward.registry.evidence.records import CRASHES, CaseResult, CaseVerdict, OutputComparison
from onward.stages.config.schema import Output, Tolerance
from onward.stages.parity.cases import Case, jittered, shaken
from onward.stages.parity.compare import compare, squared_change, unexplained
from onward.stages.workers.worker import FailureKind, Tensors, Worker, WorkerFailure

Answers = dict[str, npt.NDArray[Any]]


# How often the original is asked again with weights and inputs moved by one unit in the last place.
SHAKES = 4
# A float64 reference is not believed where rounding does not explain its distance from float32 in so large a share of
# an output: a few elements may stand where a comparison or a rounding falls either way.
UNBELIEVED = 0.01
# Within these (relative, absolute) two answers are the same, whatever rounding explains: the default tolerance.
_SAME = Tolerance().rtol, Tolerance().atol
# The case of all dimensions at their largest, where it has so many times the elements of any other, takes as long as
# all others together. Its answers are compared like any other's; what needs it many times leaves it out.
LARGEST, TOWERING = "maximum@", 2
# Answers of more elements than that are not asked for again: their spread would take longer than all other cases.
MOST_ELEMENTS = 2**22


@dataclass(frozen=True)
class Expected:
    """What the reference answers to a case, or why it has no answer.

    Attributes:
        case: what was asked.
        outputs: the answers.
        truth: the same in float64, where that can be had and believed.
        spread: how far each element moves when weights and inputs move by one unit in the last place (root mean
            square over SHAKES runs): what float32 cannot tell of it.
        failure: why there is no answer.
        steady: whether the answer stays the same when the inputs move by a millionth, which the order of equal values
            does not. No model is held to an answer that does not.
        refused: whether the reference refuses the values of a made-up case, and takes real ones of the same sizes.
        unbelieved: outputs whose float64 answer was thrown away: largest distance from float32.
    """

    case: Case
    outputs: Answers = field(default_factory=dict)
    truth: Answers = field(default_factory=dict)
    spread: Answers = field(default_factory=dict)
    failure: WorkerFailure | None = None
    steady: bool = True
    refused: bool = False
    unbelieved: Mapping[str, float] = field(default_factory=dict)

    @property
    def probe(self) -> bool:
        """Whether the case informs only."""
        return self.case.probe or not self.steady or self.refused


class Reference(Protocol):
    """Whatever answers as the original does."""

    def run(self, inputs: Tensors) -> Answers:
        """Outputs."""

    def answer(self, inputs: Tensors) -> tuple[Answers, Answers]:
        """Outputs, and the same in float64 (empty where there is none)."""

    def shake(self, seed: int | None) -> bool:
        """Move every weight by one unit in the last place from now on, or back with None; whether that can be done."""


def answers(
    reference: Reference, cases: Iterable[Case], real: Callable[[Case], Tensors | None] = lambda case: None
) -> list[Expected]:
    """The reference's outputs, case by case; where it has none, why.

    Args:
        reference: the original.
        cases: what it is asked.
        real: real inputs of a case's sizes, or None. They tell whether the reference refuses a case's sizes, which it
            was declared to take, or its made-up values.
    """
    found = []
    for case in cases:
        try:
            outputs, truth = reference.answer(case.inputs)
            steady = not case.degenerate or _steady(outputs, reference.run(jittered(case)))
            found.append(Expected(case, outputs, truth, steady=steady))
        except WorkerFailure as failure:
            made_up = case.made_up and not case.probe and failure.kind == "error"
            found.append(Expected(case, failure=failure, refused=made_up and _takes(reference, real(case))))
    return [_believed(item) for item in _with_spread(reference, found)]


def _takes(reference: Reference, inputs: Tensors | None) -> bool:
    if inputs is None:
        return False
    try:
        reference.run(inputs)
    except WorkerFailure:
        return False
    return True


def _with_spread(reference: Reference, expected: list[Expected]) -> list[Expected]:
    """The same with the spread of every answer but the largest ones, where the reference can be shaken."""
    squares: list[Answers] = [{} for _ in expected]
    asked = {
        item.case.name
        for item in without_the_largest(expected)
        if item.failure is None and not item.probe and _elements(item) <= MOST_ELEMENTS
    }
    try:
        for seed in range(SHAKES):
            if not reference.shake(seed):
                return expected
            for item, sums in zip(expected, squares, strict=True):
                if item.case.name in asked:
                    _add_squares(sums, item, reference, seed)
    except WorkerFailure:  # the shaken model does not load: the exact one does, and is what counts
        return expected
    finally:
        reference.shake(None)
    return [
        replace(item, spread={name: np.sqrt(total / SHAKES).astype(np.float32) for name, total in sums.items()})
        for item, sums in zip(expected, squares, strict=True)
    ]


def _elements(item: Expected) -> int:
    return sum(value.size for value in item.outputs.values())


def _add_squares(sums: Answers, item: Expected, reference: Reference, seed: int) -> None:
    """Add to `sums` by how much a shaken reference's answers differ, squared. What is not finite adds nothing."""
    try:
        moved = reference.run(shaken(item.case, seed))
    except WorkerFailure:
        return
    for name, value in item.outputs.items():
        if value.dtype.kind in "fiub" and moved[name].shape == value.shape:
            sums[name] = sums.get(name, 0) + squared_change(moved[name], value)


def _believed(item: Expected) -> Expected:
    """The same without float64 answers that float32 arithmetic cannot explain."""
    unbelieved = {}
    for name, value in item.truth.items():
        wanted = item.outputs[name]
        if wanted.dtype.kind != "f" or wanted.shape != value.shape or item.probe or not wanted.size:
            continue
        odd = unexplained(wanted, value.astype(np.float64), item.spread.get(name))
        odd &= ~np.isclose(value, wanted, *_SAME)  # what no comparison would fail needs no explanation
        if odd.mean() > UNBELIEVED:
            unbelieved[name] = float(np.abs(wanted[odd] - value[odd]).max())
    truth = {name: value for name, value in item.truth.items() if name not in unbelieved}
    return replace(item, truth=truth, unbelieved=unbelieved) if unbelieved else item


def without_the_largest(expected: list[Expected]) -> list[Expected]:
    """All cases, except for that of the largest sizes where it towers over the others."""

    def elements(item: Expected) -> int:
        return math.prod(item.case.sizes.values())

    others = [item for item in expected if not item.case.name.startswith(LARGEST)]
    largest, next_one = (max(map(elements, items), default=0) for items in (expected, others))
    return others if largest > TOWERING * next_one else expected


def findings(expected: Iterable[Expected]) -> list[str]:
    """What is odd about a reference, in words: float64 answers that were thrown away, and made-up inputs it refuses."""
    found = []
    expected = list(expected)
    worst: dict[str, list[tuple[float, str]]] = {}
    for item in expected:
        for name, distance in item.unbelieved.items():
            worst.setdefault(name, []).append((distance, item.case.name))
    for name, distances in worst.items():
        distance, case = max(distances)
        found.append(
            f"the float64 reference of {name} was not used in {len(distances)} of {len(expected)} cases: it differs "
            f"from float32 by up to {distance:.3g} ({case}), which rounding does not explain"
        )
    refused = [item for item in expected if item.refused]
    if refused and refused[0].failure is not None:
        found.append(
            f"the original refuses the made-up values of {len(refused)} of {len(expected)} cases, so that these fail "
            f"nothing ({refused[0].case.name}: {refused[0].failure.reason[:200]}); say which values are valid: `range` "
            "of the input, or `cases`"
        )
    return found


def _steady(outputs: Tensors, moved: Tensors) -> bool:
    return all(output.verdict == "ok" for output in compare_outputs(outputs, moved, Tolerance()))


def check(candidate: Worker, expected: Iterable[Expected], tolerance: Tolerance) -> list[CaseResult]:
    """One result a case. A case that takes the worker down is a verdict; the remaining ones still run."""
    results = []
    for item in expected:
        case = item.case
        if item.failure is not None and not item.probe:
            results.append(_result(item, "error", f"no reference: {item.failure.reason}"))
            continue
        try:
            got = candidate.run(case.inputs)
        except WorkerFailure as failure:
            reason = f"case {case.name}: {failure.reason}"
            if item.failure is not None:
                reason += f"; the reference neither: {item.failure.reason}"
            results.append(_result(item, failure.kind, reason, signal=failure.signal))
            continue
        if item.failure is not None:
            reason = f"the model answers; the reference does not: {item.failure.reason}"
            results.append(_result(item, item.failure.kind, reason, signal=item.failure.signal))
            continue
        outputs = compare_outputs(item.outputs, got, tolerance, item.truth, item.spread)
        verdict: CaseVerdict = next((output.verdict for output in outputs if output.verdict != "ok"), "ok")
        results.append(_result(item, verdict, "", outputs))
    return results


def compare_outputs(
    reference: Tensors,
    got: Tensors,
    tolerance: Tolerance,
    truth: Tensors | None = None,
    spread: Tensors | None = None,
) -> list[OutputComparison]:
    """Every output of the reference against the one of the same name."""
    truth, spread = truth or {}, spread or {}
    return [
        compare(name, np.asarray(value), np.asarray(got[name]), *tolerance.of(name), truth.get(name), spread.get(name))
        if name in got
        else OutputComparison(output=name, verdict="missing output", reason="the model gives no such output")
        for name, value in reference.items()
    ]


def misdeclared(expected: Iterable[Expected], outputs: Mapping[str, Output]) -> str:
    """Where the reference's own answers have another shape than params.yaml declares; empty where they have not."""
    for item in expected:
        for name, value in item.outputs.items():
            spec = outputs[name]
            wanted = [item.case.sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape]
            if not item.case.probe and list(value.shape) != wanted:
                return (
                    f"the original gives {name} the shape {list(value.shape)} in case {item.case.name}; "
                    f"params.yaml declares {list(spec.shape)}: a dimension is frozen in its code, or misdeclared"
                )
    return ""


def crashed(results: Iterable[CaseResult]) -> list[CaseResult]:
    """The cases to which the model gave no answer at all, probes aside."""
    return [result for result in results if result.failed and result.verdict in CRASHES]


def sentence(results: Iterable[CaseResult]) -> str:
    """What failed, in words; empty when nothing did."""
    results = [result for result in results if not result.probe]
    failed = [result for result in results if result.failed]
    if not failed:
        return ""
    first = failed[0]
    worst: Mapping[str, Any] = max(
        (output.model_dump() for result in failed for output in result.outputs if output.out_abs is not None),
        key=lambda output: output["out_abs"],
        default={},
    )
    detail = first.reason or next((o.reason for o in first.outputs if o.verdict != "ok" and o.reason), "")
    text = f"{len(failed)} of {len(results)} cases failed; {first.case}: {first.verdict}"
    if detail:
        text += f" ({detail})"
    if worst:
        text += (
            f"; largest difference out of tolerance {worst['out_abs']:.3g} in {worst['output']}, "
            f"{worst['share_out']:.1%} of its elements"
        )
    return text


def save_answers(expected: Iterable[Expected], path: Path) -> None:
    """Write what the reference answers, so that later stages need not ask it again."""
    arrays: dict[str, Any] = {}
    about = []
    for number, item in enumerate(expected):
        for kind, tensors in (("outputs", item.outputs), ("truth", item.truth), ("spread", item.spread)):
            for position, value in enumerate(tensors.values()):
                arrays[f"{number}.{kind}.{position}"] = value
        failure = item.failure
        about.append(
            {
                "case": item.case.name,
                "outputs": list(item.outputs),
                "truth": list(item.truth),
                "spread": list(item.spread),
                "steady": item.steady,
                "refused": item.refused,
                "failure": None if failure is None else [failure.kind, failure.reason, failure.signal],
            }
        )
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def recall(path: Path, cases: Iterable[Case]) -> list[Expected]:
    """What `save_answers` wrote of these cases.

    Raises:
        NotReady: the file is missing, or is of other cases.
    """
    try:
        file = npz.arrays(path)
        about = json.loads(file["about"].tobytes())
        found = []
        for number, (case, entry) in enumerate(zip(cases, about, strict=True)):
            if entry["case"] != case.name:
                raise ValueError(f"{entry['case']} stands for {case.name}")
            failure: tuple[FailureKind, str, str] | None = entry["failure"]
            outputs, truth, spread = (
                {name: file[f"{number}.{kind}.{position}"] for position, name in enumerate(entry[kind])}
                for kind in ("outputs", "truth", "spread")
            )
            ended = WorkerFailure(*failure) if failure else None
            found.append(Expected(case, outputs, truth, spread, ended, entry["steady"], entry["refused"]))
        return found
    except (FileNotFoundError, ValueError) as error:
        raise NotReady(f"{path.name}: is not of these cases ({error}): run `onward stage verify` again") from None


def _result(
    item: Expected,
    verdict: CaseVerdict,
    reason: str = "",
    outputs: list[OutputComparison] | None = None,
    signal: str = "",
) -> CaseResult:
    return CaseResult(
        case=item.case.name,
        seed=item.case.seed,
        sizes=item.case.sizes,
        probe=item.probe,
        verdict=verdict,
        reason=reason,
        signal=signal,
        outputs=outputs or [],
    )
