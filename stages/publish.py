"""Records all reports of a model in MLflow; the only stage that writes to it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry import checkout
from onward.registry.artifact import custom_ops, onnx_file
from onward.registry.artifact.replay import Recorded
from onward.registry.errors import NotReady, UsageError
from onward.registry.evidence.reports import Evidence, PublishReport
from onward.registry.evidence.sample_axes import from_front
from onward.registry.host.environments import python
from onward.registry.monitoring import reference as monitoring
from onward.registry.monitoring.reference import Reference
from onward.registry.report.distributions import read_distributions
from onward.registry.report.material import SAMPLES, Material
from onward.registry.report.page import render
from onward.registry.tracking import recorder
from onward.registry.tracking.recorder import Publication
from onward.stages import command, host
from onward.stages.config import paths
from onward.stages.config.layout import Layout
from onward.stages.config.load import section
from onward.stages.config.load import settings as load_settings
from onward.stages.config.schema import ModelParams
from onward.stages.parity.evaluate import Arrays, batches, outputs_over, spans
from onward.stages.parity.reference import split
from onward.stages.parity.reference_answers import recorded_kinds, recorded_outputs
from onward.stages.parity.sequences import Sequences
from onward.stages.reports import read_evidence
from onward.stages.workers.worker import Worker, WorkerFailure

# Evaluation samples that are recorded with a version: enough to notice wrong outputs, and few enough to be run before
# every promotion.
BUNDLE_SAMPLES = 16
# Samples that a version's reference is computed from, at most. Evaluation sets of more are thinned out evenly.
REFERENCE_SAMPLES = 2000
# The page that shows all reports of a model.
PAGE = "report.html"


def publish(model: str, folder: Path) -> PublishReport:
    """Record a model's evidence in MLflow: a run, a child run and logged model per variant, a registered version.

    A version is registered only if a service can load it and get the recorded outputs; if not, the report says why.
    In a DVC experiment, a version is registered only if tracking.register_experiments is true. Publishing the same
    evidence again changes nothing. Writes build/MODEL/publish/report.json, and report.html, which shows all reports as
    a page and is also an artifact of the run.
    """
    settings, whole = section(model, "publish"), load_settings("publish", model)
    evidence = read_evidence(model)
    if evidence.export.custom_ops:  # params.yaml names the library, so the team trusts it on this host
        os.environ[custom_ops.ALLOW] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) if evidence.select.passed else None
        fault, reference = "", None
        if bundle is not None:
            try:
                _write_bundle(model, settings, evidence, bundle)
                reference = _reference(model, settings, evidence)
            except WorkerFailure as failure:
                fault = failure.reason
        publication = Publication(
            root=paths.root(),
            experiment=whole.experiment,
            evidence=evidence,
            params=whole.params,
            context=_context(),
            bundle=bundle,
            reports=paths.root() / "build" / model,
            inputs=settings.input_specs(),
            outputs=evidence.export.graph.outputs if evidence.export.graph else settings.output_specs(),
            fault=fault,
            dvc_experiment=checkout.experiment(),
            registers=not checkout.experiment() or load_settings("tracking").register_experiments,
            example=_example(model, settings) if bundle is not None and not fault else {},
            reference=reference,
        )
        try:
            report = recorder.publish(publication)
        except UsageError as error:  # a problem of the store, not of the model
            raise NotReady(str(error)) from error
    report.context = dict(publication.context)
    report.inputs, report.outputs = publication.inputs, publication.outputs
    report.operators = _operators(evidence)
    page = render(Material(model, evidence, report, distributions=read_distributions(_samples(model))))
    (folder / PAGE).write_text(page, encoding="utf-8")
    recorder.attach(report.run_id, {PAGE: page, "reports/publish.json": report.model_dump_json(indent=2) + "\n"})
    return report


def _samples(model: str) -> Path:
    return paths.build(model, "benchmark") / SAMPLES


def _operators(evidence: Evidence) -> dict[str, int]:
    """The number of operators of each type in the graph that is served first; empty if nothing was chosen."""
    winners = evidence.select.winners
    return onnx_file.describe(paths.root() / winners[0].files[0].path).operators if winners else {}


def _write_bundle(model: str, settings: ModelParams, evidence: Evidence, folder: Path) -> None:
    """Write the files for registry/artifact/replay.py: inputs, and outputs of the original and of the chosen files."""
    selected = evidence.select
    inputs, reference = _recorded_call(model, settings)
    bundle = {"inputs": inputs, "reference": reference}
    for winner in selected.all_winners:
        try:
            with Worker.onnx(
                paths.root() / winner.files[0].path,
                f"{winner.variant} of {model}",
                winner.provider,
                winner.options,
                python(winner.runtime, paths.root()),
            ) as worker:
                bundle["outputs" if winner is selected.winners[0] else f"outputs-{winner.key}"] = worker.run(inputs)
        except WorkerFailure:
            if not winner.host:
                raise
            # This machine need not have what that class has. A replay there compares with the main answers.
    for name, arrays in bundle.items():
        with open(folder / f"{name}.npz", "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    recorded = Recorded(
        main=selected.winners[0].runtime,
        precision={winner.key: winner.precision for winner in selected.all_winners},
        min_snr_db=settings.budget.min_snr_db,
        min_cosine=settings.budget.min_cosine,
        agreement=settings.tolerance.agreement.model_dump(),
        kinds=recorded_kinds(model),
    )
    (folder / "recorded.json").write_text(recorded.model_dump_json(indent=2) + "\n")
    (folder / "tolerance.json").write_text(settings.tolerance.model_dump_json() + "\n")


def _reference(model: str, settings: ModelParams, evidence: Evidence) -> Reference:
    """The distributions of the inputs and of the first winner's outputs, which live traffic is compared with.

    Inputs are those of the calibration and evaluation samples; outputs those of the evaluation samples, because a model
    may have been trained on the others. Of sequences, each sample gives one step, so that samples are independent.
    """
    winner, layout = evidence.select.winners[0], Layout.of(settings)
    splits = [_thinned(layout, split(model, name)) for name in ("evaluation", "calibration")]
    file, label = paths.root() / winner.files[0].path, f"{winner.variant} of {model}"
    with Worker.onnx(file, label, winner.provider, winner.options, python(winner.runtime, paths.root())) as worker:
        outputs = outputs_over(worker.run, settings, splits[0])
    if Sequences.of(settings, splits[0]) is not None:
        splits = [{name: _one_step(values) for name, values in samples.items()} for samples in splits]
        outputs = {name: _one_step(values) for name, values in outputs.items()}
    watched = [name for name in layout.sampled if name not in settings.states]
    inputs = {name: _joined([samples[name] for samples in splits if name in samples]) for name in watched}
    return monitoring.build(
        {name: values for name, values in inputs.items() if values is not None},
        {name: values for name, values in outputs.items() if name not in settings.data_sized},
        recorded_kinds(model),
        {name: axis for name, axis in {**layout.inputs, **layout.outputs}.items() if axis != 0},
    )


def _thinned(layout: Layout, samples: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The inputs of at most REFERENCE_SAMPLES samples, evenly spaced."""
    count = layout.count(samples)
    chosen = np.linspace(0, count - 1, min(count, REFERENCE_SAMPLES)).round().astype(int)
    return {
        name: samples[name] if axis is None else samples[name][chosen]
        for name, axis in layout.inputs.items()
        if name in samples
    }


