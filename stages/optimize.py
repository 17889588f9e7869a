"""Makes optimised graphs from the export, and checks the outputs of each against the original's.

The benchmark stage measures whether a graph that passes here is faster.
"""

from __future__ import annotations

from pathlib import Path

from onward.registry import processors
from onward.registry.evidence.records import PLAIN, Variant
from onward.registry.evidence.reports import OptimizeReport
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.text import plain_words
from onward.stages import command, progress
from onward.stages.config import paths, techniques
from onward.stages.config.load import section
from onward.stages.config.load import settings as load_settings
from onward.stages.parity import localize
from onward.stages.parity.check import Expected, check, sentence, without_the_largest
from onward.stages.parity.reference_answers import recorded_answers
from onward.stages.parity.sizes import typical_shapes
from onward.stages.reports import blocked
from onward.stages.transforms import graph_profile
from onward.stages.transforms.builder import Job, VariantBuilder, placed
from onward.stages.workers.worker import Worker, WorkerFailure


def optimize(model: str, folder: Path) -> OptimizeReport:
    """Apply each optimiser of params.yaml to the export; report nodes, size and parity of each result.

    Writes build/MODEL/optimize/: one .onnx file per variant and report.json.
    """
    settings = section(model, "optimize")
    reason = blocked(model, "verify")
    if reason:
        return OptimizeReport(model=model, status="not attempted", reason=reason)
    plain = paths.build(model, "export") / "model.onnx"
    graph = graph_profile.describe(plain, typical_shapes(settings))
    runtimes = load_settings("optimize", model).runtimes
    jobs: list[Job] = []
    refused: dict[str, Variant] = {}
    for candidate in settings.optimize.candidates:
        name = techniques.label("optimize", candidate)
        job = Job(name, PLAIN, name, "float32", "optimize", candidate, plain, folder / f"{name}.onnx")
        skip_reason = getattr(techniques.module("optimize", candidate), "skip_reason", None)
        pointless = skip_reason(graph, techniques.complete("optimize", candidate), runtimes) if skip_reason else ""
        jobs.append(job)
        if pointless:
            refused[name] = job.refused(pointless)

    def checked(variant: Variant, worker: Worker, expected: list[Expected]) -> Variant:
        """The variant with its parity; failed if its outputs are out of tolerance."""
        if variant.status != "passed":
            return variant
        made = folder / variant.files[0].path
        try:
            worker.switch(made, variant.name)
        except WorkerFailure as failure:
            return variant.model_copy(update={"status": "failed", "reason": plain_words(failure.reason)})
        results = check(worker, expected, settings.tolerance)
        failed = sentence(results)
        worst = localize.pick(expected, results)
        divergence = None
        if worst is not None:
            divergence = localize.against_graph(plain, made, worst.case, quantised=False)
            failed += f"; it {localize.sentence(divergence)}"
        return variant.model_copy(
            update={
                "parity": results,
                "divergence": divergence,
                "status": "failed" if failed else "passed",
                "reason": failed,
            }
        )

    with (
        VariantBuilder(plain, settings.optimize.timeout) as builder,
        Worker.onnx(plain, PLAIN, options=_beside(), timeout=settings.verify.timeout) as worker,
    ):
        making = builder.make_all([job for job in jobs if job.name not in refused])
        expected = without_the_largest(recorded_answers(model, settings))
        made = {}
        for number, job in enumerate((job for job in jobs if job.name not in refused), 1):
            progress.show("variant", job.name, number, len(jobs) - len(refused))
            made[job.name] = checked(next(making), worker, expected)
    variants = [(refused | made)[job.name] for job in jobs]
    return OptimizeReport(
        model=model,
        status="passed",
        graph=str(graph),
        variants=[
            variant.model_copy(update={"files": placed(variant.files, model, "optimize")}) for variant in variants
        ],
    )


def _beside() -> SessionOptions:
    """Session options with one thread fewer than processors, which leaves one to the process that builds variants.

    Threads that wait for each other on one processor wait long: with all threads, checking took twice as long.
    """
    return SessionOptions(threads=max(1, processors.count() - 1))


if __name__ == "__main__":
    command.run("optimize", optimize)
