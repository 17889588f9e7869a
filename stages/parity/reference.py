"""What a model is held to: the PyTorch module, or, where there is none, the ONNX file as it came, optimisations off."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onward.registry import npz
from onward.registry.errors import NotReady
from onward.stages.config import paths
from onward.stages.config.schema import ModelParams
from onward.stages.workers.jitter import jittered_file
from onward.stages.workers.worker import AS_IT_IS, Tensors, Worker, WorkerFailure

Arrays = dict[str, npt.NDArray[Any]]
# How often a long evaluation says how far it is.
SAY_SECONDS = 10.0


@dataclass
class OnnxOriginal(Worker):
    """An ONNX file as its own reference: ONNX Runtime with its optimisations off, and the same graph evaluated in
    float64 (runtime/evaluator.py), for `seconds` in all.

    Attributes:
        model: its name in params.yaml.
        file: the file as it came.
        second: the evaluator's process; None where the settings switch it off.
        seconds: what is left of the time for it.
        unable: why the evaluator cannot run this model; empty where it can.
        told: how many inputs it has answered.
        untold: how many it has not, for want of time.
    """

    model: str = ""
    file: Path = Path()
    second: Worker | None = None
    seconds: float = 0.0
    unable: str = ""
    told: int = 0
    untold: int = 0
    _said: float = 0.0

    def answer(self, inputs: Tensors) -> tuple[Arrays, Arrays]:
        """Outputs by name, and the same in float64; empty where there is no float64, or no time left.

        Raises:
            WorkerFailure: ONNX Runtime refused the input, died of it, or did not answer in time.
        """
        return self.run(inputs), self._evaluated(inputs, wide=True)

    def opinion(self, inputs: Tensors) -> Arrays:
        """What the evaluator answers, in float64 or not; empty where it cannot, or has no time left."""
        return self._evaluated(inputs, wide=False)

    def shake(self, seed: int | None) -> bool:
        """As Worker's: ONNX Runtime loads a copy of the file whose weights have moved."""
        self.start()
        target = self.file
        if seed is not None:
            target = Path(self._path("shaken.onnx"))
            if not jittered_file(self.file, target, seed):
                return False
        if seed is not None or self.load["model"] != str(target):
            self.load = {**self.load, "model": str(target)}
            self.renew()
        return True

    def close(self) -> None:
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
            found = self.second.run(inputs)
            self.told += 1
            return found
        except WorkerFailure as failure:
            if failure.kind == "timed out":
                self.seconds = 0.0
                self.untold += 1
            elif failure.kind != "error" or not self.told:  # what it cannot do once, it cannot do at all
                self.unable = failure.reason
            return {}
        finally:
            self.seconds -= time.monotonic() - began
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if not self._said:
            self._said = now
        elif now - self._said > SAY_SECONDS:
            self._said = now
            left = f"{self.seconds:.0f} s left" if self.seconds > 0 else "no time left (verify.evaluator_seconds)"
            print(f"verify {self.model}: float64 reference, {self.told} cases, {left}", file=sys.stderr, flush=True)


def trained_file(model: str, settings: ModelParams) -> Path:
    """The file that the train stage left: weights, or the ONNX model itself."""
    return paths.build(model, "train") / ("model.safetensors" if settings.is_torch else "model.onnx")


def onnx_original(model: str, settings: ModelParams) -> OnnxOriginal:
    """A worker for an ONNX file from elsewhere, with a float64 reference if the settings have one."""
    file, known = trained_file(model, settings), settings.verify
    worker = OnnxOriginal.onnx(file, f"{model} as it came", options=AS_IT_IS, timeout=known.timeout)
    assert isinstance(worker, OnnxOriginal)
    worker.model, worker.file = model, file
    if known.evaluator:
        worker.second, worker.seconds = Worker.evaluator(file, model), known.evaluator_seconds
    return worker


def reference_worker(model: str, settings: ModelParams, compiled: bool = False) -> Worker:
    """A worker that answers as the original model does; `compiled`, for a PyTorch module, under torch.compile."""
    if settings.build is None:
        return onnx_original(model, settings)
    file = trained_file(model, settings)
    return Worker.torch(
        settings.build,
        file,
        list(settings.inputs),
        list(settings.outputs),
        f"{model} in PyTorch",
        settings.verify.timeout,
        compiled,
    )


def split(model: str, name: str) -> dict[str, npt.NDArray[Any]]:
    """The `evaluation` or `calibration` samples that the data stage wrote: inputs by name, and `label` if there is one.

    Raises:
        NotReady: they are not there.
    """
    path = paths.build(model, "data") / f"{name}.npz"
    try:
        return npz.arrays(path)
    except FileNotFoundError:
        raise NotReady(f"build/{model}/data/{name}.npz is missing: run `onward stage data {model}`") from None
