"""Options of a session and of its provider as part of a variant: what the benchmark tunes, the evidence records and
the wrapper obeys."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onward.registry import processors

# One group of processors (counted from 1) for each thread but the caller's, as ONNX Runtime has it: "1,2;3-4".
_AFFINITY = re.compile(r"\d+([,-]\d+)*(;\d+([,-]\d+)*)*")
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


class SessionOptions(BaseModel):
    """What of onnxruntime.SessionOptions and of a provider's options is part of a variant; None is ONNX Runtime's own
    default, but for `tf32`.

    `threads` counts those of one operator, the caller's among them (intra-op); `spinning` is whether they wait for
    work by turning in circles; `arena` and `memory_pattern` keep memory between runs; `execution_mode` "parallel"
    runs independent branches of the graph at once; `affinity` pins each thread but the caller's to processors, in
    ONNX Runtime's notation ("1,2;3-4": counted from 1, a group a thread), and needs `threads`.

    On CUDA alone: `tf32` multiplies float32 with the ten bits of mantissa that TensorFloat-32 keeps, which is another
    precision, so that None is off, where ONNX Runtime's default is on; `nhwc` runs convolutions with channels last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: Annotated[int, Field(ge=1)] | None = None
    graph_level: Literal["disabled", "basic", "extended", "all"] | None = None
    spinning: bool | None = None
    execution_mode: Literal["sequential", "parallel"] | None = None
    arena: bool | None = None
    memory_pattern: bool | None = None
    affinity: str | None = None
    tf32: bool | None = None
    nhwc: bool | None = None

    @model_validator(mode="after")
    def _one_group_a_thread(self) -> SessionOptions:
        if self.affinity is not None:
            if not _AFFINITY.fullmatch(self.affinity):
                raise ValueError(f"affinity {self.affinity!r}: groups of processors, counted from 1, e.g. '1,2;3-4'")
            groups = self.affinity.count(";") + 1
            if self.threads != groups + 1:
                raise ValueError(f"affinity has {groups} groups: threads has to be {groups + 1}, the caller's included")
        return self

    def __str__(self) -> str:
        given = self.to_load()
        return ", ".join(f"{key} {value}".lower() for key, value in given.items()) or "ONNX Runtime's defaults"

    def to_load(self) -> dict[str, Any]:
        """The part of the worker's `load` request that says the same (stages/workers/onnx_worker.py): JSON, by these
        names; what is None is left out."""
        return self.model_dump(exclude_none=True)

    def to_onnxruntime(self) -> Any:
        """An onnxruntime.SessionOptions."""
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
        """An execution provider as onnxruntime.InferenceSession takes it in `providers`."""
        if name != CUDA:
            return name
        layout = {} if self.nhwc is None else {"prefer_nhwc": str(int(self.nhwc))}
        return name, {"use_tf32": str(int(bool(self.tf32))), **layout}

    def to_mlflow(self) -> dict[str, Any]:
        """The same for `mlflow.onnx.save_model(onnx_session_options=...)`, which has no word for `arena` and
        `memory_pattern`, nor for a provider's options."""
        levels = {"disabled": 0, "basic": 1, "extended": 2, "all": 99}
        found = {
            "intra_op_num_threads": self.threads,
            "graph_optimization_level": None if self.graph_level is None else levels[self.graph_level],
            "execution_mode": self.execution_mode,
            "extra_session_config": self._entries() or None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def fitting_here(self) -> SessionOptions:
        """These options without those that another machine has to have: more threads than this process may use
        processors, or an affinity to processors that it may not use. Where this process may use fewer than the machine
        has (a container's quota), `threads` says how many: ONNX Runtime's default counts the machine's."""
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
    """Every processor that an affinity names: ids, and ranges from-to."""
    found: set[int] = set()
    for part in re.split("[;,]", affinity):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
