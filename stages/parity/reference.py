"""The reference of a model: the PyTorch module or, without one, the original ONNX file with optimisations off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onward.registry import npz
from onward.registry.artifact import onnx_file
from onward.registry.errors import NotReady
from onward.stages import progress
from onward.stages.config import paths
from onward.stages.config.schema import ModelParams, Verify
from onward.stages.parity.one_by_one import OneByOne, frozen_batch
from onward.stages.workers import ties
from onward.stages.workers.jitter import graphs, jittered_file
from onward.stages.workers.worker import AS_IT_IS, Tensors, Worker, WorkerFailure

Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class OnnxOriginal(Worker):
    """An ONNX file as its own reference.

    It runs in ONNX Runtime without optimisations. The same graph is evaluated in float64 (workers/evaluator.py) for a
    limited time.

    Attributes:
        model: Name of the model in params.yaml.
        file: The original file.
        second: The evaluator's worker; None if the settings disable it.
        seconds: Remaining time for the evaluator, in seconds.
        unable: Why the evaluator cannot run this model; empty if it can.
        by_sample: How to run a batch, if the file takes one sample at a time; None if it takes batches.
        told: Number of inputs that the evaluator has answered.
        untold: Number of inputs that it has not answered, because the time was used up.
    """

    model: str = ""
    file: Path = Path()
    second: Worker | None = None
    seconds: float = 0.0
    unable: str = ""
    by_sample: OneByOne | None = None
    told: int = 0
    untold: int = 0

    def run(self, inputs: Tensors) -> Arrays:
        """As `Worker.run`; sample by sample, if the file takes one at a time."""
        return super().run(inputs) if self.by_sample is None else self.by_sample.run(super().run, inputs)

    def answer(self, inputs: Tensors) -> tuple[Arrays, Arrays]:
        """Run the model once, and evaluate it once more in float64.

        Args:
            inputs: Arrays by input name.

        Returns:
            Outputs by name, and the same in float64, which are empty if that is not possible or the time is used up.

        Raises:
            WorkerFailure: ONNX Runtime refused the inputs, the process died, or the time ran out.
        """
        return self.run(inputs), self._evaluated(inputs, wide=True)

    def opinion(self, inputs: Tensors) -> Arrays:
        """The evaluator's outputs, in float64 or not; empty if it cannot run the model, or the time is used up."""
        return self._evaluated(inputs, wide=False)

    def shake(self, seed: int | None) -> bool:
        """As `Worker.shake`, by loading a copy of the file with perturbed weights."""
        self.start()
        target = self.file
        if seed is not None:
            target = Path(self._path("shaken.onnx"))
            if not jittered_file(self.file, target, seed):
                return False
            self.chooses = ties.chooses(graphs(onnx_file.load_graph(target).graph))
        if seed is not None or self.load["model"] != str(target):
            self.load = {**self.load, "model": str(target)}
            self.renew()
        return True

    def close(self) -> None:
        """End both processes."""
        super().close()
        self.load = {**self.load, "model": str(self.file)}
        if self.second is not None:
            self.second.close()

    def _evaluated(self, inputs: Tensors, wide: bool) -> Arrays:
        if self.second is None or self.unable or (wide and self.why_not_wide):
            return {}
        if self.seconds <= 0:
            self.untold += 1
            return {}
        began = time.monotonic()
        try:
            self.second.timeout = self.seconds
            loaded = self.second.start()
            self.unable, self.why_not_wide = loaded["unable"], loaded["why_not_wide"]
            if self.unable or (wide and self.why_not_wide):
                return {}
            self.second.timeout = max(self.seconds - (time.monotonic() - began), 0.1)
            second = self.second.run
            found = second(inputs) if self.by_sample is None else self.by_sample.run(second, inputs)
            self.told += 1
            return found
        except WorkerFailure as failure:
            if failure.kind == "timed out":
                self.seconds = 0.0
                self.untold += 1
            elif failure.kind != "error" or not self.told:  # an error on the first input: it cannot run this model
                self.unable = failure.reason
            return {}
        finally:
            self.seconds -= time.monotonic() - began
            self._show()

    def _show(self) -> None:
        if self.seconds > 0:
            progress.show(f"float64 reference of case {self.told + 1}", seconds=self.seconds)
        else:
            progress.show("cases without a float64 reference (verify.evaluator_seconds is over)")


def trained_file(model: str, settings: ModelParams) -> Path:
    """The file that the train stage wrote: the weights of a PyTorch module, or the ONNX model."""
    return paths.build(model, "train") / ("model.safetensors" if settings.is_torch else "model.onnx")


def onnx_original(model: str, settings: ModelParams, verify: Verify, file: Path | None = None) -> OnnxOriginal:
    """Create the reference of a model that is an ONNX file, with an evaluator if the settings enable it.

    Args:
        model: Name of the model.
        settings: Its settings.
        verify: Time limits, and whether there is an evaluator.
        file: The original file; by default, the one that the train stage wrote.
    """
    file = file or trained_file(model, settings)
    worker = OnnxOriginal.onnx(file, f"{model}, the original file,", options=AS_IT_IS, timeout=verify.timeout)
    assert isinstance(worker, OnnxOriginal)
    worker.model, worker.file = model, file
    graph = onnx_file.load_graph(file)
    given = {value.name for value in graph.graph.output}
    worker.load["wanted"] = [name for name in settings.outputs if name in given]
    batch = frozen_batch(graph, settings)
    if batch:
        shapes = ({name: spec.shape for name, spec in specs.items()} for specs in (settings.inputs, settings.outputs))
        worker.by_sample = OneByOne(batch, *shapes)
    if verify.evaluator:
        worker.second, worker.seconds = Worker.evaluator(file, model), verify.evaluator_seconds
    return worker


def reference_worker(model: str, settings: ModelParams, compiled: bool = False, precision: str = "float32") -> Worker:
    """Create a worker that runs the original model.

    Args:
        model: Name of the model.
        settings: Its settings.
        compiled: Whether to run a PyTorch module with torch.compile.
        precision: The precision of a PyTorch module, "float32" or "bfloat16".
    """
    if settings.build is None:
        return onnx_original(model, settings, settings.verify)
    file = trained_file(model, settings)
    return Worker.torch(
        settings.build,
        file,
        list(settings.inputs),
        list(settings.outputs),
        f"{model} in PyTorch",
        settings.verify.timeout,
        compiled,
        precision,
    )


def split(model: str, name: str) -> dict[str, npt.NDArray[Any]]:
    """Read samples that the data stage wrote.

    Args:
        model: Name of the model.
        name: "evaluation" or "calibration".

    Returns:
        Arrays by input name, and `label` if there are labels, samples on the first axis.

    Raises:
        NotReady: The data stage has not run.
    """
    path = paths.build(model, "data") / f"{name}.npz"
    try:
        return npz.arrays(path)
    except FileNotFoundError:
        raise NotReady(f"build/{model}/data/{name}.npz is missing: run `onward stage data {model}`") from None
