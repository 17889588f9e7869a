"""How a version is served: per execution provider the file that won there, and the session options it was tuned to.

A version's folder may hold `serving.json`, which the wrapper (registry/session.py) obeys:

    {"cpu":      {"file": "model.onnx", "provider": "CPUExecutionProvider", "options": {"threads": 2}},
     "openvino": {"file": "providers/openvino/model.onnx", "provider": "OpenVINOExecutionProvider", "options": {}}}

The order is that of preference, the fastest first: the first entry whose provider can be used is served.

    options = SessionOptions(threads=2, spinning=False)
    options.to_onnxruntime()     # an onnxruntime.SessionOptions, in this process
    options.to_load()            # {"threads": 2, "spinning": False}: what the worker command `load` takes
    Worker.onnx(path, label, provider, options=options)                     # stages/runtime/pool.py, by means of it

    serving = Serving({"cpu": Served(file=MODEL, provider=CPU, options=options)})
    serving.save(folder); Serving.load(folder)          # serving.json, None where there is none
    build_folder(..., serving=serving, others={"openvino": [path]})         # registry/flavor.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, ValidationError, model_validator

from registry.disk import write_atomically
from registry.errors import Refused
from registry.vocabulary import Record

SERVING = "serving.json"
MODEL = "model.onnx"
CPU = "CPUExecutionProvider"

# One group of processors (counted from 1) for each thread but the caller's, as ONNX Runtime has it: "1,2;3-4".
_AFFINITY = re.compile(r"\d+([,-]\d+)*(;\d+([,-]\d+)*)*")
_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_MODES = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}


class SessionOptions(Record):
    """What of onnxruntime.SessionOptions is part of a variant; None is ONNX Runtime's own default.

    `threads` counts those of one operator, the caller's among them (intra-op); `spinning` is whether they wait for
    work by turning in circles; `arena` and `memory_pattern` keep memory between runs; `execution_mode` "parallel"
    runs independent branches of the graph at once; `affinity` pins each thread but the caller's to processors, in
    ONNX Runtime's notation ("1,2;3-4": counted from 1, a group a thread), and needs `threads`.
    """

    threads: Annotated[int, Field(ge=1)] | None = None
    graph_level: Literal["disabled", "basic", "extended", "all"] | None = None
    spinning: bool | None = None
    execution_mode: Literal["sequential", "parallel"] | None = None
    arena: bool | None = None
    memory_pattern: bool | None = None
    affinity: str | None = None

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
        """The part of the worker's `load` request that says the same (stages/runtime/worker.py): JSON, by these
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
        if self.arena is not None:
            made.enable_cpu_mem_arena = self.arena
        if self.memory_pattern is not None:
            made.enable_mem_pattern = self.memory_pattern
        for key, value in self._entries().items():
            made.add_session_config_entry(key, value)
        return made

    def to_mlflow(self) -> dict[str, Any]:
        """The same for `mlflow.onnx.save_model(onnx_session_options=...)`, which has no word for `arena` and
        `memory_pattern`."""
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
        processors, or an affinity to processors that it may not use."""
        usable = _usable_processors()
        if self.affinity is not None and not _processors(self.affinity) <= usable:
            return self.model_copy(update={"affinity": None}).fitting_here()
        if self.threads is not None and self.threads > len(usable):
            return self.model_copy(update={"threads": None, "affinity": None})
        return self

    def _entries(self) -> dict[str, str]:
        entries = {} if self.spinning is None else {"session.intra_op.allow_spinning": str(int(self.spinning))}
        return entries if self.affinity is None else {**entries, "session.intra_op_thread_affinities": self.affinity}


class Served(Record):
    """What is served on one provider: `file` is model.onnx or providers/NAME/model.onnx, as the folder has it."""

    file: Annotated[str, Field(pattern=r"^(providers/[A-Za-z0-9_-]+/)?model\.onnx$")]
    provider: str
    options: SessionOptions = SessionOptions()


class Serving(RootModel[dict[str, Served]]):
    """serving.json: by name of the runtime ("cpu", "openvino", "cuda"), in order of preference."""

    @classmethod
    def load(cls, folder: Path) -> Serving | None:
        """What `folder` says, None where it says nothing.

        Raises:
            Refused: it cannot be read.
        """
        try:
            return cls.model_validate_json((folder / SERVING).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Refused(f"{SERVING} cannot be read: {where}: {first['msg']}") from None

    def save(self, folder: Path) -> None:
        """Write serving.json in `folder`, options that are None left out.

        Raises:
            ValueError: a file that it names is not there.
        """
        missing = [served.file for served in self.root.values() if not (folder / served.file).is_file()]
        if missing:
            raise ValueError(f"{SERVING} names {', '.join(missing)}, which the folder does not hold")
        write_atomically(folder / SERVING, (self.model_dump_json(indent=2, exclude_none=True) + "\n").encode())

    def usable(self, available: list[str]) -> Iterator[tuple[str, Served]]:
        """What could be served where ONNX Runtime offers the providers `available`, the preferred first."""
        return ((name, served) for name, served in self.root.items() if served.provider in available)

    def on(self, provider: str) -> Served | None:
        """What was tuned for one execution provider."""
        return next((served for served in self.root.values() if served.provider == provider), None)


def _usable_processors() -> set[int]:
    """The processors that this process may run on, counted from 1."""
    try:
        return {number + 1 for number in os.sched_getaffinity(0)}
    except AttributeError:  # neither macOS nor Windows says
        return set(range(1, (os.cpu_count() or 1) + 1))


def _processors(affinity: str) -> set[int]:
    """Every processor that an affinity names: ids, and ranges from-to."""
    found: set[int] = set()
    for part in re.split("[;,]", affinity):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
