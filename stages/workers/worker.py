"""The client of worker processes: starts them, sends requests, and reports how they end.

A `Worker` is one process with one model. If native code ends the process, `WorkerFailure` says how (aborted, segfault,
timed out, out of memory, error), and the next request starts it again with the same model. onnx_worker.py documents the
protocol.
"""

from __future__ import annotations

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
from onward.registry.errors import DISK_FULL, NotReady, OnwardError
from onward.registry.evidence.session_options import CPU, OPENVINO_NATIVE, SessionOptions
from onward.stages.config import paths
from onward.stages.workers.circumstances import CURRENT

Tensors = Mapping[str, npt.NDArray[Any]]
FailureKind = Literal["aborted", "segfault", "timed out", "out of memory", "error"]

_HERE = Path(__file__).parent
# Runs the graph as it is in the file, without ONNX Runtime's optimisations.
AS_IT_IS = SessionOptions(graph_level="disabled")

# Messages of ONNX Runtime, PyTorch and the C++ library.
_OUT_OF_MEMORY = r"bad_alloc|bad allocation|[Ff]ailed to allocate memory|can't allocate memory|[Oo]ut of memory"

# On Linux, a worker is stopped (SIGSTOP) between measurements; it still ends with its parent there
# (onnx_worker.die_with_parent). Elsewhere, REST is the time in seconds for its threads to stop spinning.
STOPPABLE = sys.platform == "linux"
REST = 0.06


class WorkerFailure(Exception):
    """A request failed.

    Attributes:
        kind: How it failed.
        reason: The model and the cause, in words.
        signal: Name of the signal that ended the process, if one did.
    """

    def __init__(self, kind: FailureKind, reason: str, signal: str = "") -> None:
        super().__init__(kind, reason, signal)  # all arguments, so that it can be pickled
        self.kind = kind
        self.reason = reason
        self.signal = signal

    def __str__(self) -> str:
        return self.reason


class Killed(OnwardError):
    """A process was killed from outside.

    That says nothing about the model. So the stage ends without a verdict, and runs again next time.
    """


def death(label: str, code: int, words: str = "", kills: int = 0) -> WorkerFailure | Killed:
    """Interpret the exit code of a process.

    Args:
        label: Names the process in the message.
        code: The exit code; negative for a signal.
        words: The last line that the process wrote to stderr.
        kills: The result of `kernel_kills` when the process started. If it has grown since, a SIGKILL means that the
            process ran out of memory; otherwise it came from outside.
    """
    last_line = f" ({words[:300]})" if words else ""
    if code >= 0:
        return WorkerFailure("error", f"{label}: the process ended with code {code}{last_line}")
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL and kernel_kills() > kills:
        return WorkerFailure("out of memory", f"{label}: the kernel killed the process, because memory ran out", name)
    if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Killed(f"{label}: the process was killed from outside ({name}); nothing was written")
    reason = f"{label}: the process died of {name}{last_line}"
    if "bad_alloc" in words:  # thrown in a thread of the runtime, where nothing catches it
        return WorkerFailure("out of memory", reason, name)
    return WorkerFailure("segfault" if -code in (signal.SIGSEGV, signal.SIGBUS) else "aborted", reason, name)