def _one_step(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One step of each sequence, [samples, steps, ...] to [samples, ...]."""
    rows = np.arange(len(values))
    return values[rows, rows % values.shape[1]] if values.ndim > 1 and values.shape[1] else values


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """The samples of all splits with the first one's sizes; None without a split."""
    alike = [part for part in parts if part.shape[1:] == parts[0].shape[1:] and part.dtype == parts[0].dtype]
    return np.concatenate(alike) if alike else None


def _recorded_call(model: str, settings: ModelParams) -> tuple[Arrays, Arrays]:
    """The inputs of one call with evaluation samples, and the original's outputs for them, in the model's own layout.

    Of sequences, it is the last step, with the state that the original had by then; the first if the state grows.
    """
    samples, answers = split(model, "evaluation"), recorded_outputs(model)
    start, size = next(spans(settings, samples, BUNDLE_SAMPLES))
    axes = Layout.of(settings).outputs
    sequences = Sequences.of(settings, samples)
    if sequences is None:
        inputs = next(batches(settings, samples, BUNDLE_SAMPLES))
        return inputs, {name: from_front(values[:size], axes[name]) for name, values in answers.items()}
    grows = any(settings.inputs[name].shape != settings.outputs[out].shape for name, out in settings.states.items())
    last = 0 if grows else sequences.steps - 1

    def at(step: int) -> dict[str, npt.NDArray[Any]]:
        return {name: from_front(values[:size, step], axes[name]) for name, values in answers.items()}

    before = at(last - 1) if last else {}
    state = {name: before[output] for name, output in settings.states.items()} if last else None
    return sequences.part(start, size).feed(last, state), at(last)


def _example(model: str, settings: ModelParams) -> Arrays:
    """The inputs of a call with as few evaluation samples as the model takes, in the model's own layout."""
    samples = split(model, "evaluation")
    sequences = Sequences.of(settings, samples)
    if sequences is None:
        return next(batches(settings, samples, 1))
    start, size = next(spans(settings, samples, 1))
    return sequences.part(start, size).feed(0, None)


def _context() -> dict[str, str]:
    """Facts about this run rather than the model: commit, whether there are uncommitted changes, machine, toolchain."""
    described, versions = host.load()
    machine = described.machine
    context = {
        "git_commit": _git("rev-parse", "HEAD") or "none",
        "host_cpu": machine.cpu,
        "host_instruction_sets": " ".join(machine.instruction_sets),
        "host_cores": str(machine.cores),
        "host_accelerators": "; ".join(machine.accelerators) or "none",
        **{f"version_{name}": value for name, value in versions.items()},
    }
    # The run itself writes dvc.lock, so a change of it says nothing about the sources.
    changes = _git("status", "--porcelain", "--", ".", ":!dvc.lock")
    if checkout.experiment():
        context["onward.dvc_experiment"] = checkout.experiment()
    context["git_dirty"] = "unknown" if changes is None else str(bool(changes)).lower()
    return context


def _git(*arguments: str) -> str | None:
    """The output of a git command; None if it fails."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        found = subprocess.run(
            ["git", *arguments],
            cwd=paths.root(),
            capture_output=True,
            text=True,
            timeout=30,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


if __name__ == "__main__":
    command.run("publish", publish)
