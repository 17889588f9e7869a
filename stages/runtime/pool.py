"""Talks to workers: starts them, feeds them, and turns their death into a sentence.

A `Worker` is one process with one model. When native code takes it down, `WorkerFailure` says how (aborted, timed
out, error), and the next request starts it again with the same model.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from registry.errors import OnwardError

Tensors = Mapping[str, npt.NDArray[Any]]
FailureKind = Literal["aborted", "timed out", "error"]

_HERE = Path(__file__).resolve().parent
CPU = "CPUExecutionProvider"

# Not the model's fault: whoever runs the stage has to make room.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class WorkerFailure(Exception):
    """A request that came to nothing: `kind` says how, the message says of which model and why."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(kind, reason)  # both, so that it can be pickled
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Killed(OnwardError):
    """Somebody ended a process from outside: a person, or the kernel for want of memory. That is no verdict on a model,
    so the stage ends without one, and runs again next time."""


def killed(label: str, code: int) -> Killed | None:
    """The error for an exit code that means a kill from outside; None for any other."""
    if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        how = signal.Signals(-code).name
        return Killed(f"{label}: the process was killed ({how}; by hand, or for want of memory?); nothing was written")
    return None


@dataclass
class Worker:
    """One model in one process of its own. `label` names it in messages."""

    label: str
    command: list[str]
    load: dict[str, Any]
    timeout: float = 120.0
    loaded: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _errors: Any = None

    @classmethod
    def onnx(
        cls,
        model: Path,
        label: str,
        provider: str = CPU,
        graph_level: str = "all",
        python: Path | str = sys.executable,
        timeout: float = 120.0,
    ) -> Worker:
        """A worker for an ONNX file in the environment of `python`."""
        load = {"model": str(model), "provider": provider, "graph_level": graph_level}
        return cls(label, [str(python), str(_HERE / "worker.py")], load, timeout)

    @classmethod
    def torch(
        cls, build: str, weights: Path, inputs: list[str], outputs: list[str], label: str, timeout: float = 120.0
    ) -> Worker:
        """A worker for a PyTorch module."""
        load = {"build": build, "weights": str(weights), "inputs": inputs, "outputs": outputs}
        return cls(label, [sys.executable, str(_HERE / "torch_worker.py")], load, timeout)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> dict[str, Any]:
        """Start the process and load the model, if that is not done yet; returns what the load answered."""
        if self._process is None:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onward-")
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process does
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
            self.loaded = self._ask({"command": "load", **self.load})
        return self.loaded

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name.

        Raises:
            WorkerFailure: the runtime refused the input, died of it, or did not answer in time.
        """
        self.start()
        assert self._folder is not None
        target = Path(self._folder.name) / "outputs.npz"
        self._ask({"command": "run", "inputs": self._write(inputs), "outputs": str(target)})
        with np.load(target, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def measure(self, inputs: Tensors, seconds: float, warmup: int) -> list[float]:
        """Latencies in milliseconds of repeated runs over at least `seconds`."""
        self.start()
        path = self._write(inputs)
        answer = self._ask({"command": "measure", "inputs": path, "seconds": seconds, "warmup": warmup})
        latencies: list[float] = answer["latencies_ms"]
        return latencies

    def profile(self, inputs: Tensors) -> dict[str, int]:
        """How many nodes each provider ran."""
        self.start()
        nodes: dict[str, int] = self._ask({"command": "profile", "inputs": self._write(inputs)})["nodes"]
        return nodes

    def peak_memory_mb(self) -> float:
        """Peak resident memory of the process so far."""
        self.start()
        return float(self._ask({"command": "memory"})["peak_mb"])

    def close(self) -> None:
        """End the process; a later request starts it anew."""
        self._kill()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _write(self, inputs: Tensors) -> str:
        assert self._folder is not None
        path = Path(self._folder.name) / "inputs.npz"
        np.savez(path, **dict(inputs))  # type: ignore[arg-type]
        return str(path)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        line = self._read_line()
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            if answer.get("errno") in DISK_FULL:
                raise OSError(answer["errno"], os.strerror(answer["errno"]), tempfile.gettempdir())
            if request["command"] == "load":
                self._kill()
            reason = f"{self.label}: {request['command']}: {answer['kind']}: {answer['error'].strip()}"
            raise WorkerFailure("error", _without_paths(reason))
        return answer

    def _read_line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout):
                self._kill()
                raise WorkerFailure("timed out", f"{self.label}: no answer within {self.timeout:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        return line

    def _death(self) -> WorkerFailure | Killed:
        """What took the process down: a signal by name, or its last words."""
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f" ({words[-1].strip()[:300]})" if words else ""
        self._kill()
        outside = killed(self.label, code)
        if outside is not None:
            return outside
        if code < 0:
            name = signal.Signals(-code).name
            return WorkerFailure("aborted", _without_paths(f"{self.label}: the process died of {name}{last}"))
        return WorkerFailure("error", _without_paths(f"{self.label}: the process ended with code {code}{last}"))

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._errors):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue  # what was still buffered for a dead process
            self._process = None


def _without_paths(text: str) -> str:
    """`text` with the repository's absolute path taken out: reports are the same wherever the checkout lies."""
    from stages import paths

    return text.replace(f"{paths.root()}/", "").replace(tempfile.gettempdir() + "/", "")
