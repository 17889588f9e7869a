"""Runs the same cases through a model and its reference, and compares the outputs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onward.registry import npz
from onward.registry.errors import NotReady
from onward.registry.evidence.records import CRASHES, CaseResult, CaseVerdict, OutputComparison
from onward.stages.config.schema import Tolerance
from onward.stages.parity.cases import Case, jittered, shaken
from onward.stages.parity.compare import compare, squared_change, unexplained
from onward.stages.parity.sequences import drift
from onward.stages.workers.worker import FailureKind, Tensors, Worker, WorkerFailure

Answers = dict[str, npt.NDArray[Any]]


# Number of runs of the original with weights and inputs moved by one unit in the last place.
SHAKES = 8
# A slow original runs fewer times: after this many runs, none begins later than this many seconds.
FEWEST_SHAKES, SHAKE_SECONDS = 4, 30.0
# A float64 reference is discarded if rounding does not explain its distance from float32 in more than this share of an
# output's elements. A few elements may be at a threshold, where a comparison or a rounding can go either way.
UNBELIEVED = 0.01
# Within this (relative, absolute) tolerance, which is the default one, answers count as equal.
_SAME = Tolerance().rtol, Tolerance().atol
# The case with very large floats. Where the original overflows on it, the way in which it does tells nothing.
OVERFLOWING = "large@"
# The case with all dimensions at their maximum counts as much larger than the others from this ratio of elements on.
# It then takes as long as all others together. It is compared once, but left out of repeated runs.
LARGEST, TOWERING = "maximum@", 2
# No spread is computed for cases whose outputs have more elements in all; it would take longer than all other cases.
MOST_ELEMENTS = 2**22


@dataclass(frozen=True)
class Expected:
    """The reference's answer to a case, or why there is none.

    Attributes:
        case: The case.
        outputs: The reference's outputs by name.
        truth: The same in float64, where it exists and is plausible.
        spread: Change of each element when weights and inputs move by one unit in the last place, and equal values
            come in another order (root mean square over SHAKES runs). It estimates the element's rounding error in
            float32, and shows which elements depend on the order of equal values.
        failure: Why there is no answer.
        steady: Whether the answer stays the same when the inputs change by a millionth. The order of equal values
            does not. Models are not judged by an unsteady answer.
        refused: Whether the reference refuses the generated values of a case, but accepts real ones of the same sizes.
        unbelieved: Outputs whose float64 result was discarded, with its largest distance from float32.
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
        """Whether the case informs only and fails no model."""
        return self.case.probe or not self.steady or self.refused


class Reference(Protocol):
    """Anything that computes what the original does."""

    def run(self, inputs: Tensors) -> Answers:
        """Outputs by name."""

    def answer(self, inputs: Tensors) -> tuple[Answers, Answers]:
        """Outputs by name, and the same in float64 (empty if not supported)."""

    def shake(self, seed: int | None) -> bool:
        """Move every weight by one unit in the last place, or back with None; False if not supported."""

    @property
    def chooses(self) -> bool:
        """Whether a run after `shake` met an operator that chooses among equal values (workers/ties.py)."""


def answers(
    reference: Reference, cases: Iterable[Case], real: Callable[[Case], Tensors | None] = lambda case: None
) -> list[Expected]:
    """Run the reference on all cases.

    Args:
        reference: The original.
        cases: The cases.
        real: Returns real inputs of a case's sizes, or None. They show whether the reference refuses a case for its
            generated values, or for its sizes, which params.yaml declares as valid.

    Returns:
        The answer to each case, or why there is none.
    """
    found = []
    for case in cases:
        try:
            # A sequence has no float64 reference: its float32 state would be fed to it.
            alone = case.sequence is None
            outputs, truth = reference.answer(case.inputs) if alone else (case.outputs(reference.run), {})
            steady = not case.degenerate or _steady(reference, case, outputs)
            steady = steady and not (case.name.startswith(OVERFLOWING) and _overflows(outputs))
            found.append(Expected(case, outputs, truth, steady=steady))
        except WorkerFailure as failure:
            made_up = case.made_up and not case.probe and failure.kind == "error"
            found.append(Expected(case, failure=failure, refused=made_up and _takes(reference, real(case))))
    return [_believed(item) for item in _with_spread(reference, found)]


def _overflows(outputs: Answers) -> bool:
    """Whether floats are infinite or NaN."""
    return any(value.dtype.kind == "f" and not np.isfinite(value).all() for value in outputs.values())


