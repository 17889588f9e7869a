"""Obtains the model to release: trains it, or takes weights or an ONNX file from elsewhere, and checks it.

In every case it writes `model.safetensors`, or `model.onnx` if there is no PyTorch module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.evidence.records import FileDigest
from onward.registry.evidence.reports import TrainReport
from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import resolve, section
from onward.stages.config.schema import ModelParams, Verify
from onward.stages.exporting import custom_ops, taken_graph
from onward.stages.parity.evaluate import Arrays, batches, outputs_over, quality_of
from onward.stages.parity.labels import label_findings
from onward.stages.parity.reference import onnx_original
from onward.stages.samples import load as load_samples
from onward.stages.workers import circumstances, isolated_call
from onward.stages.workers.torch_module import fit, load_module, read_weights
from onward.stages.workers.worker import WorkerFailure

if TYPE_CHECKING:
    import torch

    from onward.stages.workers.signature import Named

# Seconds. Training is the team's own code and may take long; a week only ends a hang.
TRAIN_TIMEOUT_S = 7 * 24 * 3600.0

# Tolerances for the same operators on the same weights: larger differences are not rounding.
RTOL, ATOL = 1e-4, 1e-5


@dataclass(frozen=True)
class Obtained:
    """The result of training or of taking in a model.

    Attributes:
        how: Its origin, in words.
        parameters: Number of parameters; None if unknown.
        quality: Quality on the evaluation samples; None without a measure.
        findings: Remarks for the report.
        fault: Why it must not be released; empty if it may.
    """

    how: str
    parameters: int | None
    quality: float | None
    findings: list[str] = field(default_factory=list)
    fault: str = ""


def train(model: str, folder: Path) -> TrainReport:
    """Train a model or take in its weights, and compare its quality on the evaluation samples with quality_floor.

    It judges the released model: the module that build() makes, with the weights from the written file. Its outputs on
    the evaluation samples must equal those of the trained module.
    Writes build/MODEL/train/: model.safetensors or model.onnx, and report.json.
    """
    settings = section(model, "train")
    file = folder / ("model.safetensors" if settings.is_torch else "model.onnx")
    library = custom_ops.library(settings, f"models.{model}")
    circumstances.adopt(libraries=() if library is None else (library,))
    try:
        found = isolated_call.call(TRAIN_TIMEOUT_S, _obtain, model, settings, file)
    except WorkerFailure as failure:
        return TrainReport(model=model, status="failed", reason=f"training {failure.kind}: {failure.reason}")
    report = TrainReport(
        model=model,
        status="failed" if found.fault else "passed",
        reason=found.fault,
        how=found.how,
        weights=FileDigest.of(file, folder),
        parameters=found.parameters,
        quality=found.quality,
        quality_floor=settings.quality_floor,
        findings=found.findings,
    )
    floor, quality = settings.quality_floor, found.quality
    if floor is not None and quality is not None and not quality >= floor:
        below = f"quality {quality:.4g} on the evaluation samples is below quality_floor {floor:g}"
        report.status, report.reason = "failed", "; ".join(filter(None, (report.reason, below)))
    return report


def _obtain(model: str, settings: ModelParams, file: Path) -> Obtained:
    """Write the model to `file`; runs in a separate process."""
    key = f"models.{model}"
    return _module(settings, file, key) if settings.is_torch else _onnx(settings, file, key)


def _module(settings: ModelParams, file: Path, key: str) -> Obtained:
    """Train a PyTorch module, or load its weights, and write them."""
    import torch
    from safetensors.torch import save

    from onward.stages.workers.rebuilt import differences

    torch.set_num_threads(1)  # fixes the order of sums: the same weights for any number of cores
    torch.manual_seed(settings.seed)
    assert settings.build is not None
    findings: list[str] = []
    where = f"params.yaml: {key}.build: {settings.build}: "
    if settings.train:
        module = resolve(settings.train, f"{key}.train")(settings.seed)
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"params.yaml: {key}.train: returns {type(module).__name__}, wanted a torch.nn.Module")
        how = f"trained by {settings.train} with seed {settings.seed}"
        state = module.cpu().state_dict()
        where = f"params.yaml: {key}.train: {settings.train}: "
    else:
        module = load_module(settings.build, None, key)
        state = module.state_dict()
        how = f"weights that {settings.build} comes with"
        given = settings.weights
        if given is not None:
            where = f"params.yaml: {key}.weights: {given.file}: "
            state, findings = read_weights(paths.root() / given.file, where, given)
            how = f"weights of {given.file}"
            findings += fit(module, state, where, given)
            state = module.state_dict()  # complete, even if the file is not
    twin = load_module(settings.build, None, key)
    findings += [finding for finding in fit(twin, state, where) if finding not in findings]
    # Tied weights share storage, which safetensors refuses: each name gets its own copy.
    file.write_bytes(save({name: value.detach().clone().contiguous() for name, value in twin.state_dict().items()}))
    released = load_module(settings.build, file, key)
    unsteady = differences(twin.eval(), released)
    del twin
    samples = load_samples(settings, "evaluation", key)
    quality, fault, odd = _compared(settings, module.eval(), released, samples, key)
    if unsteady and not fault:
        fault = (
            f"build() makes a different module each time: {'; '.join(unsteady[:3])}; seed its random numbers, or keep "
            "them in the state dict (self.register_buffer)"
        )
    findings += [*odd, *_left_out(settings, module, samples)]
    return Obtained(how, sum(parameter.numel() for parameter in released.parameters()), quality, findings, fault)


def _compared(
    settings: ModelParams, module: torch.nn.Module, released: torch.nn.Module, samples: Arrays, key: str
) -> tuple[float | None, str, list[str]]:
    """Compare the released module with the one whose weights it has: its quality, any difference, and findings."""

    def outputs_of(module: torch.nn.Module) -> Arrays:
        import torch

        torch.manual_seed(settings.seed)  # both modules draw the same random numbers
        return outputs_over(lambda batch: _forward(settings, module, batch), settings, samples)

    _arrange(module, released)
    wanted = outputs_of(module)
    try:
        got = outputs_of(released)
    except Exception as error:  # the team's module may raise anything
        words = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return None, f"build() with the saved weights does not run: {words}{_lost(settings, module, released)}", []
    quality = quality_of(settings, got, samples, key)
    findings = label_findings(settings, got, samples, key, quality)
    differing = _difference(wanted, got)
    if not differing:
        return quality, "", findings
    before = quality_of(settings, wanted, samples, key)
    lost = "" if quality is None or before is None else f"; quality {before:.4g} became {quality:.4g}"
    return quality, f"{_DIFFERS[bool(settings.train)]}: {differing}{lost}{_lost(settings, module, released)}", findings


# By whether the weights were trained here.
_DIFFERS = {
    True: "build() with the saved weights gives other outputs than the module that was trained",
    False: "build() does not make the same module twice: with the same weights, the second gives other outputs",
}


def _arrange(module: torch.nn.Module, released: torch.nn.Module) -> None:
    """Give a module's weights the memory layout and dtype of the released ones, which decide the kernels that run."""
    own = {**dict(released.named_parameters()), **dict(released.named_buffers())}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in own and own[name].shape == tensor.shape:
            tensor.data = tensor.data.to(own[name].dtype).contiguous()


