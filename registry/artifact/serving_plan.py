"""How a version is served: the winning file and its tuned session options for each runtime.

A version's folder may contain `serving.json`, which InferenceSession (registry/inference/session.py) applies:

    {"cpu":      {"file": "model.onnx", "provider": "CPUExecutionProvider", "options": {"threads": 2}},
     "openvino": {"file": "providers/openvino/model.onnx", "provider": "OpenVINOExecutionProvider", "options": {}},
     "openvino-native": {"file": "model.onnx", "provider": "OpenVINO", "options": {"precision": "bfloat16"}},
     "cpu--edge": {"file": "providers/cpu--edge/model.onnx", "provider": "CPUExecutionProvider", "options": {},
                   "host": {"cores": 4}}}

An entry with a `host` is for the machines of one class (params.yaml's `hosts`); there, it comes before the others. The
entries are in order of preference, the fastest first. The first entry whose provider is available is served.

    options = SessionOptions(threads=2, spinning=False)
    options.to_onnxruntime()     # an onnxruntime.SessionOptions, in this process
    options.to_load()            # {"threads": 2, "spinning": False}: the argument of the worker command `load`
    Worker.onnx(path, label, provider, options=options)                     # stages/workers/worker.py sends it

    serving = Serving({"cpu": Served(file=MODEL, provider=CPU, options=options)})
    serving.save(folder); Serving.load(folder)          # serving.json; None if it is missing
    build_folder(..., serving=serving, others={"openvino": [path]})         # registry/artifact/mlflow_model.py
    serving, others = of_winners(report.winners, root)                      # the same two arguments, from a report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel, ValidationError

from onward.registry.artifact.custom_ops import FOLDER
from onward.registry.artifact.manifest import GRAPH, content_digest
from onward.registry.errors import Refused
from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.records import Machine, Record, Winner, by_speed, first_problem
from onward.registry.evidence.session_options import CUDA, TENSORRT, SessionOptions
from onward.registry.files import write_atomically

SERVING = "serving.json"
MODEL = "model.onnx"
PROVIDERS = "providers"


class Served(Record):
    """What is served on one runtime.

    Attributes:
        file: model.onnx or providers/NAME/model.onnx, relative to the version's folder.
        provider: The execution provider, or "OpenVINO" for OpenVINO itself, without ONNX Runtime.
        options: The session options.
        custom_ops: Native libraries with custom operators, relative to the version's folder.
        host: The class of machines that it is for; None for all that have nothing of their own.
    """

    file: Annotated[str, Field(pattern=f"^{GRAPH.pattern}$")]
    provider: str
    options: SessionOptions = SessionOptions()
    custom_ops: list[Annotated[str, Field(pattern=f"^{FOLDER}/[^/]+$")]] | None = None
    host: HostClass | None = None


class Serving(RootModel[dict[str, Served]]):
    """serving.json: what is served, by the runtime's name ("cpu", "openvino", "cuda"), in order of preference."""

    @classmethod
    def load(cls, folder: Path) -> Serving | None:
        """Read serving.json in `folder`.

        Args:
            folder: A version's files.

        Returns:
            The content, or None if the file is missing.

        Raises:
            Refused: The file is invalid.
        """
        try:
            return cls.model_validate_json((folder / SERVING).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise Refused(f"{SERVING} cannot be read: {first_problem(error)}") from None

    def save(self, folder: Path) -> None:
        """Write serving.json in `folder`, without the options that are None.

        Args:
            folder: A version's files.

        Raises:
            ValueError: A file that it names is missing.
        """
        missing = [served.file for served in self.root.values() if not (folder / served.file).is_file()]
        if missing:
            raise ValueError(f"{SERVING} names {', '.join(missing)}, which the folder does not contain")
        write_atomically(folder / SERVING, (self.model_dump_json(indent=2, exclude_none=True) + "\n").encode())

    @property
    def libraries(self) -> list[str]:
        """The native libraries with custom operators that the version needs on every provider."""
        return next((list(served.custom_ops) for served in self.root.values() if served.custom_ops), [])

    def here(self, machine: Machine | None = None) -> Serving:
        """Select what is served on a machine: the entries for its class first, then those for all machines.

        Args:
            machine: The machine; None for this one.
        """
        if all(served.host is None for served in self.root.values()):
            return self
        if machine is None:
            from onward.registry.host.hardware import describe

            machine = describe()
        for_it = {name: one for name, one in self.root.items() if one.host is not None and not one.host.lacks(machine)}
        return Serving({**for_it, **{name: one for name, one in self.root.items() if one.host is None}})

    def on(self, provider: str) -> Served | None:
        """Return the first entry for an execution provider; None if there is none."""
        return next((served for served in self.root.values() if served.provider == provider), None)


def preload(providers: Sequence[str]) -> None:
    """Load NVIDIA's libraries for providers that need them, because their wheels are not on the linker's path."""
    if set(providers) & {CUDA, TENSORRT}:
        import onnxruntime

        onnxruntime.preload_dlls()


def of_winners(
    winners: Sequence[Winner], root: Path, libraries: Sequence[Path] = (), hosts: Mapping[str, HostClass] | None = None
) -> tuple[Serving, dict[str, list[Path]]]:
    """Plan how a version with these winners is served.

    Args:
        winners: One winner per runtime and class of machines. The first one's graph becomes model.onnx.
        root: The folder that the winners' file paths are relative to.
        libraries: Native libraries with custom operators.
        hosts: The classes of machines that winners have, by name.

    Returns:
        The content of serving.json, and by the name there the files that differ from the first winner's.
    """
    others = {winner.key: [root / file.path for file in winner.files] for winner in with_files_of_their_own(winners)}
    served = {
        winner.key: Served(
            file=f"{PROVIDERS}/{winner.key}/{MODEL}" if winner.key in others else MODEL,
            provider=winner.provider,
            options=winner.options,
            custom_ops=[f"{FOLDER}/{library.name}" for library in libraries] or None,
            host=(hosts or {})[winner.host] if winner.host else None,
        )
        for winner in by_speed(winners)
    }
    return Serving(served), others


def with_files_of_their_own(winners: Sequence[Winner]) -> list[Winner]:
    """List the winners whose files differ from the first winner's."""
    main = content_digest(winners[0].files)
    return [winner for winner in winners if content_digest(winner.files) != main]


def version_digest(winners: Sequence[Winner]) -> str:
    """Compute the sha256 of the version that these winners make.

    Args:
        winners: One winner per runtime, the main one first.

    Returns:
        The digest over the first winner's files and the files of winners that differ from them.
    """
    others = (file for winner in with_files_of_their_own(winners) for file in winner.files)
    return content_digest([*winners[0].files, *others])