def _takes(reference: Reference, inputs: Tensors | None) -> bool:
    if inputs is None:
        return False
    try:
        reference.run(inputs)
    except WorkerFailure:
        return False
    return True


def _with_spread(reference: Reference, expected: list[Expected]) -> list[Expected]:
    """Add the spread of every answer, if the reference supports it.

    The largest ones are run once more, in another order of equal values, and only if the model chooses among values.
    """
    squares: list[Answers] = [{} for _ in expected]
    reshaped: set[str] = set()
    answered = {item.case.name for item in expected if item.failure is None and not item.probe}
    repeated = answered & {item.case.name for item in without_the_largest(expected) if _elements(item) <= MOST_ELEMENTS}
    begun, done = time.monotonic(), 0
    try:
        for seed in range(SHAKES):
            if done >= FEWEST_SHAKES and time.monotonic() - begun > SHAKE_SECONDS:
                break
            if not reference.shake(seed):
                return expected
            for item, sums in sorted(zip(expected, squares, strict=True), key=lambda pair: _elements(pair[0])):
                if item.case.name in repeated:
                    kinds = "fiub"
                elif item.case.name in answered and seed == 0 and reference.chooses:
                    kinds = "iu"  # one run cannot estimate the rounding of floats
                else:
                    continue
                if not _add_squares(sums, item, reference, seed, kinds):
                    reshaped.add(item.case.name)
            done += 1
    except WorkerFailure:  # the perturbed model does not load; the exact one does, so only the spread is missing
        return expected
    finally:
        reference.shake(None)
    return [
        replace(
            item,
            spread={name: np.sqrt(total / done).astype(np.float32) for name, total in sums.items()},
            steady=item.steady and item.case.name not in reshaped,
        )
        for item, sums in zip(expected, squares, strict=True)
    ]


def _elements(item: Expected) -> int:
    return sum(value.size for value in item.outputs.values())


def _add_squares(sums: Answers, item: Expected, reference: Reference, seed: int, kinds: str) -> bool:
    """Add to `sums` the squared change of each element in one perturbed run. Changes that are not finite add 0.

    `kinds` are the NumPy kinds of the outputs to include.

    Returns:
        Whether all outputs kept their shapes. A size that depends on the data may change: a score near a threshold.
    """
    try:
        moved = shaken(item.case, seed).outputs(reference.run)
    except WorkerFailure:
        return True
    for name, value in item.outputs.items():
        if value.dtype.kind in kinds and moved[name].shape == value.shape:
            sums[name] = sums.get(name, 0) + squared_change(moved[name], value)
    return all(moved[name].shape == value.shape for name, value in item.outputs.items())


def _believed(item: Expected) -> Expected:
    """Discard float64 outputs whose distance from float32 exceeds rounding in too many elements."""
    unbelieved = {}
    for name, value in item.truth.items():
        wanted = item.outputs[name]
        if wanted.dtype.kind != "f" or wanted.shape != value.shape or item.probe or not wanted.size:
            continue
        odd = unexplained(wanted, value.astype(np.float64), item.spread.get(name))
        odd &= ~np.isclose(value, wanted, *_SAME)  # such small differences fail no comparison
        if odd.mean() > UNBELIEVED:
            unbelieved[name] = float(np.abs(wanted[odd] - value[odd]).max())
    truth = {name: value for name, value in item.truth.items() if name not in unbelieved}
    return replace(item, truth=truth, unbelieved=unbelieved) if unbelieved else item


def without_the_largest(expected: list[Expected]) -> list[Expected]:
    """Leave out the case of the largest sizes if it is much larger than the others."""

    def elements(item: Expected) -> int:
        return math.prod(item.case.sizes.values())

    others = [item for item in expected if not item.case.name.startswith(LARGEST)]
    largest, second = (max(map(elements, items), default=0) for items in (expected, others))
    return others if largest > TOWERING * second else expected


def findings(expected: Iterable[Expected]) -> list[str]:
    """Describe discarded float64 results, and generated inputs that the original refuses."""
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
        remedy = "declare which values are valid: with `range` of the input, or with `cases`"
        if all(item.case.from_cases for item in refused):
            remedy = "correct `cases`, which generates them"
        found.append(
            f"the original refuses the generated values of {len(refused)} of {len(expected)} cases, so these cases "
            f"fail no model ({refused[0].case.name}: {refused[0].failure.reason[:200]}); {remedy}"
        )
    return found


