"""Feeds the same cases to a model and to its reference, and judges what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError
from registry.vocabulary import CRASHES, CaseResult, CaseVerdict, OutputComparison
from stages.parity.cases import Case, jittered
from stages.parity.compare import compare
from stages.runtime.pool import FailureKind, Tensors, Worker, WorkerFailure
from stages.settings import Output, Tolerance

Answers = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Expected:
    """What the reference answers to a case: its outputs, and the same in float64 where that can be had (`truth`); or
    why it has none. It is not `steady` where the reference answers otherwise as soon as the inputs move by a millionth,
    as the order of equal values does: nobody is held to such an answer."""

    case: Case
    outputs: Answers = field(default_factory=dict)
    truth: Answers = field(default_factory=dict)
    failure: WorkerFailure | None = None
    steady: bool = True

    @property
    def probe(self) -> bool:
        """Whether the case informs only."""
        return self.case.probe or not self.steady


class Reference(Protocol):
    """Whatever answers as the original does."""

    def answer(self, inputs: Tensors) -> tuple[Answers, Answers]:
        """Outputs, and the same in float64 (empty where there is none)."""


def answers(reference: Reference, cases: Iterable[Case]) -> list[Expected]:
    """The reference's outputs, case by case; where it has none, why."""
    found = []
    for case in cases:
        try:
            outputs, truth = reference.answer(case.inputs)
            steady = not case.degenerate or _steady(outputs, reference.answer(jittered(case))[0])
            found.append(Expected(case, outputs, truth, steady=steady))
        except WorkerFailure as failure:
            found.append(Expected(case, failure=failure))
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
        outputs = compare_outputs(item.outputs, got, tolerance, item.truth)
        verdict: CaseVerdict = next((output.verdict for output in outputs if output.verdict != "ok"), "ok")
        results.append(_result(item, verdict, "", outputs))
    return results


def compare_outputs(
    reference: Tensors, got: Tensors, tolerance: Tolerance, truth: Tensors | None = None
) -> list[OutputComparison]:
    """Every output of the reference against the one of the same name."""
    return [
        compare(name, np.asarray(value), np.asarray(got[name]), *tolerance.of(name), (truth or {}).get(name))
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
        (output.model_dump() for result in failed for output in result.outputs if output.max_abs is not None),
        key=lambda output: output["max_abs"],
        default={},
    )
    detail = first.reason or next((o.reason for o in first.outputs if o.verdict != "ok" and o.reason), "")
    text = f"{len(failed)} of {len(results)} cases failed; {first.case}: {first.verdict}"
    if detail:
        text += f" ({detail})"
    if worst:
        text += (
            f"; largest difference {worst['max_abs']:.3g} in {worst['output']}, "
            f"{worst['share_out']:.1%} of its elements out of tolerance"
        )
    return text


def record(expected: Iterable[Expected], path: Path) -> None:
    """Write what the reference answers, so that later stages need not ask it again."""
    arrays: dict[str, Any] = {}
    about = []
    for number, item in enumerate(expected):
        for kind, tensors in (("outputs", item.outputs), ("truth", item.truth)):
            for position, value in enumerate(tensors.values()):
                arrays[f"{number}.{kind}.{position}"] = value
        failure = item.failure
        about.append(
            {
                "case": item.case.name,
                "outputs": list(item.outputs),
                "truth": list(item.truth),
                "steady": item.steady,
                "failure": None if failure is None else [failure.kind, failure.reason, failure.signal],
            }
        )
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def recall(path: Path, cases: Iterable[Case]) -> list[Expected]:
    """What `record` wrote of these cases.

    Raises:
        UsageError: the file is missing, or is of other cases.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            found = []
            for number, (case, entry) in enumerate(zip(cases, about, strict=True)):
                if entry["case"] != case.name:
                    raise ValueError(f"{entry['case']} stands for {case.name}")
                failure: tuple[FailureKind, str, str] | None = entry["failure"]
                outputs, truth = (
                    {name: file[f"{number}.{kind}.{position}"] for position, name in enumerate(entry[kind])}
                    for kind in ("outputs", "truth")
                )
                found.append(
                    Expected(case, outputs, truth, WorkerFailure(*failure) if failure else None, entry["steady"])
                )
            return found
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{path.name}: is not of these cases ({error}): run `python -m stages.verify` again") from None


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
