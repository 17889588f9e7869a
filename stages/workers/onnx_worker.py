"""Runs one ONNX model in its own process, with the Python environment of the runtime to measure.

This file is stand-alone: it needs numpy and onnxruntime and no other module of Onward, so that each execution provider
can have its own environment. It reads JSON requests from stdin and writes JSON answers to stdout, one per line. Tensors
are passed as .npz files.

    load     model, provider, [wanted, custom_ops, options]     -> session_ms, providers, inputs, outputs
    run      inputs, outputs (.npz paths)                       -> seconds
    measure  inputs, seconds, warmup                            -> latencies_ms
    callers  inputs, seconds, callers                           -> latencies_ms of all callers, wall_seconds
    profile  inputs                                             -> number of nodes that each provider ran
    times    inputs                                             -> times by type of operator
    memory                                                      -> peak_mb
    optimize model, target, graph_level, [custom_ops]           -> only ok

Session options have the names that `to_load` of registry/evidence/session_options.py gives them: threads, graph_level,
spinning, execution_mode, arena, memory_pattern, affinity; for the CUDA provider tf32, nhwc; and for the OpenVINO
provider streams, precision, performance. Options that are left out have ONNX Runtime's defaults, except for tf32, which
is off by default, and precision, which is float32 by default.
A provider that does not start is an error: ONNX Runtime would drop it with only a warning.
`custom_ops` are paths of native libraries with custom operators. `wanted` are the names of the outputs that `run`
returns; by default all. A sequence of maps from class to probability becomes an array with one column per class.
A Python error is answered with ok: false. A native abort ends the process, which the caller detects.
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


# The option of prctl(2) that makes the kernel send a signal to this process when its parent ends.
PR_SET_PDEATHSIG = 1
# Half the number of runs that a trace of operators covers.
TRACED = 3


def read_tensors(path: str) -> dict[str, Any]:
    """Read the arrays of an .npz file, by name."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def as_array(value: Any) -> Any:
    """Convert a sequence of maps to an array with one column per key, and string objects to NumPy strings."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return np.array([list(row.values()) for row in value], dtype=np.float32)
    return value.astype(str) if isinstance(value, np.ndarray) and value.dtype == object else value


def time_runs(run: Callable[[], object], seconds: float, warmup: int) -> list[float]:
    """Time repeated calls.

    Args:
        run: The function to call.
        seconds: Minimal duration of the measurement, in seconds.
        warmup: Number of calls before the measurement.

    Returns:
        Latency of each call, in ms.
    """
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
    """Time repeated calls by several threads at the same time.

    Each thread calls `run` once for warm-up. Then all threads start together.

    Args:
        run: The function to call.
        seconds: Minimal duration of the measurement, in seconds.
        callers: Number of threads.

    Returns:
        Latencies of all calls, in ms, and the seconds until the last thread ended.
    """
    barrier = threading.Barrier(callers + 1)

    def call() -> list[float]:
        run()
        barrier.wait()
        return time_runs(run, seconds, 0)

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call) for _ in range(callers)]
        barrier.wait()
        start = time.perf_counter()
        latencies = [latency for future in futures for latency in future.result()]
        return latencies, time.perf_counter() - start


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends (Linux only).

    End of input on stdin is not enough: a process that is stopped (SIGSTOP) does not see it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in MiB.

    On Linux it is VmHWM, because getrusage includes the memory of the process that this one was forked from.
    """
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass  # not Linux: use getrusage
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
    """Create onnxruntime.SessionOptions from options by name; None means ONNX Runtime's default.

    It duplicates `to_onnxruntime` of registry/evidence/session_options.py, because this file is stand-alone. A test
    compares the two.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if graph_level is not None:
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[graph_level])
    if execution_mode is not None:
        options.execution_mode = getattr(onnxruntime.ExecutionMode, MODES[execution_mode])
    if arena is not None:
        options.enable_cpu_mem_arena = arena
    if memory_pattern is not None:
        options.enable_mem_pattern = memory_pattern
    if spinning is not None:
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if affinity is not None:
        options.add_session_config_entry("session.intra_op_thread_affinities", affinity)
    return options


def provider_of(
    name: str,
    tf32: bool | None = None,
    nhwc: bool | None = None,
    threads: int | None = None,
    streams: int | None = None,
    precision: str | None = None,
    performance: str | None = None,
) -> Any:
    """An entry for InferenceSession's `providers`.

    It duplicates `to_provider` of registry/evidence/session_options.py, because this file is stand-alone. A test
    compares the two.
    """
    if name == "OpenVINOExecutionProvider":
        hints = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
        settings = {"INFERENCE_PRECISION_HINT": hints[precision or "float32"]}
        if performance is not None:
            settings["PERFORMANCE_HINT"] = performance.upper()
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        if streams is not None:
            settings["NUM_STREAMS"] = str(streams)
        return name, {"load_config": json.dumps({"CPU": settings})}
    if name != "CUDAExecutionProvider":
        return name
    layout = {} if nhwc is None else {"prefer_nhwc": str(int(nhwc))}
    return name, {"use_tf32": str(int(bool(tf32))), **layout}


class OnnxModel:
    """The commands of this worker, on ONNX Runtime. Arguments and answers are in the module's docstring."""

    def __init__(self) -> None:
        self.session: Any = None
        self.loaded: dict[str, Any] = {}
        self.wanted: list[str] | None = None

    def _session(
        self,
        model: str,
        provider: str,
        settings: dict[str, Any],
        entries: dict[str, str] | None = None,
        custom_ops: list[str] | None = None,
        **options: Any,
    ) -> Any:
        """Create a session.

        `settings` are further attributes of onnxruntime.SessionOptions, `entries` further configuration entries.
        """
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        own = {key: options.pop(key, None) for key in ("tf32", "nhwc", "streams", "precision", "performance")}
        native_options = session_options(**options)
        native_options.log_severity_level = 3
        for key, value in settings.items():
            setattr(native_options, key, value)
        for key, value in (entries or {}).items():
            native_options.add_session_config_entry(key, value)
        for library in custom_ops or []:
            native_options.register_custom_ops_library(library)
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeError(
                f"this onnxruntime has no {provider}; it has {', '.join(onnxruntime.get_available_providers())}"
            )
        if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            onnxruntime.preload_dlls()  # the linker does not search the folders of NVIDIA's wheels
        entry = provider_of(provider, **own, threads=options.get("threads"))
        session = onnxruntime.InferenceSession(model, native_options, providers=[entry])
        if session.get_providers()[0] != provider:
            raise RuntimeError(f"fell back to CPU: {provider} did not start")
        return session

    def load(self, wanted: list[str] | None = None, **request: Any) -> dict[str, Any]:
        """Create the session, and time its creation without the import of onnxruntime."""
        import onnxruntime  # noqa: F401  before the clock starts

        start = time.perf_counter()
        self.session = self._session(settings={}, **request)
        self.loaded, self.wanted = request, wanted
        return {
            "session_ms": (time.perf_counter() - start) * 1e3,
            "providers": self.session.get_providers(),
            "inputs": [[value.name, value.type, value.shape] for value in self.session.get_inputs()],
            "outputs": [[value.name, value.type, value.shape] for value in self.session.get_outputs()],
        }

    def run(self, inputs: str, outputs: str) -> dict[str, Any]:
        """Run the model once and write its outputs to a file."""
        names = self.wanted or [value.name for value in self.session.get_outputs()]
        return self.run_named(inputs, outputs, names)

    def run_named(self, inputs: str, outputs: str, names: list[str]) -> dict[str, Any]:
        """Run the model once and write the outputs with these names to a file."""
        feed = read_tensors(inputs)
        start = time.perf_counter()
        results = self.session.run(names, feed)
        seconds = time.perf_counter() - start
        np.savez(outputs, **{name: as_array(value) for name, value in zip(names, results, strict=True)})
        return {"seconds": seconds}

    def measure(self, inputs: str, seconds: float, warmup: int) -> dict[str, Any]:
        """Time repeated runs (`time_runs`)."""
        feed = read_tensors(inputs)
        session = self.session
        return {"latencies_ms": time_runs(lambda: session.run(None, feed), seconds, warmup)}

    def callers(self, inputs: str, seconds: float, callers: int) -> dict[str, Any]:
        """Time repeated runs by several threads (`time_callers`)."""
        feed = read_tensors(inputs)
        session = self.session
        latencies, wall = time_callers(lambda: session.run(None, feed), seconds, callers)
        return {"latencies_ms": latencies, "wall_seconds": wall}

    def profile(self, inputs: str) -> dict[str, Any]:
        """Count the nodes that each provider ran, with one run of a second session that writes a trace.

        The session's list of providers does not show which of them ran anything; the trace does. A provider may fuse
        hundreds of nodes into one entry of the trace. So the nodes of the graph that were assigned to a provider are
        counted, if the trace shows that this provider ran.
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

    def times(self, inputs: str) -> dict[str, Any]:
        """Time by type of operator in ms, over the second half of a few runs of a session that writes a trace."""
        times: collections.Counter[str] = collections.Counter()
        feed = read_tensors(inputs)
        with tempfile.TemporaryDirectory() as folder:
            trace = {"enable_profiling": True, "profile_file_prefix": os.path.join(folder, "trace")}
            session = self._session(settings=trace, **self.loaded)
            for _ in range(2 * TRACED):
                session.run(None, feed)
            with open(session.end_profiling()) as file:
                events = [event for event in json.load(file) if event["name"].endswith("_kernel_time")]
        for event in events[len(events) // 2 :]:
            times[event["args"].get("op_name", "?")] += event["dur"] / 1e3
        return {"times": dict(times)}

    def memory(self) -> dict[str, Any]:
        """Peak memory of this process, in MiB."""
        return {"peak_mb": peak_memory_mb()}

    def optimize(
        self, model: str, target: str, graph_level: str, custom_ops: list[str] | None = None
    ) -> dict[str, Any]:
        """Write the graph as ONNX Runtime optimises it."""
        written = {"optimized_model_filepath": target}
        self._session(model, "CPUExecutionProvider", written, graph_level=graph_level, custom_ops=custom_ops)
        return {}


def serve(model: Any) -> None:
    """Answer requests until stdin ends. Output that native code prints is redirected from stdout to stderr."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            answer = {"ok": True, **getattr(model, command)(**request)}
        except Exception as error:  # includes MemoryError, whose text may be empty
            number = getattr(error, "errno", None)
            answer = {"ok": False, "kind": type(error).__name__, "error": str(error), "errno": number}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Import now, so that several workers import at the same time. `load` reports a failed import.
    with contextlib.suppress(ImportError):
        import onnxruntime  # noqa: F401
    serve(OnnxModel())
