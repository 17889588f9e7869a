"""Runs one ONNX model in a process of its own, in whatever Python holds the runtime to be measured.

Stand-alone on purpose: needs numpy and onnxruntime and nothing of ours, so that each execution provider can have its
own environment. Reads one JSON request a line on stdin, answers one JSON line on stdout; tensors travel as .npz.

    load     model, provider, [session options]                 -> session_ms, providers, inputs, outputs
    run      inputs, outputs (.npz paths)                       -> seconds
    measure  inputs, seconds, warmup                            -> latencies_ms
    callers  inputs, seconds, callers                           -> latencies_ms of all, wall_seconds
    profile  inputs                                             -> nodes run by each provider
    memory                                                      -> peak_mb
    optimize model, target, graph_level                         -> nothing but ok

Session options have the names of registry/evidence/session_options.py, whose `to_load` makes them: threads,
graph_level, spinning, execution_mode, arena, memory_pattern, affinity; and for the CUDA provider tf32, nhwc. One that
is left out is ONNX Runtime's default, but for tf32, which is then off.
A Python error is an answer with ok: false; a native abort is the end of the process, for the caller to see.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}


# prctl's "send me this signal when my parent ends".
PR_SET_PDEATHSIG = 1


def read_tensors(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def time_runs(run: Callable[[], object], seconds: float, warmup: int) -> list[float]:
    """Latencies in milliseconds of repeated calls over at least `seconds`, after `warmup` calls."""
    for _ in range(warmup):
        run()
    latencies: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while True:
        start = clock()
        run()
        now = clock()
        latencies.append((now - start) * 1e3)
        if now >= end:
            return latencies


def time_callers(run: Callable[[], object], seconds: float, callers: int) -> tuple[list[float], float]:
    """Latencies in milliseconds of so many threads calling at once, and how many seconds it took until the last ended.

    Each thread calls `run` once before the clock starts, and they start together.
    """
    together = threading.Barrier(callers + 1)

    def call() -> list[float]:
        run()
        together.wait()
        return time_runs(run, seconds, 0)

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call) for _ in range(callers)]
        together.wait()
        start = time.perf_counter()
        latencies = [latency for future in futures for latency in future.result()]
        return latencies, time.perf_counter() - start


def die_with_parent() -> None:
    """Have this process end when the one that asks it does, even while it is stopped and sees no end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def peak_memory_mb() -> float:
    """This process's own peak resident memory; getrusage's would include that of the process it was forked from."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass  # not Linux: fall through to the portable figure
    import resource

    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def session_options(
    threads: int | None = None,
    graph_level: str | None = None,
    spinning: bool | None = None,
    execution_mode: str | None = None,
    arena: bool | None = None,
    memory_pattern: bool | None = None,
    affinity: str | None = None,
) -> Any:
    """What registry/evidence/session_options.py's to_onnxruntime makes of the same names; a test holds them
    together."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    if threads is not None:
        made.intra_op_num_threads = threads
    if graph_level is not None:
        made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[graph_level])
    if execution_mode is not None:
        made.execution_mode = getattr(onnxruntime.ExecutionMode, MODES[execution_mode])
    if arena is not None:
        made.enable_cpu_mem_arena = arena
    if memory_pattern is not None:
        made.enable_mem_pattern = memory_pattern
    if spinning is not None:
        made.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if affinity is not None:
        made.add_session_config_entry("session.intra_op_thread_affinities", affinity)
    return made


def provider_of(name: str, tf32: bool | None, nhwc: bool | None) -> Any:
    """What registry/evidence/session_options.py's to_provider makes of the same names."""
    if name != "CUDAExecutionProvider":
        return name
    layout = {} if nhwc is None else {"prefer_nhwc": str(int(nhwc))}
    return name, {"use_tf32": str(int(bool(tf32))), **layout}


