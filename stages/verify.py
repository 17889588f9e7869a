"""Proves that the export computes what the original does: the same cases to both, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from registry.evidence import VerifyReport
from stages import command, paths
from stages.params import resolve, section
from stages.parity.cases import Case, random_cases, sample_cases
from stages.parity.check import answers, check, sentence
from stages.reference import reference_worker, split
from stages.reports import blocked
from stages.runtime.pool import CPU, Worker
from stages.settings import ModelParams


def cases(model: str, settings: ModelParams) -> Iterator[Case]:
    """All cases of a model: seeded draws over typical and extreme sizes, and real evaluation samples."""
    custom = resolve(settings.cases, f"models.{model}.cases") if settings.cases else None
    yield from random_cases(settings.inputs, settings.dims, settings.verify.draws, settings.seed, custom)
    yield from sample_cases(settings.inputs, settings.dims, split(model, "evaluation"), settings.verify.samples)


def verify(model: str, folder: Path) -> VerifyReport:
    """Compare the export with the original on seeded random inputs, real samples and every typical size.

    Writes build/MODEL/verify/report.json.
    """
    settings = section(model, "verify")
    reason = blocked(model, "train", "data", "export")
    if reason:
        return VerifyReport(model=model, status="not attempted", reason=reason)
    tolerance = settings.tolerance
    plain = paths.build(model, "export") / "model.onnx"
    with reference_worker(model, settings) as reference:
        expected = answers(reference, cases(model, settings))
        label = reference.label
    with Worker.onnx(plain, f"{model} in ONNX Runtime", timeout=settings.verify.timeout) as candidate:
        results = check(candidate, expected, tolerance.rtol, tolerance.atol)
    failed = sentence(results)
    return VerifyReport(
        model=model,
        status="failed" if failed else "passed",
        reason=failed,
        reference=label,
        provider=CPU,
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        cases=results,
    )


if __name__ == "__main__":
    command.run("verify", verify)
