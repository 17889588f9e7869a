"""Describe a stage's report in lines of text: what failed, the first difference, and what was tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from onward.registry.errors import UsageError
from onward.registry.evidence.records import CaseResult, FirstDivergence, OutputComparison
from onward.registry.evidence.reports import (
    REPORTS,
    ExportReport,
    OptimizeReport,
    QuantizeReport,
    Report,
    VerifyReport,
    load,
)


def read(path: Path) -> Report:
    """Read a report that any stage wrote.

    Args:
        path: the file.

    Raises:
        UsageError: there is no such file, or it is not a stage's report.
    """
    try:
        stage = json.loads(path.read_bytes()).get("stage")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; `dvc repro` writes the reports") from None
    except (ValueError, AttributeError, RecursionError):
        raise _not_a_report(path) from None
    if stage not in REPORTS:
        raise _not_a_report(path)
    return load(REPORTS[stage], path)


def _not_a_report(path: Path) -> UsageError:
    return UsageError(f"{path}: is not a stage's report: give a file such as build/MODEL/verify/report.json")


def lines(report: Report) -> Iterator[str]:
    """Describe a report, line by line.

    Args:
        report: the report.
    """
    yield f"{report.stage} of {report.model}: {report.status}"
    if report.reason:
        yield f"  {report.reason}"
    if isinstance(report, ExportReport):
        for attempt in report.attempts:
            yield f"  tried {attempt.strategy}: {_with_reason(attempt.status, attempt.reason)}"
    yield from (f"  found: {finding}" for finding in getattr(report, "findings", []))
    if isinstance(report, VerifyReport):
        yield from _cases(report.cases)
        if report.divergence is not None:
            yield from _divergence(report.divergence)
    if isinstance(report, OptimizeReport | QuantizeReport):
        for variant in report.variants:
            yield f"  {variant.name}: {_with_reason(variant.status, variant.reason)}"
            if variant.divergence is not None:
                yield from _divergence(variant.divergence)


def _cases(cases: list[CaseResult]) -> Iterator[str]:
    judged = [case for case in cases if not case.probe]
    if judged:
        yield f"  {sum(not case.failed for case in judged)} of {len(judged)} cases passed"
    for case in cases:
        if case.verdict == "ok":
            continue
        detail = case.reason or "; ".join(
            f"{output.output} {output.reason or _difference(output)}"
            for output in case.outputs
            if output.verdict != "ok" and (output.reason or output.max_abs is not None)
        )
        yield f"  {'probe ' if case.probe else ''}{case.case}: {_with_reason(case.verdict, detail)}"


def _difference(output: OutputComparison) -> str:
    return f"off by {output.max_abs:.3g}, {output.share_out:.1%} out of tolerance"


def _with_reason(status: str, reason: str) -> str:
    return f"{status}: {reason}" if reason else status


def _divergence(divergence: FirstDivergence) -> Iterator[str]:
    if not divergence.value:
        yield f"    {divergence.reason}"
        return
    yield f"    first differs   at {divergence.operator}, which computes {divergence.value!r} (case {divergence.case})"
    if divergence.module:
        yield f"    module          {divergence.module}"
    if divergence.source:
        yield f"    source          {divergence.source}"
    yield f"    difference      {divergence.difference:.3g}, with values up to {divergence.scale:.3g}"
    if divergence.reason:
        yield f"    cause           {divergence.reason}"
