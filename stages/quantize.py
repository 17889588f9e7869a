"""Makes graphs of lower precision from the export and from optimised graphs, and reports the quality of each.

The quality budget judges them, because no int8 graph is within a float tolerance. If one breaks the budget, its layers
are ranked by their own error, and as few as possible stay in float. The outputs of int8 graphs depend on the CPU, so
benchmark judges them again on the machine that it measures, at all sizes and on all cases.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onward.registry.artifact import onnx_file
from onward.registry.evidence.records import PLAIN, TradeOff, TradePoint, Variant
from onward.registry.evidence.reports import OptimizeReport, QuantizeReport, load
from onward.registry.text import plain_words
from onward.stages import command, progress
from onward.stages.config import paths, techniques
from onward.stages.config.layout import Layout
from onward.stages.config.load import section
from onward.stages.config.load import settings as load_settings
from onward.stages.config.schema import ModelParams
from onward.stages.config.techniques import TechniqueSpec
from onward.stages.parity.budget import Judgement
from onward.stages.parity.evaluate import Arrays, batch_size, batches, quality_of, weigh
from onward.stages.parity.reference import split
from onward.stages.parity.reference_answers import recorded_kinds, recorded_outputs
from onward.stages.parity.sequences import Sequences
from onward.stages.parity.sizes import typical_shapes
from onward.stages.reports import blocked
from onward.stages.transforms import graph_profile
from onward.stages.transforms.builder import Feed, Job, VariantBuilder, placed
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.sensitivity import fewest, heads_first, layer_costs
from onward.stages.transforms.sources import Sources, Unavailable
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import Worker, WorkerFailure

# Kernels with a fused activation. They have no int8 form, so quantisers leave them in float.
FLOAT_ONLY = {"com.microsoft.FusedConv", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul"}
# Calibration samples in a batch.
CALIBRATED = 8
# A candidate that loses this many times what the budget allows on one base is not tried on the next: both compute the
# same products, and how the float graph around them is written changes the loss by far less.
FAR = 10.0
# Operators of fused attention.
FUSED = {"com.microsoft.Attention", "com.microsoft.MultiHeadAttention"}


def quantize(model: str, folder: Path) -> QuantizeReport:
    """Apply each quantiser of params.yaml to the export and to suitable optimised graphs.

    If a graph breaks the quality budget, the fewest layers with which it holds are left in float.
    Writes build/MODEL/quantize/: one .onnx file per variant and report.json with size, compression and quality.
    """
    settings = section(model, "quantize")
    reason = blocked(model, "verify", "optimize")
    if reason:
        return QuantizeReport(model=model, status="not attempted", reason=reason)
    plain = paths.build(model, "export") / "model.onnx"
    graph = graph_profile.describe(plain, typical_shapes(settings))
    bases = choose_bases(model, graph)
    feeds = _feeds(model, settings, plain)
    wanted, samples = recorded_outputs(model), split(model, "evaluation")
    quality = quality_of(settings, wanted, samples, f"models.{model}", wanted)
    judgement = Judgement.of(quality, settings, recorded_kinds(model))
    with (
        tempfile.TemporaryDirectory() as scratch,
        VariantBuilder(plain, settings.quantize.timeout, feeds) as builder,
        Worker.onnx(plain, PLAIN, timeout=settings.verify.timeout) as worker,
    ):
        judge = Judge(model, settings, worker, wanted, samples, judgement)
        runtimes = load_settings("quantize", model).runtimes
        sources = Sources(Path(scratch), feeds, settings.quantize.timeout)
        stage = _Stage(settings, graph, folder, Path(scratch), builder, judge, feeds, runtimes, sources)
        for number, (base, (path, _)) in enumerate(bases.items()):
            stage.quantize(base, path, first=number == 0)
        for job, variant in to_spare(stage.tried):
            stage.keep_in_float(job, variant)
    return QuantizeReport(
        model=model,
        status="passed",
        bases={name: _noted(why, sources.notes.get(name, "")) for name, (_, why) in bases.items()},
        reference_quality=judgement.reference_quality,
        variants=[
            variant.model_copy(update={"files": placed(variant.files, model, "quantize")}) for variant in stage.variants
        ],
        tradeoffs=stage.tradeoffs,
    )


@dataclass
class Judge:
    """Judges graphs of lower precision by their outputs on the evaluation samples.

    Attributes:
        model: Name of the model.
        settings: Its settings.
        worker: A process that runs ONNX files.
        wanted: The original's outputs on the evaluation samples.
        samples: The evaluation samples, with labels if there are any.
        judgement: The budget, with the original's quality.
    """

    model: str
    settings: ModelParams
    worker: Worker
    wanted: Arrays
    samples: Arrays
    judgement: Judgement

    def weigh(self, variant: Variant, path: Path) -> Variant:
        """Measure a variant's quality.

        Args:
            variant: The variant.
            path: Its ONNX file.

        Returns:
            The variant with its quality; its status is "failed" if it does not run or breaks the budget.
        """
        try:
            self.worker.switch(path, variant.name)
            weighed = weigh(
                self.worker.run, self.settings, self.samples, self.wanted, self.judgement.kinds, f"models.{self.model}"
            )
        except WorkerFailure as failure:
            return variant.model_copy(update={"status": "failed", "reason": plain_words(failure.reason)})
        found = variant.model_copy(update=weighed._asdict())
        reason = "; ".join(self.judgement.faults(found))
        return found.model_copy(update={"status": "failed", "reason": reason}) if reason else found


@dataclass
class _Stage:
    """The state of a run of the stage: its variants, the judged ones with their jobs, and its trade-offs so far."""

    settings: ModelParams
    graph: GraphProfile
    folder: Path
    scratch: Path
    builder: VariantBuilder
    judge: Judge
    feeds: list[Feed]
    runtimes: list[str]
    sources: Sources
    variants: list[Variant] = field(default_factory=list)
    tried: list[tuple[Job, Variant]] = field(default_factory=list)
    tradeoffs: list[TradeOff] = field(default_factory=list)

    def quantize(self, base: str, path: Path, first: bool) -> None:
        """Try every candidate on one base.

        Candidates that differ only in options without effect on speed are a family. The first of a family that holds
        the budget is enough.

        Args:
            base: Name of the base.
            path: Its ONNX file.
            first: Whether it is the first base.
        """
        tried: list[tuple[Job, Variant]] = []
        candidates = self.settings.quantize.candidates
        for number, candidate in enumerate(candidates, 1):
            module, job = techniques.module("quantize", candidate), self._job(base, path, candidate)
            family = [v for other, v in tried if _family(other.candidate) == _family(candidate)]
            rescued = getattr(module, "RESCUES", ())
            family += [v for other, v in tried if other.candidate.name in rescued]
            held = next((v.name for v in family if v.status == "passed"), "")
            progress.show("variant", job.name, number, len(candidates))
            hopeless = _hopeless(candidate, tried) or self._far_off(candidate)
            refused = self._pointless(candidate, held) or hopeless
            if not refused:
                try:
                    options = techniques.complete("quantize", candidate)
                    job = replace(job, source=self.sources.of(base, path, module, options))
                except Unavailable as reason:
                    refused = held = str(reason)
            if refused:
                if held or hopeless or first:  # a technique's own reason is the same for every base: report it once
                    self.variants.append(job.refused(refused))
                continue
            variant = self.builder.make(job)
            not_here = getattr(module, "NOT_ON_CPU", "")
            if variant.status == "passed" and not_here:
                variant.reason = f"{not_here}: benchmark judges its outputs on the device that it measures"
            elif variant.status == "passed":
                variant = self.judge.weigh(variant, job.target)
                tried.append((job, variant))
            self.variants.append(variant)
        self.tried += tried

    def _far_off(self, candidate: TechniqueSpec) -> str:
        """Why a candidate cannot hold the budget on another base; empty if it may.

        If it was not judged on an earlier base, all variants of its technique must have lost far too much there.
        Fused attention is an exception: how it is fused decides which products are quantised.
        """
        if self.graph.attention:
            return ""
        technique = [(job, v) for job, v in self.tried if job.candidate.name == candidate.name]
        own = [(job, v) for job, v in technique if job.candidate == candidate] or technique
        losses = [(loss, v.name) for _, v in own if (loss := self.judge.judgement.loss(v)) is not None]
        loss, name = min(losses, key=lambda found: found[0].used, default=(None, ""))
        if loss is None or not FAR <= loss.used < float("inf"):
            return ""
        return f"{name} loses {loss.used:.0f} times what the budget allows, by {loss.measure}"

    def _job(self, base: str, path: Path, candidate: TechniqueSpec) -> Job:
        """The job that applies a candidate to a base."""
        module, options = techniques.module("quantize", candidate), techniques.complete("quantize", candidate)
        precision, label = module.precision(options), techniques.label("quantize", candidate)
        how = label if label.startswith(precision) else f"{precision}-{label}"
        name = how if base == PLAIN else f"{base}-{how}"
        words = f"{label} {precision}" if base == PLAIN else f"{base}, then {label} {precision}"
        return Job(name, base, words, precision, "quantize", candidate, path, self.folder / f"{name}.onnx")

    def _pointless(self, candidate: TechniqueSpec, held: str) -> str:
        """Why a candidate cannot gain; `held` is a variant of its family that holds the budget."""
        if held:
            return f"{held} holds the quality budget, and this variant would be no faster"
        module = techniques.module("quantize", candidate)
        reason: str = module.skip_reason(self.graph, techniques.complete("quantize", candidate), self.runtimes)
        return reason

    def keep_in_float(self, job: Job, variant: Variant) -> None:
        """Leave the costliest layers of a variant that broke the budget in float, as few as possible.

        Adds the trade-off, and the new variant if there is one.

        Args:
            job: The job that made the variant.
            variant: The variant.
        """
        module = techniques.module("quantize", job.candidate)
        try:
            layers = isolated_call.call(
                self.settings.quantize.timeout,
                layer_costs,
                job.source,
                self._ranked(job, module),
                module.OPERATORS,
                self.feeds,
            )
        except WorkerFailure as failure:
            self._append(variant, f"its layers could not be ranked: {plain_words(str(failure))}")
            return
        layers = heads_first(layers, onnx_file.load_graph(job.source).graph, self._regressions())
        made: dict[int, Variant] = {}
        points = [_point(0, variant)]

        def holds(float_layers: int) -> bool:
            name = f"{job.name}-keep{float_layers}"
            job_with_float_layers = replace(
                job,
                name=name,
                words=f"{job.words}, {float_layers} of {len(layers)} layers in float",
                target=self.folder / f"{name}.onnx",
                keep=tuple(layer.value for layer in layers[:float_layers]),
            )
            made[float_layers] = self.builder.make(job_with_float_layers)
            if made[float_layers].status == "passed":
                made[float_layers] = self.judge.weigh(made[float_layers], job_with_float_layers.target)
            points.append(_point(float_layers, made[float_layers]))
            return made[float_layers].status == "passed"

        float_layers = fewest(len(layers), holds)
        for number, other in made.items():
            for file in other.files if number != float_layers else ():
                (self.folder / file.path).unlink(missing_ok=True)
        chosen = made[float_layers].name if float_layers is not None else ""
        self.tradeoffs.append(
            TradeOff(
                variant=variant.name,
                chosen=chosen,
                layers=layers,
                points=sorted(points, key=lambda point: point.float_layers),
            )
        )
        if float_layers is None:
            self._append(variant, f"still outside the budget with half of its {len(layers)} layers in float")
        else:
            self._append(variant, f"{chosen} holds the budget")
            self.variants.append(made[float_layers])

    def _ranked(self, job: Job, module: Any) -> Path:
        """The quantised file whose layers are ranked: the variant's own, unless its format hides layers.

        Raises:
            WorkerFailure: The graph cannot be made in the format that shows layers.
        """
        instead = getattr(module, "RANKED_AS", {})
        options = dict(job.candidate.options) | instead
        if not instead or techniques.complete("quantize", job.candidate).items() >= instead.items():
            return job.target
        candidate = TechniqueSpec.model_validate({job.candidate.name: options})
        target = self.scratch / f"{job.name}.ranked.onnx"
        made = self.builder.remake(replace(job, name=f"{job.name} (ranked)", candidate=candidate, target=target))
        if made.status != "passed":
            raise WorkerFailure("error", f"the format that shows layers could not be made: {made.reason}")
        return target

    def _regressions(self) -> list[str]:
        """Names of the outputs whose kind is values: boxes of a detector, results of a regression."""
        return [kind.output for kind in self.judge.judgement.kinds if kind.kind == "values"]

    def _append(self, variant: Variant, words: str) -> None:
        """Add words to the reason of a variant in the list."""
        index = self.variants.index(variant)
        self.variants[index] = variant.model_copy(update={"reason": f"{variant.reason}; {words}"})


def _noted(why: str, note: str) -> str:
    """Why a base was chosen, and what was changed in it."""
    return f"{why}; {note}" if note else why


def to_spare(tried: list[tuple[Job, Variant]]) -> list[tuple[Job, Variant]]:
    """Select the variants whose costliest layers are to be left in float.

    If any variant of a technique holds the budget, none of that technique is selected: with layers in float, another
    one would be no faster.

    Args:
        tried: The judged variants with their jobs.

    Returns:
        For each remaining technique and base, the variant nearest to the budget.
    """
    found = []
    for technique in dict.fromkeys(job.candidate.name for job, _ in tried):
        own = [(job, v) for job, v in tried if job.candidate.name == technique]
        ranked = hasattr(techniques.module("quantize", own[0][0].candidate), "OPERATORS")
        if not ranked or any(v.status == "passed" for _, v in own):
            continue
        for base in dict.fromkeys(job.base for job, _ in own):
            broken = [(job, v) for job, v in own if job.base == base and _broken(v)]
            if broken:
                found.append(max(broken, key=lambda item: _nearness(item[1])))
    return found


def _family(candidate: TechniqueSpec) -> tuple[str, Any]:
    """The technique and the options that affect speed."""
    skip = techniques.accuracy_only("quantize", candidate.name)
    options = techniques.complete("quantize", candidate)
    return candidate.name, tuple((key, value) for key, value in options.items() if key not in skip)


def _hopeless(candidate: TechniqueSpec, tried: list[tuple[Job, Variant]]) -> str:
    """Why a candidate would break the quality budget: the same one with more accurate options did."""
    options = techniques.complete("quantize", candidate)
    coarser = getattr(techniques.module("quantize", candidate), "COARSER", {})
    finer = options | {name: less for name, (more, less) in coarser.items() if options[name] == more}
    if finer == options:
        return ""
    for job, variant in tried:
        same = job.candidate.name == candidate.name and techniques.complete("quantize", job.candidate) == finer
        if same and _broken(variant):
            return f"{variant.name} breaks the quality budget, and this variant would lose more"
    return ""


def _broken(variant: Variant) -> bool:
    """Whether a variant failed because of its outputs, as opposed to having none."""
    return variant.status == "failed" and (variant.snr_db is not None or bool(variant.fidelity))


def _nearness(variant: Variant) -> tuple[float, float]:
    """Sort key: larger is nearer to the original."""
    worst = float("-inf")
    return (
        worst if variant.snr_db is None else variant.snr_db,
        worst if variant.agreement is None else variant.agreement,
    )


def _point(float_layers: int, variant: Variant) -> TradePoint:
    return TradePoint(
        float_layers=float_layers,
        quality=variant.quality,
        snr_db=variant.snr_db,
        cosine=variant.cosine,
        agreement=variant.agreement,
        holds=variant.status == "passed",
    )


def choose_bases(model: str, graph: GraphProfile) -> dict[str, tuple[Path, str]]:
    """Choose the graphs to quantise.

    For a graph with attention, these are all variants with fused attention: the kind of fusion decides which products
    are quantised, and its effect on speed and quality must be measured. The export is left out then: it has the same
    products and more nodes around them.

    For other graphs, it is the export, and the optimised graph with the fewest nodes, if it has fewer than the export
    and no kernel without an int8 form.

    Args:
        model: Name of the model.
        graph: Profile of the export.

    Returns:
        The ONNX file of each graph and the reason for the choice, by variant name.
    """
    plain = paths.build(model, "export") / "model.onnx"
    report = load(OptimizeReport, paths.build(model, "optimize") / "report.json")
    passed = [(v, paths.root() / v.files[0].path) for v in report.variants if v.status == "passed"]
    if graph.attention:
        fused = {
            variant.name: (path, "a way of fusing attention")
            for variant, path in passed
            if FUSED & set(onnx_file.describe(path).operators)
        }
        if fused:
            return fused
    bases = {PLAIN: (plain, "the export itself")}
    fit = [
        (variant.nodes or 0, variant.name, path)
        for variant, path in passed
        if not FLOAT_ONLY & set(onnx_file.describe(path).operators)
    ]
    nodes, name, path = min(fit, default=(0, "", plain))
    if name and nodes < onnx_file.describe(plain).nodes:
        bases[name] = (path, f"fewest nodes ({nodes}) of the optimised graphs whose kernels have an int8 form")
    return bases


def _feeds(model: str, settings: ModelParams, plain: Path) -> list[Feed]:
    """Calibration samples in batches of equal size. Ranges cover all samples, so the size does not affect them.

    Of sequences, the steps are used in turn, with the state that the plain export has by then.
    """
    samples, size = split(model, "calibration"), batch_size(settings, CALIBRATED)
    layout, most = Layout.of(settings), max(size, settings.quantize.calibration_samples)
    some = {name: values[:most] if name in layout.sampled else values for name, values in samples.items()}
    sequences = Sequences.of(settings, some)
    if sequences is not None:
        with Worker.onnx(plain, f"{model} in ONNX Runtime", timeout=settings.verify.timeout) as worker:
            part = sequences.part(0, size, max(1, most // size))
            return [dict(feed) for feed, _ in part.feeds(worker.run)]
    first = layout.sampled[0]
    found: list[Feed] = [
        batch for batch in batches(settings, some, CALIBRATED) if batch[first].shape[layout.inputs[first] or 0] == size
    ]
    return found


if __name__ == "__main__":
    command.run("quantize", quantize)
