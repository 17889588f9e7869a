"""Talks to workers: starts them, feeds them, and turns their death into a sentence.

A `Worker` is one process with one model. When native code takes it down, `WorkerFailure` says how (aborted, timed
out, error), and the next request starts it again with the same model.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil

from onward.registry import npz, processors
from onward.registry.errors import OnwardError
from onward.registry.evidence.session_options import CPU, SessionOptions

Tensors = Mapping[str, npt.NDArray[Any]]
FailureKind = Literal["aborted", "segfault", "timed out", "out of memory", "error"]

_HERE = Path(__file__).parent
# The graph as the file has it, none of ONNX Runtime's own rewriting.
AS_IT_IS = SessionOptions(graph_level="disabled")

# How ONNX Runtime, PyTorch and the C++ library say it.
_OUT_OF_MEMORY = r"bad_alloc|bad allocation|[Ff]ailed to allocate memory|can't allocate memory|[Oo]ut of memory"

# Where a process that was stopped ends with its parent nonetheless (worker.py), it is stopped between two measurements.
# Elsewhere its threads are given so many seconds to come to rest.
STOPPABLE = sys.platform == "linux"
REST = 0.06

# Not the model's fault: whoever runs the stage has to make room.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OPERATORS = (*DISK_FULL, errno.EACCES, errno.EROFS)


class WorkerFailure(Exception):
    """A request that came to nothing: `kind` says how, the message says of which model and why, `signal` names what
    ended the process, if anything did."""

    def __init__(self, kind: FailureKind, reason: str, signal: str = "") -> None:
        super().__init__(kind, reason, signal)  # all, so that it can be pickled
        self.kind = kind
        self.reason = reason
        self.signal = signal

    def __str__(self) -> str:
        return self.reason


class Killed(OnwardError):
    """Somebody ended a process from outside. That is no verdict on a model, so the stage ends without one, and runs
    again next time."""


def death(label: str, code: int, words: str = "", kills: int = 0) -> WorkerFailure | Killed:
    """What the exit code of a process means, with its last words.

    `kills` is what `kernel_kills` said when the process started: a SIGKILL while the kernel ended processes for want
    of memory is the model's fault, any other is somebody's.
    """
    last = f" ({words[:300]})" if words else ""
    if code >= 0:
        return WorkerFailure("error", f"{label}: the process ended with code {code}{last}")
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL and kernel_kills() > kills:
        return WorkerFailure("out of memory", f"{label}: the kernel killed the process for want of memory", name)
    if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Killed(f"{label}: the process was killed from outside ({name}); nothing was written")
    reason = f"{label}: the process died of {name}{last}"
    if "bad_alloc" in words:  # thrown where no frame catches it, in a thread of the runtime's own
        return WorkerFailure("out of memory", reason, name)
    return WorkerFailure("segfault" if -code in (signal.SIGSEGV, signal.SIGBUS) else "aborted", reason, name)


def kernel_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started; 0 where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass  # no Linux
    return 0


@dataclass
class Worker:
    """One model in one process of its own. `label` names model and provider in messages. The process may use
    `memory_bytes`, by default all that this machine has: more is a verdict, before it is everybody's trouble.
    `busy_seconds` is how long runs have taken inside the process so far, `why_not_wide` why `answer` gives nothing in
    float64."""

    label: str
    command: list[str]
    load: dict[str, Any]
    timeout: float = 120.0
    memory_bytes: int | None = field(default_factory=lambda: _physical_memory())
    loaded: dict[str, Any] = field(default_factory=dict)
    busy_seconds: float = 0.0
    why_not_wide: str = ""
    _shaken: int | None = None
    _kills: int = 0
    _is_loaded: bool = False
    _is_stopped: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _errors: Any = None

    @classmethod
    def onnx(
        cls,
        model: Path,
        label: str,
        provider: str = CPU,
        options: SessionOptions | None = None,
        python: Path | str = sys.executable,
        timeout: float = 120.0,
    ) -> Worker:
        """A worker for an ONNX file in the environment of `python`, with these session options. Where they name no
        threads, it has as many as InferenceSession has here."""
        given = options or SessionOptions()
        given = given.fitting_here() if given.threads is None else given
        load = {"model": str(model), "provider": provider, **given.to_load()}
        # CUDA maps far more than it uses: there, only the kernel knows when memory is out.
        memory = None if "CUDA" in provider or "Tensorrt" in provider else _physical_memory()
        return cls(f"{label} on {provider}", [str(python), str(_HERE / "onnx_worker.py")], load, timeout, memory)

    @classmethod
    def evaluator(cls, model: Path, label: str, timeout: float = 120.0) -> Worker:
        """A worker for an ONNX file evaluated node by node, in float64 where that says something: slow, and no
        runtime's opinion."""
        command = [sys.executable, str(_HERE / "evaluator_worker.py")]
        return cls(f"{label} evaluated node by node", command, {"model": str(model)}, timeout)

    @classmethod
    def torch(
        cls,
        build: str,
        weights: Path,
        inputs: list[str],
        outputs: list[str],
        label: str,
        timeout: float = 120.0,
        compiled: bool = False,
    ) -> Worker:
        """A worker for a PyTorch module, with `compiled` under torch.compile."""
        load = {"build": build, "weights": str(weights), "inputs": inputs, "outputs": outputs, "compiled": compiled}
        load |= {"threads": processors.fewer()}
        return cls(label, [sys.executable, str(_HERE / "torch_worker.py")], load, timeout)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spawn(self) -> None:
        """Start the process, if that is not done yet, and do not wait for it: several may start at the same time."""
        if self._process is None:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onward-")
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process does
            self._kills = kernel_kills()
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
            self._is_loaded = self._is_stopped = False
            if self.memory_bytes is not None and hasattr(resource, "prlimit"):
                limit = (self.memory_bytes, self.memory_bytes)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, limit)

    def start(self) -> dict[str, Any]:
        """Start the process and load the model, if that is not done yet; returns what the load answered."""
        self.spawn()
        if not self._is_loaded:
            self.loaded = self._ask({"command": "load", **self.load})
            self._is_loaded = True
            if self._shaken is not None:
                self._ask({"command": "shake", "seed": self._shaken})
            self._rest()
        return self.loaded

    def switch(self, model: Path, label: str) -> None:
        """Have the same process load another ONNX file, where it is time that counts and no figure of the process.

        Raises:
            WorkerFailure: the runtime refused the file, or died of it.
        """
        self.label = f"{label} on {self.load['provider']}"
        self.load = {**self.load, "model": str(model)}
        self.renew()

    def renew(self) -> None:
        """Have the same process load its model anew, into other memory.

        Raises:
            WorkerFailure: as `switch`.
        """
        self._is_loaded = False
        self.start()

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name.

        Raises:
            WorkerFailure: the runtime refused the input, died of it, or did not answer in time.
        """
        self.start()
        target = self._path("outputs.npz")
        answer = self._ask({"command": "run", "inputs": self._write(inputs), "outputs": target})
        self.busy_seconds += answer.get("seconds", 0.0)
        return npz.arrays(Path(target))

    def answer(self, inputs: Tensors) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """Outputs by name, and the same computed in float64, where the worker can (else empty).

        Raises:
            WorkerFailure: as `run`.
        """
        self.start()
        if not self.loaded.get("widens"):
            return self.run(inputs), {}
        target, truth = self._path("outputs.npz"), self._path("truth.npz")
        answer = self._ask({"command": "run", "inputs": self._write(inputs), "outputs": target, "truth": truth})
        self.busy_seconds += answer["seconds"]
        self.why_not_wide = answer["why_not_wide"]
        return npz.arrays(Path(target)), npz.arrays(Path(truth))

    def shake(self, seed: int | None) -> bool:
        """From now on, have the model answer with every float weight moved by one unit in the last place, up or down at
        random; with None, exactly again.

        Returns:
            whether the worker can do that.

        Raises:
            WorkerFailure: the model could not be loaded so.
        """
        self.start()
        if not self.loaded.get("shakes"):
            return False
        self._shaken = seed
        self._ask({"command": "shake", "seed": seed})
        return True

    def measure(self, inputs: Tensors, seconds: float, warmup: int) -> list[float]:
        """Latencies in milliseconds of repeated runs over at least `seconds`."""
        self.start()
        path = self._write(inputs)
        answer = self._ask({"command": "measure", "inputs": path, "seconds": seconds, "warmup": warmup})
        self._rest()
        latencies: list[float] = answer["latencies_ms"]
        return latencies

    def measure_callers(self, inputs: Tensors, callers: int, seconds: float) -> tuple[list[float], float]:
        """Latencies in milliseconds of so many threads calling at once for `seconds`, and the seconds it took."""
        self.start()
        path = self._write(inputs)
        answer = self._ask({"command": "callers", "inputs": path, "seconds": seconds, "callers": callers})
        self._rest()
        latencies: list[float] = answer["latencies_ms"]
        return latencies, float(answer["wall_seconds"])

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

    def _path(self, name: str) -> str:
        assert self._folder is not None
        return str(Path(self._folder.name) / name)

    def _write(self, inputs: Tensors) -> str:
        path = self._path("inputs.npz")
        np.savez(path, **dict(inputs))  # type: ignore[arg-type]
        return path

    def _rest(self) -> None:
        """Stop the process until it is asked again. Threads of a pool spin after their last task, ONNX Runtime's for
        40 ms and PyTorch's for 200, on the processor of whoever is measured next."""
        assert self._process is not None
        if STOPPABLE:
            self._process.send_signal(signal.SIGSTOP)
            self._is_stopped = True
        else:
            time.sleep(REST)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        if self._is_stopped:
            self._process.send_signal(signal.SIGCONT)
            self._is_stopped = False
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
            full = answer["kind"] == "MemoryError" or bool(re.search(_OUT_OF_MEMORY, answer["error"]))
            if full or request["command"] == "load":
                self._kill()
            reason = f"{self.label}: {request['command']}: {answer['kind']}: {answer['error'].strip()}"
            raise WorkerFailure("out of memory" if full else "error", _without_paths(reason))
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
        self._kill()
        return death(self.label, code, _without_paths(words[-1].strip()) if words else "", self._kills)

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


def _physical_memory() -> int:
    return int(psutil.virtual_memory().total)


def _without_paths(text: str) -> str:
    """`text` with the repository's absolute path taken out: reports are the same wherever the checkout lies."""
    from onward.stages.config import paths

    return text.replace(f"{paths.root()}/", "").replace(tempfile.gettempdir() + "/", "")
