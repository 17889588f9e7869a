"""What a stage's report says, in lines for people: what failed, where two computations part, which ways were tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from onward.registry.errors import UsageError
from onward.registry.evidence.records import CaseResult, FirstDivergence
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
    """The report in a file, whichever stage wrote it.

    Raises:
        UsageError: there is none, or it is no stage's report.
    """
    try:
        stage = json.loads(path.read_bytes()).get("stage")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; `dvc repro` writes the reports") from None
    except (ValueError, AttributeError, RecursionError):
        raise UsageError(f"{path}: is no report of a stage") from None
    if stage not in REPORTS:
        raise UsageError(f"{path}: is no report of a stage")
    return load(REPORTS[stage], path)


def lines(report: Report) -> Iterator[str]:
    """What the report says."""
    yield f"{report.stage} of {report.model}: {report.status}"
    if report.reason:
        yield f"  {report.reason}"
    if isinstance(report, ExportReport):
        yield from (f"  tried {r.strategy}: {r.status}{': ' if r.reason else ''}{r.reason}" for r in report.attempts)
    yield from (f"  found: {finding}" for finding in getattr(report, "findings", []))
    if isinstance(report, VerifyReport):
        yield from _cases(report.cases)
        if report.divergence is not None:
            yield from _divergence(report.divergence)
    if isinstance(report, OptimizeReport | QuantizeReport):
        for variant in report.variants:
            yield f"  {variant.name}: {variant.status}{': ' if variant.reason else ''}{variant.reason}"
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
            f"{o.output} {o.reason or f'off by {o.max_abs:.3g}, {o.share_out:.1%} out of tolerance'}"
            for o in case.outputs
            if o.verdict != "ok" and (o.reason or o.max_abs is not None)
        )
        yield f"  {'probe ' if case.probe else ''}{case.case}: {case.verdict}{': ' if detail else ''}{detail}"


def _divergence(divergence: FirstDivergence) -> Iterator[str]:
    if not divergence.value:
        yield f"    {divergence.reason}"
        return
    yield f"    parts first at  {divergence.operator} giving {divergence.value!r} (case {divergence.case})"
    if divergence.module:
        yield f"    module          {divergence.module}"
    if divergence.source:
        yield f"    source          {divergence.source}"
    yield f"    off by          {divergence.difference:.3g} where values reach {divergence.scale:.3g}"
    if divergence.reason:
        yield f"    that is         {divergence.reason}"
