"""Obtains what is to be released: trains it, or takes in weights or an ONNX file made elsewhere, and checks it.

Whatever the origin, later stages find `model.safetensors` (or `model.onnx`, where there is no PyTorch module).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry import onnx_file
from registry.errors import UsageError
from registry.evidence import TrainReport
from registry.vocabulary import FileDigest
from stages import command, paths
from stages.params import resolve, section
from stages.parity.evaluate import Arrays, batch_size, outputs_over, quality_of
from stages.parity.labels import label_findings
from stages.runtime import isolate
from stages.runtime.module import fit, load_module, read_weights
from stages.runtime.pool import AS_IT_IS, Worker, WorkerFailure
from stages.settings import ModelParams

if TYPE_CHECKING:
    import torch

# Training is the user's own code and may take as long as it likes; a week is no budget but an end to a hang.
PATIENCE = 7 * 24 * 3600.0


def train(model: str, folder: Path) -> TrainReport:
    """Train a model, or take in its weights; state its quality on the evaluation samples, and hold it to the floor.

    Writes build/MODEL/train/: model.safetensors or model.onnx, and report.json.
    """
    settings = section(model, "train")
    file = folder / ("model.safetensors" if settings.is_torch else "model.onnx")
    try:
        found = isolate.call(PATIENCE, _obtain, model, settings, file)
    except WorkerFailure as failure:
        return TrainReport(model=model, status="failed", reason=f"training {failure.kind}: {failure.reason}")
    report = TrainReport(
        model=model,
        status="passed",
        how=found["how"],
        weights=FileDigest.of(file, folder),
        parameters=found["parameters"],
        quality=found["quality"],
        quality_floor=settings.quality_floor,
        findings=found["findings"],
    )
    floor, quality = settings.quality_floor, found["quality"]
    if floor is not None and quality is not None and not quality >= floor:
        report.status = "failed"
        report.reason = f"quality {quality:.4g} on the evaluation samples is below quality_floor {floor:g}"
    return report


def _obtain(model: str, settings: ModelParams, file: Path) -> dict[str, Any]:
    key = f"models.{model}"
    return _module(settings, file, key) if settings.is_torch else _onnx(settings, file, key)


def _module(settings: ModelParams, file: Path, key: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import save

    torch.set_num_threads(1)  # sums in one order: the same weights on every machine of one kind, whatever its cores
    torch.manual_seed(settings.seed)
    assert settings.build is not None
    if settings.train:
        module = resolve(settings.train, f"{key}.train")(settings.seed)
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"params.yaml: {key}.train: returns {type(module).__name__}, wanted a torch.nn.Module")
        how = f"trained by {settings.train} with seed {settings.seed}"
        state = module.state_dict()
        fit(load_module(settings.build, None, key), state, key)
    elif settings.weights:
        module = load_module(settings.build, None, key)
        state = read_weights(paths.root() / settings.weights, key)
        fit(module, state, key)
        how = f"weights of {settings.weights}"
    else:
        module = load_module(settings.build, None, key)
        state = module.state_dict()
        fit(module, state, key)
        how = f"weights that {settings.build} comes with"
    # Tied weights share storage, which safetensors refuses: each name gets its own copy.
    file.write_bytes(save({name: value.detach().clone().contiguous() for name, value in state.items()}))
    module.eval()
    return {
        "how": how,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        **_quality(settings, key, lambda batch: _forward(settings, module, batch)),
    }


def _onnx(settings: ModelParams, file: Path, key: str) -> dict[str, Any]:
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
        for path in onnx_file.files(source):
            shutil.copyfile(path, file if path == source else file.parent / path.name)
        how = f"the file {settings.onnx}"
    with Worker.onnx(file, f"{key} as it came", options=AS_IT_IS) as worker:
        judged = _quality(settings, key, worker.run)
    return {"how": how, "parameters": onnx_file.describe(file).parameters, **judged}


def _quality(settings: ModelParams, key: str, run: Callable[[Arrays], Arrays]) -> dict[str, Any]:
    if settings.quality is None:
        return {"quality": None, "findings": []}
    samples = resolve(settings.samples, f"{key}.samples")("evaluation")
    outputs = outputs_over(run, settings, samples, batch_size(settings, dims=False))
    quality = quality_of(settings, outputs, samples, key)
    return {"quality": quality, "findings": label_findings(settings, outputs, samples, key, quality)}


def _forward(settings: ModelParams, module: torch.nn.Module, batch: Arrays) -> Arrays:
    import torch

    with torch.inference_mode():
        results = module(*(torch.from_numpy(batch[name]) for name in settings.inputs))
    results = (results,) if isinstance(results, torch.Tensor) else tuple(results)
    return {name: value.numpy() for name, value in zip(settings.outputs, results, strict=True)}


if __name__ == "__main__":
    command.run("train", train)
