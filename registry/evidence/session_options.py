"""Session and provider options of a variant: the benchmark tunes them, and InferenceSession applies them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onward.registry import processors

# ONNX Runtime's notation: one group of processors (numbered from 1) per thread except the caller's, e.g. "1,2;3-4".
_AFFINITY = re.compile(r"\d+([,-]\d+)*(;\d+([,-]\d+)*)*")
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
GraphLevel = Literal["disabled", "basic", "extended", "all"]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
# OpenVINO itself, without ONNX Runtime (registry/artifact/openvino_session.py). It is no provider of ONNX Runtime.
OPENVINO_NATIVE = "OpenVINO"
# Values of OpenVINO's INFERENCE_PRECISION_HINT.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class SessionOptions(BaseModel):
    """The session and provider options of a variant. None means ONNX Runtime's default, except for `tf32`.

    Attributes:
        threads: The number of threads of one operator, including the caller's (intra-op).
        graph_level: The level of graph optimisation at load time.
        spinning: Whether threads busy-wait for work (`allow_spinning`).
        execution_mode: "parallel" runs independent branches of the graph concurrently.
        arena: Whether the CPU memory arena keeps memory between runs.
        memory_pattern: Whether memory allocation patterns are kept between runs.
        affinity: The processors of each thread except the caller's, in ONNX Runtime's notation, e.g. "1,2;3-4":
            numbered from 1, one group per thread. It requires `threads`.
        tf32: CUDA only. Whether float32 products use TensorFloat-32, which keeps ten bits of mantissa. That is another
            precision, so None means off here, although ONNX Runtime's default is on.
        nhwc: CUDA only. Whether convolutions run with channels last.
        precision: OpenVINO only. The precision that float32 operators compute in. None means float32, although
            OpenVINO's default is bfloat16 on a CPU with AMX or AVX512_BF16.
        streams: OpenVINO only. The number of requests that run at the same time.
        performance: OpenVINO only. What its defaults are chosen for. None means latency.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: Annotated[int, Field(ge=1)] | None = None
    graph_level: GraphLevel | None = None
    spinning: bool | None = None
    execution_mode: Literal["sequential", "parallel"] | None = None
    arena: bool | None = None
    memory_pattern: bool | None = None
    affinity: str | None = None
    tf32: bool | None = None
    nhwc: bool | None = None
    precision: Literal["bfloat16", "float16"] | None = None
    streams: Annotated[int, Field(ge=1)] | None = None
    performance: Literal["latency", "throughput"] | None = None

    @model_validator(mode="after")
    def _one_group_a_thread(self) -> SessionOptions:
        if self.affinity is not None:
            if not _AFFINITY.fullmatch(self.affinity):
                raise ValueError(
                    f"affinity {self.affinity!r}: write groups of processors, numbered from 1, e.g. '1,2;3-4'"
                )
            groups = self.affinity.count(";") + 1
            if self.threads != groups + 1:
                raise ValueError(
                    f"affinity has {groups} groups: set threads to {groups + 1} (the caller's thread has no group)"
                )
        return self

    def __str__(self) -> str:
        given = self.to_load()
        return ", ".join(f"{key} {value}".lower() for key, value in given.items()) or "ONNX Runtime's defaults"

    def __or__(self, other: SessionOptions) -> SessionOptions:
        """These options, with those that `other` sets instead."""
        return SessionOptions.model_validate(self.to_load() | other.to_load())

    def changes(self, other: SessionOptions) -> SessionOptions:
        """The options of `other` that differ from these."""
        own = self.to_load()
        return SessionOptions.model_validate({k: v for k, v in other.to_load().items() if own.get(k) != v})

    def to_load(self) -> dict[str, Any]:
        """Convert to JSON for the worker's `load` request (stages/workers/onnx_worker.py); None is left out."""
        return self.model_dump(exclude_none=True)

    def to_onnxruntime(self) -> Any:
        """Convert to an onnxruntime.SessionOptions."""
        import onnxruntime

        made = onnxruntime.SessionOptions()
        if self.threads is not None:
            made.intra_op_num_threads = self.threads
        if self.graph_level is not None:
            made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[self.graph_level])
        if self.execution_mode is not None:
            made.execution_mode = getattr(onnxruntime.ExecutionMode, _MODES[self.execution_mode])
        if self.execution_mode == "parallel":
            made.inter_op_num_threads = processors.fewer() or 0  # 0 is ONNX Runtime's default
        if self.arena is not None:
            made.enable_cpu_mem_arena = self.arena
        if self.memory_pattern is not None:
            made.enable_mem_pattern = self.memory_pattern
        for key, value in self._entries().items():
            made.add_session_config_entry(key, value)
        return made

    def to_provider(self, name: str) -> str | tuple[str, dict[str, str]]:
        """Convert to an entry of the `providers` argument of onnxruntime.InferenceSession.

        Args:
            name: The execution provider, e.g. "CUDAExecutionProvider".

        Returns:
            The provider's name, together with these options if it is CUDA or OpenVINO.
        """
        if name == OPENVINO:
            return name, {"load_config": json.dumps({"CPU": self._openvino()})}
        if name != CUDA:
            return name
        layout = {} if self.nhwc is None else {"prefer_nhwc": str(int(self.nhwc))}
        return name, {"use_tf32": str(int(bool(self.tf32))), **layout}

    def _openvino(self) -> dict[str, str]:
        """The plug-in's properties. The provider takes them as JSON; given a path, it falls back to the CPU."""
        found = {"INFERENCE_PRECISION_HINT": _HINTS[self.precision or "float32"]}
        if self.performance is not None:
            found["PERFORMANCE_HINT"] = self.performance.upper()
        if self.threads is not None:
            found["INFERENCE_NUM_THREADS"] = str(self.threads)
        if self.streams is not None:
            found["NUM_STREAMS"] = str(self.streams)
        return found

    def to_native(self) -> dict[str, Any]:
        """Convert to the arguments of OpenvinoSession (registry/artifact/openvino_session.py); None is left out."""
        return self.model_dump(include={"threads", "streams", "precision", "performance"}, exclude_none=True)

    def to_mlflow(self) -> dict[str, Any]:
        """Convert to the argument `onnx_session_options` of `mlflow.onnx.save_model`.

        MLflow supports neither `arena` and `memory_pattern` nor a provider's options, so these are left out.
        """
        levels = {"disabled": 0, "basic": 1, "extended": 2, "all": 99}
        found = {
            "intra_op_num_threads": self.threads,
            "graph_optimization_level": None if self.graph_level is None else levels[self.graph_level],
            "execution_mode": self.execution_mode,
            "extra_session_config": self._entries() or None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def limited_to(self, level: GraphLevel | None) -> SessionOptions:
        """Limit graph optimisation to a level; None limits nothing. ONNX Runtime's default is the highest level."""
        order = list(_LEVELS)
        if level is None or order.index(self.graph_level or order[-1]) <= order.index(level):
            return self
        return self.model_copy(update={"graph_level": level})

    def fitting_here(self) -> SessionOptions:
        """Adapt these options to the processors that this process may use.

        More threads than usable processors, and an affinity to unusable processors, are removed. If this process may
        use fewer processors than the machine has (a container's quota), `threads` is set to that number, because ONNX
        Runtime's default counts the machine's processors.
        """
        if self.affinity is not None and not _processors(self.affinity) <= processors.usable():
            return self.model_copy(update={"affinity": None}).fitting_here()
        if self.threads is None or self.threads > processors.count():
            fewer = processors.fewer()
            return self.model_copy(update={"threads": fewer, "affinity": None})
        return self

    def _entries(self) -> dict[str, str]:
        entries = {} if self.spinning is None else {"session.intra_op.allow_spinning": str(int(self.spinning))}
        return entries if self.affinity is None else {**entries, "session.intra_op_thread_affinities": self.affinity}


def _processors(affinity: str) -> set[int]:
    """All processors in an affinity, which contains numbers and ranges."""
    found: set[int] = set()
    for part in re.split("[;,]", affinity):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