class OnnxModel:
    """The commands, on ONNX Runtime."""

    def __init__(self) -> None:
        self.session: Any = None
        self.loaded: dict[str, Any] = {}

    def _session(
        self,
        model: str,
        provider: str,
        settings: dict[str, Any],
        entries: dict[str, str] | None = None,
        tf32: bool | None = None,
        nhwc: bool | None = None,
        **options: Any,
    ) -> Any:
        """A session of these options; `settings` are further attributes of onnxruntime.SessionOptions, `entries`
        further entries of its configuration."""
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        made = session_options(**options)
        made.log_severity_level = 3
        for key, value in settings.items():
            setattr(made, key, value)
        for key, value in (entries or {}).items():
            made.add_session_config_entry(key, value)
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeError(
                f"{provider} is not in this onnxruntime ({', '.join(onnxruntime.get_available_providers())})"
            )
        if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            onnxruntime.preload_dlls()  # NVIDIA's wheels lie where no linker looks
        return onnxruntime.InferenceSession(model, made, providers=[provider_of(provider, tf32, nhwc)])

    def load(self, **request: Any) -> dict[str, Any]:
        import onnxruntime  # noqa: F401  outside the clock: session creation is what is reported

        start = time.perf_counter()
        self.session = self._session(settings={}, **request)
        self.loaded = request
        return {
            "session_ms": (time.perf_counter() - start) * 1e3,
            "providers": self.session.get_providers(),
            "inputs": [[i.name, i.type, i.shape] for i in self.session.get_inputs()],
            "outputs": [[o.name, o.type, o.shape] for o in self.session.get_outputs()],
        }

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        names = [o.name for o in self.session.get_outputs()]
        feed = read_tensors(inputs)
        start = time.perf_counter()
        results = self.session.run(names, feed)
        seconds = time.perf_counter() - start
        np.savez(outputs, **dict(zip(names, results, strict=True)))
        return {"seconds": seconds}

    def measure(self, inputs: str, seconds: float, warmup: int) -> dict[str, Any]:
        feed = read_tensors(inputs)
        session = self.session
        return {"latencies_ms": time_runs(lambda: session.run(None, feed), seconds, warmup)}

    def callers(self, inputs: str, seconds: float, callers: int) -> dict[str, Any]:
        feed = read_tensors(inputs)
        session = self.session
        latencies, wall = time_callers(lambda: session.run(None, feed), seconds, callers)
        return {"latencies_ms": latencies, "wall_seconds": wall}

    def profile(self, inputs: str) -> dict[str, Any]:
        """Runs once in a second session that writes a trace: what a provider list promises, a trace proves.

        Counted are the nodes that were given to each provider, as the graph has them (a provider may fuse hundreds
        into one that the trace names), where the trace says that this provider ran anything.
        """
        with tempfile.TemporaryDirectory() as folder:
            trace = {"enable_profiling": True, "profile_file_prefix": os.path.join(folder, "trace")}
            session = self._session(
                settings=trace, entries={"session.record_ep_graph_assignment_info": "1"}, **self.loaded
            )
            session.run(None, read_tensors(inputs))
            with open(session.end_profiling()) as file:
                ran = {event.get("args", {}).get("provider") for event in json.load(file)}
        nodes: collections.Counter[str] = collections.Counter()
        for part in session.get_provider_graph_assignment_info():
            if part.ep_name in ran:
                nodes[part.ep_name] += len(part.get_nodes())
        return {"nodes": dict(nodes)}

    def memory(self) -> dict[str, Any]:
        return {"peak_mb": peak_memory_mb()}

    def optimize(self, model: str, target: str, graph_level: str) -> dict[str, Any]:
        written = {"optimized_model_filepath": target}
        self._session(model, "CPUExecutionProvider", written, graph_level=graph_level)
        return {}


def serve(model: Any) -> None:
    """Answer requests until stdin ends. What native code prints goes to stderr, never between the answers."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            answer = {"ok": True, **getattr(model, command)(**request)}
        except Exception as error:  # MemoryError, too: its text may be empty, its kind says enough
            number = getattr(error, "errno", None)
            answer = {"ok": False, "kind": type(error).__name__, "error": str(error), "errno": number}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(ImportError):  # `load` says it; here, so that several workers import at the same time
        import onnxruntime  # noqa: F401
    serve(OnnxModel())
