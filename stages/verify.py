"""Proves that the export computes what the original does: the same cases to both, each in a process of its own.

What the original answers is recorded beside the report, so that no later stage has to ask it again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from registry.evidence import ExportReport, TrainReport, VerifyReport, load
from registry.vocabulary import CaseResult, OutputKind, Parting
from stages import command, exporters, paths, pitfalls
from stages.params import section
from stages.parity import localize
from stages.parity.answers import cases, real_example, real_inputs
from stages.parity.cases import Case, find
from stages.parity.check import Expected, answers, check, compare_outputs, findings, misdeclared, record, sentence
from stages.parity.evaluate import Arrays, judged_by_quality, outputs_over, quality_of
from stages.parity.kinds import kinds_of
from stages.reference import reference_worker, split, trained_file
from stages.reports import blocked
from stages.runtime import isolate
from stages.runtime.pool import CPU, Worker, WorkerFailure
from stages.settings import ModelParams

# Cases that ONNX's reference evaluator is asked, the smallest ones: it computes in plain NumPy, node by node.
EVALUATED = 8
# Finding where a wrong answer comes from is worth this long.
LOCALIZE_SECONDS = 300.0
# How far the quality of the export may be from that of training: so many samples, or this share of it.
FLIPS, DRIFT = 2, 1e-3


def verify(model: str, folder: Path) -> VerifyReport:
    """Compare the export with the original on seeded random inputs, zeros, extremes, real samples and odd sizes.

    With --case, feed one case alone and print what comes of it; nothing is written then.
    Writes build/MODEL/verify/: report.json, and what the original answers: reference.npz, samples.npz.
    """
    settings = section(model, "verify")
    reason = blocked(model, "train", "data", "export")
    if reason:
        return VerifyReport(model=model, status="not attempted", reason=reason)
    report = VerifyReport(
        model=model, status="failed", provider=CPU, rtol=settings.tolerance.rtol, atol=settings.tolerance.atol
    )
    with reference_worker(model, settings) as reference:
        report.reference = reference.label
        try:
            reference.start()
            report.reason = _unsteady(reference, next(cases(model, settings, settings.verify)), settings)
            asked = cases(model, settings, settings.verify)
            expected = answers(reference, asked, real_inputs(model, settings))
            report.findings = findings(expected)
            report.reason = report.reason or misdeclared(expected, settings.outputs)
            wanted = outputs_over(reference.run, settings, split(model, "evaluation"))
        except WorkerFailure as failure:
            report.reason = pitfalls.explain(failure.reason, "the original does not answer")
    if report.reason:
        return report
    report.kinds = _kinds(model, settings, wanted)
    record(expected, folder / "reference.npz")
    np.savez(folder / "samples.npz", **wanted)  # type: ignore[arg-type]
    with _candidate(model, settings) as candidate:
        try:
            candidate.start()
        except WorkerFailure as failure:
            report.reason = pitfalls.explain(failure.reason, "the runtime refused the model")
            return report
        report.cases = check(candidate, expected, settings.tolerance)
        report.reason = sentence(report.cases)
        lost = "" if report.reason else _lost_quality(model, settings, candidate)
    if report.reason:
        again = next(case.case for case in report.cases if case.failed)
        report.parting = _parting(model, settings, expected, report.cases)
        where = f"; it {localize.sentence(report.parting)}" if report.parting and report.parting.value else ""
        report.reason += f"{where}; that case alone: python -m stages.verify {model} --case {again}"
    elif lost:
        report.reason = lost
    elif not settings.is_torch:
        report.evaluator, report.evaluated = _evaluate(model, settings, expected)
        disagree = sentence(report.evaluated)
        report.reason = disagree and f"ONNX Runtime and ONNX's reference evaluator disagree on the original: {disagree}"
    report.status = "failed" if report.reason else "passed"
    return report


def _kinds(model: str, settings: ModelParams, wanted: Arrays) -> list[OutputKind]:
    """What each output is, and whether the model's own measure judges it; guesses are said on stderr."""
    samples = split(model, "evaluation")
    read = judged_by_quality(settings, wanted, samples, f"models.{model}")
    kinds = kinds_of(settings.outputs, settings.inputs, wanted, samples.get("label"))
    found = [kind.model_copy(update={"by_quality": kind.output in read}) for kind in kinds]
    for kind in found:
        if settings.outputs[kind.output].kind is None and not kind.by_quality:
            print(
                f"verify {model}: {kind}; params.yaml may say otherwise (outputs.{kind.output}.kind)", file=sys.stderr
            )
    return found


