"""How a version is served: per execution provider the file that won there, and the session options it was tuned to.

A version's folder may hold `serving.json`, which the wrapper (registry/inference/session.py) obeys:

    {"cpu":      {"file": "model.onnx", "provider": "CPUExecutionProvider", "options": {"threads": 2}},
     "openvino": {"file": "providers/openvino/model.onnx", "provider": "OpenVINOExecutionProvider", "options": {}}}

The order is that of preference, the fastest first: the first entry whose provider can be used is served.

    options = SessionOptions(threads=2, spinning=False)
    options.to_onnxruntime()     # an onnxruntime.SessionOptions, in this process
    options.to_load()            # {"threads": 2, "spinning": False}: what the worker command `load` takes
    Worker.onnx(path, label, provider, options=options)                     # stages/workers/worker.py, by means of it

    serving = Serving({"cpu": Served(file=MODEL, provider=CPU, options=options)})
    serving.save(folder); Serving.load(folder)          # serving.json, None where there is none
    build_folder(..., serving=serving, others={"openvino": [path]})         # registry/artifact/mlflow_model.py
    serving, others = of_winners(report.winners, root)                      # what both take, from the evidence
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel, ValidationError

from onward.registry.artifact.manifest import content_digest
from onward.registry.errors import Refused
from onward.registry.evidence.records import Record, Winner
from onward.registry.evidence.session_options import CUDA, SessionOptions
from onward.registry.files import write_atomically

SERVING = "serving.json"
MODEL = "model.onnx"


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

    def on(self, provider: str) -> Served | None:
        """What was tuned for one execution provider."""
        return next((served for served in self.root.values() if served.provider == provider), None)


def preload(providers: Sequence[str]) -> None:
    """Load NVIDIA's libraries for providers that need them: their wheels lie where no linker looks."""
    if set(providers) & {CUDA, "TensorrtExecutionProvider"}:
        import onnxruntime

        onnxruntime.preload_dlls()


def of_winners(winners: Sequence[Winner], root: Path) -> tuple[Serving, dict[str, list[Path]]]:
    """How a version with these winners is served, `winners[0]` being the one whose file is model.onnx.

    Returns:
        what to write as serving.json, and the files, below `root`, of those whose bytes are not the first one's.
    """
    others = {w.runtime: [root / file.path for file in w.files] for w in with_files_of_their_own(winners)}
    served = {
        w.runtime: Served(
            file=f"providers/{w.runtime}/{MODEL}" if w.runtime in others else MODEL,
            provider=w.provider,
            options=w.options,
        )
        for w in sorted(winners, key=lambda w: w.p50_ms)
    }
    return Serving(served), others


def with_files_of_their_own(winners: Sequence[Winner]) -> list[Winner]:
    """The winners whose bytes are not the first one's."""
    main = content_digest(winners[0].files)
    return [winner for winner in winners if content_digest(winner.files) != main]


def version_digest(winners: Sequence[Winner]) -> str:
    """The sha256 of the version that these winners make: over the first one's files and those that others add."""
    others = (file for winner in with_files_of_their_own(winners) for file in winner.files)
    return content_digest([*winners[0].files, *others])