def _difference(wanted: Arrays, got: Arrays) -> str:
    """How outputs differ by more than rounding, in words; empty if they do not."""
    for name, value in wanted.items():
        other = got[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            return f"output {name} is {other.dtype}{list(other.shape)}, not {value.dtype}{list(value.shape)}"
        same = np.isclose(other, value, RTOL, ATOL, equal_nan=True) if value.dtype.kind in "fc" else other == value
        if not same.all():
            with np.errstate(all="ignore"):
                worst = float(np.nanmax(np.abs(other.astype(np.float64) - value.astype(np.float64))))
            return (
                f"output {name} differs in {(~same).mean():.2%} of its elements, by up to {worst:.3g} on values of up "
                f"to {float(np.abs(value).max()):.3g}"
            )
    return ""


def _lost(settings: ModelParams, module: torch.nn.Module, released: torch.nn.Module) -> str:
    """A likely cause of the difference, and the remedy."""
    from onward.stages.workers.rebuilt import differences

    found = differences(module, released, plain=True)
    remedy = "keep it in the state dict (self.register_buffer), or set it in build()"
    if not settings.train:
        remedy = "seed the random numbers in build(), or keep them in the state dict (self.register_buffer)"
    if not found:
        return f"; no differing attribute was found: look for state in globals and hooks, and {remedy}"
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    first = "trained" if settings.train else "first"
    return f"; differing attributes ({first} / built): {'; '.join(found[:5])}{more}: {remedy}"


def _onnx(settings: ModelParams, file: Path, key: str) -> Obtained:
    """Write an ONNX file that a function makes or that params.yaml names."""
    if settings.train:
        model = resolve(settings.train, f"{key}.train")(settings.seed)
        if not hasattr(model, "SerializeToString"):
            raise UsageError(f"params.yaml: {key}.train: returns {type(model).__name__}, wanted an onnx.ModelProto")
        file.write_bytes(model.SerializeToString(deterministic=True))
        how = f"made by {settings.train} with seed {settings.seed}"
    else:
        assert settings.onnx is not None
        source = paths.root() / settings.onnx
        onnx_file.check(source, f"params.yaml: {key}.onnx: {settings.onnx}")
        onnx_file.take_in(source, file)
        how = f"the file {settings.onnx}"
    quality, fault, findings = None, "", []
    if settings.constants:
        graph = onnx_file.load_graph(file)
        taken_graph.fold_inputs(graph, settings.constants, f"params.yaml: {key}.constants")
        file.write_bytes(graph.SerializeToString(deterministic=True))
        how += f", with the constants {', '.join(settings.constants)}"
    if settings.quality is not None:
        graph = onnx_file.load_graph(file)
        taken_graph.tidy(graph, settings)
        fault = "; ".join([*taken_graph.unfit(graph), *custom_ops.without_library(graph, settings)])
        if not fault:
            samples = load_samples(settings, "evaluation", key)
            with onnx_original(key, settings, Verify(evaluator=False), file) as worker:
                outputs = outputs_over(worker.run, settings, samples)
            quality = quality_of(settings, outputs, samples, key)
            findings = label_findings(settings, outputs, samples, key, quality)
    return Obtained(how, onnx_file.describe(file).parameters, quality, findings, fault)


def _forward(settings: ModelParams, module: torch.nn.Module, batch: Arrays) -> Arrays:
    """A module's outputs for one batch, by name."""
    return {name: tensor.numpy() for name, tensor in _named(settings, module, batch).outputs.items()}


def _named(settings: ModelParams, module: torch.nn.Module, batch: Arrays) -> Named:
    """A module's outputs for one batch as tensors, and the entries that are None."""
    import torch

    from onward.stages.workers.signature import bind, name_outputs

    binding = bind(module, list(settings.inputs))
    # Copies: a module may write to its inputs.
    positional, keywords = binding.arguments({n: torch.from_numpy(np.array(batch[n])) for n in settings.inputs})
    with torch.inference_mode():
        return name_outputs(module(*positional, **keywords), list(settings.outputs))


def _left_out(settings: ModelParams, module: torch.nn.Module, samples: Arrays) -> list[str]:
    """A finding if forward() returns None for some entries."""
    dropped = _named(settings, module, next(batches(settings, samples))).dropped
    return [f"forward() returns None for {', '.join(dropped)}, which the export leaves out"] if dropped else []


if __name__ == "__main__":
    command.run("train", train)
