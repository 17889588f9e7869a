"""Feeds the same cases to a model and to its reference, and judges what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.evidence import CaseResult, CaseVerdict, OutputComparison
from stages.parity.cases import Case
from stages.parity.compare import compare
from stages.runtime.pool import Tensors, Worker, WorkerFailure

Answers = dict[str, npt.NDArray[Any]]


def answers(reference: Worker, cases: Iterable[Case]) -> list[tuple[Case, Answers | WorkerFailure]]:
    """The reference's outputs, case by case; where it has none, why."""
    found: list[tuple[Case, Answers | WorkerFailure]] = []
    for case in cases:
        try:
            found.append((case, reference.run(case.inputs)))
        except WorkerFailure as failure:
            found.append((case, failure))
    return found


def check(
    candidate: Worker, expected: Iterable[tuple[Case, Answers | WorkerFailure]], rtol: float, atol: float
) -> list[CaseResult]:
    """One result a case. A case that takes the worker down is a verdict; the remaining ones still run."""
    results = []
    for case, reference in expected:
        verdict: CaseVerdict
        if isinstance(reference, WorkerFailure):
            results.append(_result(case, "error", f"no reference: {reference.reason}"))
            continue
        try:
            got = candidate.run(case.inputs)
        except WorkerFailure as failure:
            verdict = failure.kind
            results.append(_result(case, verdict, failure.reason))
            continue
        outputs = compare_outputs(reference, got, rtol, atol)
        verdict = next((output.verdict for output in outputs if output.verdict != "ok"), "ok")
        results.append(_result(case, verdict, "", outputs))
    return results


def compare_outputs(reference: Tensors, got: Tensors, rtol: float, atol: float) -> list[OutputComparison]:
    """Every output of the reference against the one of the same name."""
    return [
        compare(name, np.asarray(value), np.asarray(got[name]), rtol, atol)
        if name in got
        else OutputComparison(output=name, verdict="missing output", reason="the model gives no such output")
        for name, value in reference.items()
    ]


def sentence(results: Iterable[CaseResult]) -> str:
    """What failed, in words; empty when nothing did."""
    results = list(results)
    failed = [result for result in results if result.verdict != "ok"]
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


def _result(
    case: Case, verdict: CaseVerdict, reason: str = "", outputs: list[OutputComparison] | None = None
) -> CaseResult:
    return CaseResult(
        case=case.name, seed=case.seed, sizes=case.sizes, verdict=verdict, reason=reason, outputs=outputs or []
    )