def again(model: str, name: str) -> bool:
    """Feed one case alone to the original and to the export, print the result as JSON; whether it passed."""
    settings = section(model, "verify")
    case = find(cases(model, settings, settings.verify), name)
    with reference_worker(model, settings) as reference:
        expected = answers(reference, [case], real_inputs(model, settings))
    with _candidate(model, settings) as candidate:
        result: CaseResult = check(candidate, expected, settings.tolerance)[0]
    print(result.model_dump_json(indent=2))
    if result.failed and result.outputs:
        parting = _parting(model, settings, expected, [result])
        if parting is not None:
            print(localize.sentence(parting), file=sys.stderr)
    return not result.failed


def _candidate(model: str, settings: ModelParams) -> Worker:
    plain = paths.build(model, "export") / "model.onnx"
    return Worker.onnx(plain, f"{model} in ONNX Runtime", timeout=settings.verify.timeout)


def _unsteady(reference: Worker, case: Case, settings: ModelParams) -> str:
    """What is wrong where the original answers the same question in two ways; empty where it does not."""
    first, second = reference.run(case.inputs), reference.run(case.inputs)
    different = [o.output for o in compare_outputs(first, second, settings.tolerance) if o.verdict != "ok"]
    if not different:
        return ""
    return (
        f"the original answers otherwise each time it is asked the same ({', '.join(different)}): dropout or noise "
        "that forward() leaves on in evaluation mode; use modules that eval() switches off, not training=True"
    )


def _lost_quality(model: str, settings: ModelParams, candidate: Worker) -> str:
    """How the quality of the export differs from that of the trained model, in words; empty where it does not.

    Both have the same weights and the same precision, so that only rounding is left. Rounding may take a sample over an
    edge, which is worth 1/n of a quality that is a mean over n samples.
    """
    trained = load(TrainReport, paths.build(model, "train") / "report.json").quality
    if trained is None or settings.quality is None:
        return ""
    samples = split(model, "evaluation")
    try:
        outputs = outputs_over(candidate.run, settings, samples)
    except WorkerFailure as failure:
        return f"the export does not answer to the evaluation samples: {failure.reason}"
    quality = quality_of(settings, outputs, samples, f"models.{model}")
    allowed = max(FLIPS / len(next(iter(outputs.values()))), DRIFT * abs(trained))
    assert quality is not None
    if abs(quality - trained) <= allowed:
        return ""
    return (
        f"quality {trained:.4g} of the trained model became {quality:.4g} in the export; rounding explains "
        f"{allowed:.2g} of that"
    )


def _parting(model: str, settings: ModelParams, expected: list[Expected], results: list[CaseResult]) -> Parting | None:
    """Where the export parts from the module; None where there is no module, or nothing to compare."""
    worst = localize.pick(expected, results)
    if worst is None or not settings.is_torch:
        return None
    report = load(ExportReport, paths.build(model, "export") / "report.json")
    strategy = next((name for name, how in exporters.HOW.items() if how == report.how), "trace")
    weights, plain = trained_file(model, settings), paths.build(model, "export") / "model.onnx"
    real = real_example(model, settings)
    try:
        return isolate.call(LOCALIZE_SECONDS, _against_torch, settings, weights, plain, strategy, worst.case, real)
    except WorkerFailure as failure:
        return Parting(case=worst.case.name, reason=f"where they part could not be found: {failure.reason[:300]}")


def _against_torch(*arguments: Any) -> Parting:
    from stages.parity.localize_torch import against_torch  # torch belongs in the process that this is called in

    return against_torch(*arguments)


def _evaluate(model: str, settings: ModelParams, expected: list[Expected]) -> tuple[str, list[CaseResult]]:
    """Hold an original without a module to ONNX's reference evaluator, on the smallest cases."""
    able = [item for item in expected if not item.probe and item.failure is None]
    able.sort(key=lambda item: sum(value.size for value in item.case.inputs.values()))
    with Worker.evaluator(trained_file(model, settings), model, settings.verify.timeout) as evaluator:
        try:
            evaluator.start()
            evaluator.run(able[0].case.inputs)
        except WorkerFailure as failure:
            return f"cannot run this model: {failure.reason[:300]}", []
        return f"{evaluator.label}", check(evaluator, able[:EVALUATED], settings.tolerance)


if __name__ == "__main__":
    command.run("verify", verify, again)
