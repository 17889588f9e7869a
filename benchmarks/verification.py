"""Measure the time of verification, and of the search for the node with a wrong answer.

    python -m benchmarks.verification [MODEL ...]

Verifies the models of params.yaml, whose exports must exist (`dvc repro`). For each, it states the total time over the
time of inference and of the workers' start. Then it changes one weight of a transformer of twelve blocks, and times
the search for it. Writes benchmarks/verification.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onward.registry.artifact.graph_nodes import origin
from onward.stages.config import paths
from onward.stages.config.load import read, section
from onward.stages.config.schema import ModelParams
from onward.stages.export import finish
from onward.stages.exporting import torch_exporters
from onward.stages.parity import localize
from onward.stages.parity.cases import all_cases, own_cases
from onward.stages.parity.check import Expected, answers, check
from onward.stages.parity.reference import reference_worker
from onward.stages.parity.reference_answers import cases
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import Worker

RESULTS = Path(__file__).parent / "verification.md"
BLOCKS, SPOILED = 12, 7


def verification(model: str) -> dict[str, Any]:
    """The seconds of the workers' start, of inference in the workers, and in total."""
    settings = section(model, "verify")
    began = time.perf_counter()
    with reference_worker(model, settings) as reference:
        reference.start()
        start = time.perf_counter() - began
        expected = answers(reference, cases(model, settings, settings.verify))
        inference = reference.busy_seconds
    plain = paths.build(model, "export") / "model.onnx"
    with Worker.onnx(plain, model, timeout=settings.verify.timeout) as candidate:
        before = time.perf_counter()
        candidate.start()
        start += time.perf_counter() - before
        results = check(candidate, expected, settings.tolerance)
        inference += candidate.busy_seconds
    whole = time.perf_counter() - began
    return {
        "cases": len(results),
        "inference_s": inference,
        "start_s": start,
        "whole_s": whole,
        "ratio": whole / (inference + start),
    }


def twelve() -> Any:
    """The shipped transformer with twelve blocks, untrained."""
    import torch

    from models.text import Transformer

    torch.manual_seed(0)
    return Transformer(blocks=BLOCKS).eval()


def localisation() -> dict[str, Any]:
    """The seconds to find one changed weight in a transformer of twelve blocks, and the finding."""
    whole = read().models["transformer"]
    settings = whole.model_copy(update={"build": "benchmarks.verification:twelve"})
    with tempfile.TemporaryDirectory() as temporary:
        weights, target = Path(temporary) / "model.safetensors", Path(temporary) / "model.onnx"
        isolated_call.call(600, _export, settings, weights, target)
        finish("transformer", settings, target, "")
        _spoil(target)
        made = [
            case for case in all_cases(settings.inputs, settings.free_dims, 2, 0, own_cases(settings)) if not case.probe
        ][:2]
        with Worker.torch(
            settings.build or "", weights, list(settings.inputs), list(settings.outputs), "twelve blocks"
        ) as worker:
            expected: list[Expected] = answers(worker, made)
        with Worker.onnx(target, "twelve blocks") as candidate:
            worst = localize.pick(expected, check(candidate, expected, settings.tolerance))
        assert worst is not None, "the changed weight did not change the answers"
        began = time.perf_counter()
        found = isolated_call.call(600, _against_torch, settings, weights, target, worst.case)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "found": localize.sentence(found)}


def _export(settings: ModelParams, weights: Path, target: Path) -> None:
    from safetensors.torch import save_file

    save_file(twelve().state_dict(), weights)
    torch_exporters.write("dynamo", settings, weights, target, torch_exporters.example(settings))


def _against_torch(*arguments: Any) -> Any:
    from onward.stages.exporting.localize_torch import against_torch

    settings, weights, target, case = arguments
    return against_torch(settings, weights, target, "dynamo", case, torch_exporters.example(settings))


def _spoil(path: Path) -> None:
    model = onnx.load(path)
    products = (n for n in model.graph.node if n.op_type in ("MatMul", "Gemm"))
    spoiled = next(n for n in products if origin(n)[0].startswith(f"blocks.{SPOILED}."))
    tensor = next(t for t in model.graph.initializer if t.name in spoiled.input and len(t.dims) == 2)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += np.float32(0.5)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())


def main() -> None:
    """Measure the models, print and write the table."""
    models = sys.argv[1:] or list(read().models)
    lines = ["# The time of verification", ""]
    lines += ["| model | cases | inference, s | workers' start, s | total, s | total / (inference + start) |"]
    lines += ["|---|---|---|---|---|---|"]
    for model in models:
        found = verification(model)
        seconds = [f"{found[name]:.2f}" for name in ("inference_s", "start_s", "whole_s", "ratio")]
        lines.append(f"| {model} | {found['cases']} | {' | '.join(seconds)} |")
    where = localisation()
    lines += [
        "",
        f"One weight of block {SPOILED} of {BLOCKS} changed: found in {where['seconds']:.1f} s. It {where['found']}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