def kernel_kills() -> int:
    """Number of processes that the kernel has killed since boot because memory ran out; 0 if unknown."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass  # not Linux
    return 0


@dataclass
class Worker:
    """One model in its own process.

    Every request raises WorkerFailure if the runtime refuses it, the process dies, or the time runs out.

    Attributes:
        label: Names the model and the provider in messages.
        command: Command line of the process.
        load: Arguments of the load request.
        timeout: Time limit per request, in seconds.
        memory_bytes: Limit of the process's memory, by default all physical memory; a model that needs more fails
            before the machine runs out of memory. None means no limit.
        loaded: The answer to the load request.
        busy_seconds: Total time of the runs so far, in seconds, measured inside the process.
        why_not_wide: Why `answer` returns no float64 outputs; empty if it does.
        chooses: Whether a run after `shake` met an operator that chooses among equal values (ties.py).
    """

    label: str
    command: list[str]
    load: dict[str, Any]
    timeout: float = 120.0
    memory_bytes: int | None = field(default_factory=lambda: _physical_memory())
    loaded: dict[str, Any] = field(default_factory=dict)
    busy_seconds: float = 0.0
    why_not_wide: str = ""
    chooses: bool = False
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
        """Create a worker for an ONNX file.

        Args:
            model: The ONNX file.
            label: Names the model in messages.
            provider: Execution provider, or OPENVINO_NATIVE for OpenVINO itself.
            options: Session options; without `threads`, the default number for this machine is set.
            python: The Python interpreter whose environment contains the runtime.
            timeout: Time limit per request, in seconds.
        """
        options = options or SessionOptions()
        options = options.fitting_here() if options.threads is None else options
        native = provider == OPENVINO_NATIVE
        options = options if native else options.limited_to(CURRENT.graph_level)
        load = {"model": str(model), "provider": provider, **(options.to_native() if native else options.to_load())}
        if CURRENT.libraries and not native:
            load["custom_ops"] = [str(library) for library in CURRENT.libraries]
        # No limit with CUDA, which maps far more memory than it uses.
        memory = None if "CUDA" in provider or "Tensorrt" in provider else _physical_memory()
        script = _HERE / ("openvino_worker.py" if native else "onnx_worker.py")
        return cls(f"{label} on {provider}", [str(python), str(script)], load, timeout, memory)

    @classmethod
    def evaluator(cls, model: Path, label: str, timeout: float = 120.0) -> Worker:
        """Create a worker that evaluates an ONNX file node by node, in float64 if possible (evaluator_worker.py).

        It is slow, and independent of ONNX Runtime.

        Args:
            model: The ONNX file.
            label: Names the model in messages.
            timeout: Time limit per request, in seconds.
        """
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
        precision: str = "float32",
    ) -> Worker:
        """Create a worker for a PyTorch module (torch_worker.py).

        Args:
            build: `package.module:function` that returns the module.
            weights: File with the weights.
            inputs: Names of the inputs.
            outputs: Names of the outputs.
            label: Names the model in messages.
            timeout: Time limit per request, in seconds.
            compiled: Whether to run the module with torch.compile.
            precision: "float32", or "bfloat16" for weights, inputs and outputs in it.
        """
        load = {"build": build, "weights": str(weights), "inputs": inputs, "outputs": outputs, "compiled": compiled}
        load |= {"threads": processors.fewer(), "precision": precision}
        return cls(label, [sys.executable, str(_HERE / "torch_worker.py")], load, timeout)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spawn(self) -> None:
        """Start the process, unless it runs, without waiting for it, so that several can start at the same time."""
        if self._process is None:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onward-")
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed when the process ends
            self._kills = kernel_kills()
            try:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
                )
            except FileNotFoundError:
                raise NotReady(
                    f"{self.label}: there is no {self.command[0]}: run `onward stage host`, which finds the runtimes"
                ) from None
            self._is_loaded = self._is_stopped = False
            if self.memory_bytes is not None and hasattr(resource, "prlimit"):
                limit = (self.memory_bytes, self.memory_bytes)
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, limit)

    def start(self) -> dict[str, Any]:
        """Start the process and load the model, unless that is done.

        Returns:
            The answer to the load request.
        """
        self.spawn()
        if not self._is_loaded:
            self.loaded = self._ask({"command": "load", **self.load})
            self._is_loaded = True
            if self._shaken is not None:
                self._ask({"command": "shake", "seed": self._shaken})
            self._rest()
        return self.loaded

    def switch(self, model: Path, label: str) -> None:
        """Load another ONNX file in the same process.

        This saves the start of a process. Do not use it before measuring peak memory, which includes all files loaded.

        Raises:
            WorkerFailure: The runtime refused the file, the process died, or the time ran out.
        """
        self.label = f"{label} on {self.load['provider']}"
        self.load = {**self.load, "model": str(model)}
        self.renew()

    def renew(self) -> None:
        """Load the model again in the same process, at other memory addresses."""
        self._is_loaded = False
        self.start()

    def run(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Run the model once.

        Args:
            inputs: Arrays by input name.

        Returns:
            Outputs by name.

        Raises:
            WorkerFailure: The runtime refused the inputs, the process died, or the time ran out.
        """
        self.start()
        target = self._path("outputs.npz")
        answer = self._ask({"command": "run", "inputs": self._write(inputs), "outputs": target})
        self.busy_seconds += answer.get("seconds", 0.0)
        self.chooses |= answer.get("chooses", False)
        return npz.arrays(Path(target))

    def answer(self, inputs: Tensors) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """Run the model once, and once more in float64 if the worker supports it.

        Args:
            inputs: Arrays by input name.

        Returns:
            Outputs by name, and the same computed in float64 (empty if not supported).
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
        """Perturb every float weight by one unit in the last place, up or down at random, for all later runs.

        Args:
            seed: Seed of the random directions; None restores the exact weights.

        Returns:
            Whether the worker supports this.
        """
        self.start()
        if not self.loaded.get("shakes"):
            return False
        self._shaken = seed
        self._ask({"command": "shake", "seed": seed})
        return True

    def measure(self, inputs: Tensors, seconds: float, warmup: int) -> list[float]:
        """Time repeated runs.

        Args:
            inputs: Arrays by input name.
            seconds: Minimal duration of the measurement, in seconds.
            warmup: Number of runs before the measurement.

        Returns:
            Latency of each run, in ms.
        """
        self.start()
        path = self._write(inputs)
        answer = self._ask({"command": "measure", "inputs": path, "seconds": seconds, "warmup": warmup})
        self._rest()
        latencies: list[float] = answer["latencies_ms"]
        return latencies

    def measure_callers(self, inputs: Tensors, callers: int, seconds: float) -> tuple[list[float], float]:
        """Time repeated runs by several threads at the same time.

        Args:
            inputs: Arrays by input name.
            callers: Number of threads.
            seconds: Minimal duration of the measurement, in seconds.

        Returns:
            Latencies of all runs, in ms, and the seconds until the last thread ended.
        """
        self.start()
        path = self._write(inputs)
        answer = self._ask({"command": "callers", "inputs": path, "seconds": seconds, "callers": callers})
        self._rest()
        latencies: list[float] = answer["latencies_ms"]
        return latencies, float(answer["wall_seconds"])

    def profile(self, inputs: Tensors) -> dict[str, int]:
        """Number of nodes that each provider ran in one run."""
        self.start()
        nodes: dict[str, int] = self._ask({"command": "profile", "inputs": self._write(inputs)})["nodes"]
        return nodes

    def operator_times(self, inputs: Tensors) -> dict[str, float]:
        """Time by type of operator over a few runs, in ms; empty if the runtime does not tell."""
        self.start()
        times: dict[str, float] = self._ask({"command": "times", "inputs": self._write(inputs)})["times"]
        return times

    def peak_memory_mb(self) -> float:
        """Peak resident memory of the process so far, in MiB."""
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
        """Stop the process until the next request.

        Otherwise its idle threads would slow down the next process to be measured: ONNX Runtime's threads spin for
        40 ms after their last task, PyTorch's for 200 ms.
        """
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
        """Describe how the process ended: by which signal, or with which last line on stderr."""
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
                        continue  # data was still buffered for the dead process
            self._process = None


def _physical_memory() -> int:
    return int(psutil.virtual_memory().total)


def _without_paths(text: str) -> str:
    """Remove the project's and the temporary folder's paths, so that reports do not depend on them.

    `paths.without_paths` also shortens other paths, which would cut node names such as /encoder/Conv.
    """
    return text.replace(f"{paths.root()}/", "").replace(tempfile.gettempdir() + "/", "")