def _steady(reference: Reference, case: Case, outputs: Tensors) -> bool:
    try:
        moved = reference.run(jittered(case))
    except WorkerFailure:  # a value at the end of its range: the original refuses the next one
        return False
    return all(output.verdict == "ok" for output in compare_outputs(outputs, moved, Tolerance()))


def check(candidate: Worker, expected: Iterable[Expected], tolerance: Tolerance) -> list[CaseResult]:
    """Run a model on all cases and compare its outputs with the reference's.

    If a case ends the worker, that is its verdict, and the remaining cases still run.

    Args:
        candidate: The worker of the model.
        expected: The reference's answers.
        tolerance: Tolerances of the outputs.

    Returns:
        One result per case.
    """
    results = []
    for item in expected:
        case = item.case
        if item.failure is not None and not item.probe:
            results.append(_result(item, "error", f"no reference: {item.failure.reason}"))
            continue
        try:
            got = case.outputs(candidate.run)
        except WorkerFailure as failure:
            reason = f"case {case.name}: {failure.reason}"
            if item.failure is not None:
                reason += f"; the reference fails, too: {item.failure.reason}"
            results.append(_result(item, failure.kind, reason, signal=failure.signal))
            continue
        if item.failure is not None:
            reason = f"the model returns outputs, but the reference fails: {item.failure.reason}"
            results.append(_result(item, item.failure.kind, reason, signal=item.failure.signal))
            continue
        outputs = compare_outputs(item.outputs, got, tolerance, item.truth, item.spread)
        verdict: CaseVerdict = next((output.verdict for output in outputs if output.verdict != "ok"), "ok")
        result = _result(item, verdict, "", outputs)
        if case.sequence is not None:
            result.drift = drift(item.outputs, got)
        results.append(result)
    return results


def compare_outputs(
    reference: Tensors,
    got: Tensors,
    tolerance: Tolerance,
    truth: Tensors | None = None,
    spread: Tensors | None = None,
) -> list[OutputComparison]:
    """Compare every output of the reference with the model's output of the same name.

    Args:
        reference: The reference's outputs.
        got: The model's outputs.
        tolerance: Tolerances of the outputs.
        truth: The reference's outputs in float64.
        spread: As `Expected.spread`.
    """
    truth, spread = truth or {}, spread or {}
    return [
        compare(name, np.asarray(value), np.asarray(got[name]), *tolerance.of(name), truth.get(name), spread.get(name))
        if name in got
        else OutputComparison(output=name, verdict="missing output", reason="the model returns no output of this name")
        for name, value in reference.items()
    ]


def crashed(results: Iterable[CaseResult]) -> list[CaseResult]:
    """The cases, except probes, for which the model returned no outputs."""
    return [result for result in results if result.failed and result.verdict in CRASHES]


def sentence(results: Iterable[CaseResult]) -> str:
    """Summarise the failed cases in one sentence; empty if none failed. Probes do not count."""
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
    output_reasons = (output.reason for output in first.outputs if output.verdict != "ok" and output.reason)
    detail = first.reason or next(output_reasons, "")
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
    """Write the reference's answers to an .npz file, so that later stages need not run the reference again."""
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
    """Read the answers that `save_answers` wrote.

    Args:
        path: The file.
        cases: The same cases, in the same order.

    Raises:
        NotReady: The file is missing, or belongs to other cases.
    """
    try:
        file = npz.arrays(path)
        about = json.loads(file["about"].tobytes())
        found = []
        for number, (case, entry) in enumerate(zip(cases, about, strict=True)):
            if entry["case"] != case.name:
                raise ValueError(f"it contains {entry['case']} instead of {case.name}")
            failure: tuple[FailureKind, str, str] | None = entry["failure"]
            outputs, truth, spread = (
                {name: file[f"{number}.{kind}.{position}"] for position, name in enumerate(entry[kind])}
                for kind in ("outputs", "truth", "spread")
            )
            why = WorkerFailure(*failure) if failure else None
            found.append(Expected(case, outputs, truth, spread, why, entry["steady"], entry["refused"]))
        return found
    except (FileNotFoundError, ValueError) as error:
        raise NotReady(
            f"{path.name}: does not belong to these cases ({error}): run `onward stage verify` again"
        ) from None


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
