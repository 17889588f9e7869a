"""Makes int8 graphs from the export and from the best optimised graph, and states what each costs in quality.

int8 is judged by quality and agreement: no int8 graph is within a float tolerance. What it computes depends on the
CPU, so benchmark measures both again beside the latency; here a graph only has to be worth that.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from registry import onnx_file
from registry.evidence import OptimizeReport, QuantizeReport, load
from registry.fidelity import agreement
from registry.vocabulary import PLAIN, Variant
from stages import command, paths
from stages.params import section
from stages.parity import localize
from stages.parity.answers import recorded_answers, recorded_outputs
from stages.parity.check import check
from stages.parity.evaluate import Arrays, batch_size, outputs_over, quality_of
from stages.quantizers import Feed
from stages.reference import split
from stages.reports import blocked
from stages.runtime.pool import Worker, WorkerFailure
from stages.settings import ModelParams
from stages.variants import drop_duplicates, make, placed, plain_words

# Kernels with the activation fused in, for which there is no int8 form: quantising around them keeps them float.
FLOAT_ONLY = {"com.microsoft.FusedConv", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul"}


def quantize(model: str, folder: Path) -> QuantizeReport:
    """Apply each quantiser of params.yaml to the export and to the best optimised graph.

    Writes build/MODEL/quantize/: one .onnx a variant and report.json with size, compression, parity and quality.
    """
    settings = section(model, "quantize")
    reason = blocked(model, "verify")
    if reason:
        return QuantizeReport(model=model, status="not attempted", reason=reason)
    bases = choose_bases(model)
    feeds = _feeds(settings, split(model, "calibration"))
    variants = []
    known: dict[str, str] = {}
    for base, (path, _) in bases.items():
        for name in settings.quantize.candidates:
            technique = importlib.import_module(f"stages.quantizers.{name}")
            label = f"int8-{name}" if base == PLAIN else f"{base}-int8-{name}"
            target = folder / f"{label}.onnx"
            how = f"{name} int8" if base == PLAIN else f"{base}, then {name} int8"
            timeout = settings.quantize.timeout
            variants.append(make(label, base, how, "int8", path, target, timeout, technique.quantize, feeds))
    variants = drop_duplicates(variants, known, folder)
    samples = split(model, "evaluation")
    batch = batch_size(settings)
    expected = recorded_answers(model, settings)
    wanted = recorded_outputs(model)
    quality = quality_of(settings, wanted, samples, f"models.{model}")

    def judged(variant: Variant) -> Variant:
        if variant.status != "passed":
            return variant
        with Worker.onnx(folder / variant.files[0].path, variant.name, timeout=settings.verify.timeout) as worker:
            try:
                got = outputs_over(worker.run, settings, samples, batch)
            except WorkerFailure as failure:
                return variant.model_copy(update={"status": "failed", "reason": plain_words(failure.reason)})
            parity = check(worker, expected, settings.tolerance)
        first = next(iter(settings.outputs))
        agreed = agreement(wanted[first], got[first])
        parting = None
        if agreed is not None and agreed < settings.tolerance.agreement.int8:
            base = bases[variant.base][0]
            worst = localize.pick(expected, parity)
            made = folder / variant.files[0].path
            parting = worst and localize.against_graph(base, made, worst.case, quantised=True)
        return variant.model_copy(
            update={
                "parity": parity,
                "parting": parting,
                "quality": quality_of(settings, got, samples, f"models.{model}"),
                "agreement": agreed,
            }
        )

    return QuantizeReport(
        model=model,
        status="passed",
        bases={name: why for name, (_, why) in bases.items()},
        reference_quality=quality,
        variants=[
            variant.model_copy(update={"files": placed(variant.files, model, "quantize")})
            for variant in map(judged, variants)
        ],
    )


def choose_bases(model: str) -> dict[str, tuple[Path, str]]:
    """The graphs to quantise, by variant name, each with its path and why: the export, and the best optimised graph.

    Best is the one of fewest nodes, of those that pass parity and hold no kernel without an int8 form.
    """
    bases = {PLAIN: (paths.build(model, "export") / "model.onnx", "the export itself")}
    report = load(OptimizeReport, paths.build(model, "optimize") / "report.json")
    fit = []
    for variant in report.variants:
        if variant.status == "passed":
            path = paths.root() / variant.files[0].path
            if not FLOAT_ONLY & set(onnx_file.describe(path).operators):
                fit.append((variant.nodes or 0, variant.name, path))
    if fit:
        nodes, name, path = min(fit)
        bases[name] = (path, f"fewest nodes ({nodes}) of the optimised graphs whose kernels have an int8 form")
    return bases


def _feeds(settings: ModelParams, samples: Arrays) -> list[Feed]:
    """Calibration samples in small batches: ranges are taken over all of them, so that size changes nothing."""
    batch = min(8, batch_size(settings))
    count = min(settings.quantize.calibration_samples, len(samples[next(iter(settings.inputs))]))
    stop = count - count % batch
    return [{name: samples[name][start : start + batch] for name in settings.inputs} for start in range(0, stop, batch)]


if __name__ == "__main__":
    command.run("quantize", quantize)
