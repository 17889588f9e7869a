"""Makes optimised graphs from the export, and checks that each still computes what the original does.

No optimiser is believed: whether a graph that passes here is any faster, benchmark measures.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from registry.disk import sha256_file
from registry.evidence import OptimizeReport
from registry.vocabulary import PLAIN, Variant
from stages import command, paths
from stages.params import section
from stages.parity import localize
from stages.parity.answers import recorded_answers
from stages.parity.check import check, sentence
from stages.reports import blocked
from stages.runtime.pool import Worker
from stages.variants import drop_duplicates, make, placed


def optimize(model: str, folder: Path) -> OptimizeReport:
    """Apply each optimiser of params.yaml to the export; report nodes, size and parity of each result.

    Writes build/MODEL/optimize/: one .onnx a variant and report.json.
    """
    settings = section(model, "optimize")
    reason = blocked(model, "verify")
    if reason:
        return OptimizeReport(model=model, status="not attempted", reason=reason)
    plain = paths.build(model, "export") / "model.onnx"
    variants = []
    for name in settings.optimize.candidates:
        technique = importlib.import_module(f"stages.optimizers.{name}")
        target = folder / f"{name}.onnx"
        variants.append(
            make(name, PLAIN, name, "float32", plain, target, settings.optimize.timeout, technique.optimize)
        )
    variants = drop_duplicates(variants, {sha256_file(plain): PLAIN}, folder)
    expected = recorded_answers(model, settings)

    def checked(variant: Variant) -> Variant:
        if variant.status != "passed":
            return variant
        with Worker.onnx(folder / variant.files[0].path, variant.name, timeout=settings.verify.timeout) as worker:
            results = check(worker, expected, settings.tolerance)
        failed = sentence(results)
        worst = localize.pick(expected, results)
        parting = None
        if worst is not None:
            made = folder / variant.files[0].path
            parting = localize.against_graph(plain, made, worst.case, quantised=False)
            failed += f"; it {localize.sentence(parting)}"
        return variant.model_copy(
            update={
                "parity": results,
                "parting": parting,
                "status": "failed" if failed else "passed",
                "reason": failed,
            }
        )

    return OptimizeReport(
        model=model,
        status="passed",
        variants=[
            variant.model_copy(update={"files": placed(variant.files, model, "optimize")})
            for variant in map(checked, variants)
        ],
    )


if __name__ == "__main__":
    command.run("optimize", optimize)
