"""Compares the outputs of the export with those of the original on the same cases, each in a separate process.

The original's outputs are stored beside the report, so that later stages need not run it again.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.registry.errors import NotReady
from onward.registry.evidence.records import CaseResult, CaseVerdict, FirstDivergence, OutputKind
from onward.registry.evidence.reports import ExportReport, TrainReport, VerifyReport, load
from onward.registry.evidence.session_options import CPU, GraphLevel, SessionOptions
from onward.registry.text import printable
from onward.stages import command, progress
from onward.stages.config import paths
from onward.stages.config.layout import Layout, declared_samples_first
from onward.stages.config.load import section
from onward.stages.config.schema import ModelParams, Tolerance
from onward.stages.exporting import diagnostics, torch_exporters
from onward.stages.parity import localize
from onward.stages.parity.cases import Case, find
from onward.stages.parity.check import (
    Expected,
    answers,
    check,
    compare_outputs,
    findings,
    save_answers,
    sentence,
)
from onward.stages.parity.declared_shapes import misdeclared
from onward.stages.parity.evaluate import Arrays, judged_by_quality, outputs_over, quality_of
from onward.stages.parity.kinds import SET, kinds_of
from onward.stages.parity.labels import labels_of
from onward.stages.parity.reference import OnnxOriginal, reference_worker, split, trained_file
from onward.stages.parity.reference_answers import cases, real_example, real_inputs
from onward.stages.parity.sequences import has_steps
from onward.stages.reports import blocked
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import Worker, WorkerFailure

if TYPE_CHECKING:
    from onward.stages.parity.opinions import Dissent

# Number of cases, the smallest ones, on which an ONNX file from elsewhere is compared with a second implementation.
EVALUATED = 8
# Levels of ONNX Runtime's graph optimisations below the default one, the lowest first.
LOWER_LEVELS: tuple[GraphLevel, ...] = ("disabled", "basic", "extended")
# Time limit for finding the first wrong value.
LOCALIZE_SECONDS = 300.0
# Largest difference between the quality of the export and of training: this many samples, or this share of the quality.
FLIPS, DRIFT = 2, 1e-3


def verify(model: str, folder: Path) -> VerifyReport:
    """Compare the export with the original on seeded random inputs, zeros, extremes, real samples and odd sizes.

    Writes build/MODEL/verify/: report.json, and the original's outputs in reference.npz and samples.npz.
    With --case, runs one case alone and prints its result; nothing is written.
    """
    settings = section(model, "verify")
    reason = blocked(model, "train", "data", "export")
    if reason:
        return VerifyReport(model=model, status="not attempted", reason=reason)
    report = VerifyReport(
        model=model, status="failed", provider=CPU, rtol=settings.tolerance.rtol, atol=settings.tolerance.atol
    )
    disagree = ""
    with reference_worker(model, settings) as reference:
        report.reference = reference.label
        try:
            reference.start()
            _require_life(reference, next(cases(model, settings, settings.verify)))
            asked = progress.counted("the original on case", list(cases(model, settings, settings.verify)))
            expected = answers(reference, asked, real_inputs(model, settings))
            report.reason = _unsteady(reference, expected, settings)
            report.findings = findings(expected)
            report.reason = report.reason or misdeclared(expected, settings.outputs, settings.dims)
            if isinstance(reference, OnnxOriginal) and not report.reason:
                disagree = _opinions(reference, expected, settings, report)
            wanted = outputs_over(reference.run, settings, split(model, "evaluation"))
        except WorkerFailure as failure:
            report.reason = diagnostics.explain(failure.reason, "the original failed", settings.is_torch)
    if report.reason:
        return report
    report.kinds = _kinds(model, settings, wanted)
    save_answers(expected, folder / "reference.npz")
    np.savez(folder / "samples.npz", **wanted)  # type: ignore[arg-type]
    with _candidate(model, settings) as candidate:
        report.reason, report.cases = _checked(candidate, expected, settings)
        lost = "" if report.reason else _lost_quality(model, settings, candidate)
    if report.reason and not {case.verdict for case in report.cases} & {"timed out", "out of memory"}:
        lost = _at_a_lower_level(model, settings, expected, report) or lost
    if report.reason and report.cases:
        failed_case = next(case.case for case in report.cases if case.failed)
        report.divergence = _divergence(model, settings, expected, report.cases)
        where = f"; it {localize.sentence(report.divergence)}" if report.divergence and report.divergence.value else ""
        report.reason += f"{where}; that case alone: onward stage verify {model} --case {failed_case}"
    elif lost:
        report.reason = lost
    report.reason = report.reason or disagree
    report.status = "failed" if report.reason else "passed"
    return report


def _checked(candidate: Worker, expected: list[Expected], settings: ModelParams) -> tuple[str, list[CaseResult]]:
    """Why the export fails, empty if it passes, and the result of each case."""
    try:
        candidate.start()
    except WorkerFailure as failure:
        return diagnostics.explain(failure.reason, "the runtime rejected the model", settings.is_torch), []
    results = check(candidate, progress.counted("the export on case", expected), settings.tolerance)
    return sentence(results), results


def _at_a_lower_level(model: str, settings: ModelParams, expected: list[Expected], report: VerifyReport) -> str:
    """Find the highest level of ONNX Runtime's graph optimisations at which the export passes, if there is one.

    Then the report has the results of that level, and no reason to fail. Returns how the quality differs there.
    """
    lost, passing = "", None
    for level in LOWER_LEVELS:
        with _candidate(model, settings, level) as candidate:
            reason, cases = _checked(candidate, expected, settings)
            if reason:
                break
            passing = level
            lost, report.cases = _lost_quality(model, settings, candidate), cases
    if passing is not None:
        report.graph_level = passing
        report.findings.append(
            f"ONNX Runtime's graph optimisations break this graph ({report.reason}); at the level {passing!r}, every "
            "case passes. The release runs at this level: serving.json sets it, and every other session has to"
        )
        report.reason = ""
    return lost


def _kinds(model: str, settings: ModelParams, wanted: Arrays) -> list[OutputKind]:
    """The kind of each output, and whether the quality measure depends on it; guesses are printed to stderr."""
    samples = split(model, "evaluation")
    read = judged_by_quality(settings, wanted, samples, f"models.{model}")
    inputs, outputs = declared_samples_first(settings, steps := has_steps(settings, samples))
    axes = Layout.of(settings).outputs
    found = [
        kind.model_copy(update={"by_quality": kind.output in read, "samples": axes[kind.output], "steps": steps})
        for kind in kinds_of(outputs, inputs, wanted, labels_of(settings, samples))
    ]
    for kind in found:
        if kind.reason != SET and not kind.by_quality:
            words = f"verify {model}: {kind}; if that is wrong, set outputs.{kind.output}.kind in params.yaml"
            print(printable(words), file=sys.stderr)
    return found


def again(model: str, name: str) -> bool:
    """Run one case alone on the original and the export, and print the result as JSON.

    Args:
        model: Name of the model.
        name: Name of the case.

    Returns:
        Whether the case passed.

    Raises:
        WorkerFailure: The original or the export does not start.
    """
    settings = section(model, "verify")
    case = find(cases(model, settings, settings.verify), name)
    with reference_worker(model, settings) as reference:
        expected = answers(reference, [case], real_inputs(model, settings))
    with _candidate(model, settings, _known_level(model)) as candidate:
        result: CaseResult = check(candidate, expected, settings.tolerance)[0]
    print(result.model_dump_json(indent=2))
    if result.failed and result.outputs:
        divergence = _divergence(model, settings, expected, [result])
        if divergence is not None:
            print(printable(localize.sentence(divergence)), file=sys.stderr)
    return not result.failed


def _known_level(model: str) -> GraphLevel | None:
    """The level of graph optimisation that the last verification found, if it found one."""
    with contextlib.suppress(NotReady):
        return load(VerifyReport, paths.build(model, "verify") / "report.json").graph_level
    return None


def _candidate(model: str, settings: ModelParams, level: GraphLevel | None = None) -> Worker:
    """A worker for the export."""
    plain, options = paths.build(model, "export") / "model.onnx", SessionOptions(graph_level=level)
    return Worker.onnx(plain, f"{model} in ONNX Runtime", options=options, timeout=settings.verify.timeout)


def _require_life(reference: Worker, case: Case) -> None:
    """Raise WorkerFailure if the original dies or hangs: then it would do so in every case. It may refuse the case."""
    try:
        reference.run(case.inputs)
    except WorkerFailure as failure:
        if failure.kind != "error":
            raise


def _unsteady(reference: Worker, expected: list[Expected], settings: ModelParams) -> str:
    """What is wrong if the original gives two different outputs for the same inputs; empty if it does not."""
    answered = next((item for item in expected if item.failure is None), None)
    if answered is None:
        return ""
    first, second = reference.run(answered.case.inputs), reference.run(answered.case.inputs)
    different = [o.output for o in compare_outputs(first, second, settings.tolerance) if o.verdict != "ok"]
    if not different:
        return ""
    cause = (
        "forward() applies dropout or noise in evaluation mode; use modules that eval() switches off, not training=True"
        if settings.is_torch
        else "the graph draws random numbers; use a file that takes the noise as an input"
    )
    return f"the original's outputs differ from run to run for the same inputs ({', '.join(different)}): {cause}"


def _lost_quality(model: str, settings: ModelParams, candidate: Worker) -> str:
    """How the quality of the export differs from that of the trained model, in words; empty if it does not.

    Both have the same weights and precision, so they may only differ by rounding. Rounding may change the class of a
    sample near a decision boundary, which changes a mean over n samples by 1/n.
    """
    trained = load(TrainReport, paths.build(model, "train") / "report.json").quality
    if trained is None or settings.quality is None:
        return ""
    samples = split(model, "evaluation")
    try:
        outputs = outputs_over(candidate.run, settings, samples)
    except WorkerFailure as failure:
        return f"the export failed on the evaluation samples: {failure.reason}"
    quality = quality_of(settings, outputs, samples, f"models.{model}")
    allowed = max(FLIPS / len(next(iter(outputs.values()))), DRIFT * abs(trained))
    assert quality is not None
    if abs(quality - trained) <= allowed:
        return ""
    return (
        f"quality {trained:.4g} of the trained model became {quality:.4g} in the export; rounding explains a "
        f"difference of at most {allowed:.2g}"
    )


def _divergence(
    model: str, settings: ModelParams, expected: list[Expected], results: list[CaseResult]
) -> FirstDivergence | None:
    """The first value at which the export differs from the module; None without a module or anything to compare."""
    worst = localize.pick(expected, results)
    if worst is None or not settings.is_torch:
        return None
    report = load(ExportReport, paths.build(model, "export") / "report.json")
    strategy = next((name for name, how in torch_exporters.HOW.items() if how == report.how), "trace")
    weights, plain = trained_file(model, settings), paths.build(model, "export") / "model.onnx"
    real = real_example(model, settings)
    try:
        return isolated_call.call(
            LOCALIZE_SECONDS, _against_torch, settings, weights, plain, strategy, worst.case, real
        )
    except WorkerFailure as failure:
        return FirstDivergence(
            case=worst.case.name, reason=f"the first differing value could not be found: {failure.reason[:300]}"
        )


def _against_torch(*arguments: Any) -> FirstDivergence:
    from onward.stages.exporting.localize_torch import against_torch  # torch: only imported in a separate process

    return against_torch(*arguments)


def _opinions(reference: OnnxOriginal, expected: list[Expected], settings: ModelParams, report: VerifyReport) -> str:
    """Compare ONNX Runtime with a second implementation on the smallest cases of an ONNX file from elsewhere.

    Stores the comparison in the report's `evaluator`, `evaluated` and `findings`. Returns a fault of ONNX Runtime in
    words; empty if there is none.
    """
    able = [item for item in expected if not item.probe and item.failure is None and item.case.sequence is None]
    able.sort(key=lambda item: sum(value.size for value in item.case.inputs.values()))
    differing = []
    for item in able[:EVALUATED]:
        got = item.truth if item.truth and not item.unbelieved else reference.opinion(item.case.inputs)
        if got:
            report.evaluated.append(_compared(item, got, settings.tolerance))
            if report.evaluated[-1].verdict != "ok":
                differing.append(item)
    limit = f"verify.evaluator_seconds ({settings.verify.evaluator_seconds:g}) was used up"
    if reference.untold and not reference.why_not_wide:
        answered = sum(bool(item.truth or item.unbelieved) for item in expected)
        report.findings.append(f"{answered} of {len(expected)} cases have a float64 reference: {limit}")
    if not settings.verify.evaluator:
        report.evaluator = "not checked: verify.evaluator is false in params.yaml"
    elif reference.unable:
        report.evaluator = f"not checked: the evaluator cannot run this model: {reference.unable[:300]}"
    elif not report.evaluated:
        report.evaluator = f"not checked: {limit if reference.untold else 'no case could be compared'}"
    else:
        precision = f"in its own precision, {reference.why_not_wide}" if reference.why_not_wide else "in float64"
        report.evaluator = f"the graph evaluated node by node, {precision}: {len(report.evaluated)} cases"
    return _settled(reference, differing, settings, report) if differing else ""


def _compared(item: Expected, got: Mapping[str, Any], tolerance: Tolerance) -> CaseResult:
    """Compare ONNX Runtime's outputs with the evaluator's, as far as the evaluator computes them."""
    with np.errstate(all="ignore"):
        same = {name: got[name].astype(value.dtype) for name, value in item.outputs.items() if name in got}
    outputs = compare_outputs({name: item.outputs[name] for name in same}, same, tolerance, None, item.spread)
    verdict: CaseVerdict = next((output.verdict for output in outputs if output.verdict != "ok"), "ok")
    case = item.case
    return CaseResult(case=case.name, seed=case.seed, sizes=case.sizes, verdict=verdict, outputs=outputs)


def _settled(reference: OnnxOriginal, differing: list[Expected], settings: ModelParams, report: VerifyReport) -> str:
    """Find out whether ONNX Runtime or the evaluator is wrong; a fault of the evaluator becomes a finding."""
    print(f"verify {report.model}: ONNX Runtime and the evaluator differ; looking for the node", file=sys.stderr)
    try:
        found = isolated_call.call(
            settings.verify.evaluator_seconds, _dissents, reference.file, differing, settings.tolerance
        )
    except WorkerFailure as failure:
        report.findings.append(
            f"ONNX Runtime and the evaluator differ in {len(differing)} of {len(report.evaluated)} cases; the node was "
            f"not found: {failure.reason[:200]}; raise verify.evaluator_seconds for more time"
        )
        return ""
    report.findings += [dissent.words for dissent in found if dissent.ruling == "other"]
    for dissent in found:
        if dissent.ruling == "runtime":
            return dissent.words
        if dissent.ruling == "open":
            return f"{dissent.words}; if ONNX Runtime is right, switch this check off: verify.evaluator: false"
    return ""


def _dissents(file: Path, differing: list[Expected], tolerance: Tolerance) -> list[Dissent]:
    from onward.stages.parity.opinions import Question, settle  # torch: only imported in a separate process

    asked = [Question(item.case.name, dict(item.case.inputs), item.outputs, item.spread) for item in differing]
    return settle(file, asked, tolerance.rtol, tolerance.atol)


if __name__ == "__main__":
    command.run("verify", verify, again)
