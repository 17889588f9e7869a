"""Builds the folder of an MLflow model around an ONNX file without touching its bytes.

`mlflow.onnx.log_model` serialises the model anew, into other bytes each time. Here MLflow writes its own files around
a placeholder, and the measured files take the placeholder's place.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from onward.registry.artifact.manifest import MANIFEST, NOT_OURS, write_manifest
from onward.registry.artifact.serving_plan import MODEL, SERVING, Serving
from onward.registry.errors import Refused
from onward.registry.evidence.records import TensorSpec

MLMODEL = "MLmodel"
VALIDATION = "validation"
PROVIDERS = "providers"
# What is written beside the model's own files, or by MLflow where it downloads them.
_TAKEN = (VALIDATION, PROVIDERS, SERVING, MANIFEST, NOT_OURS)


def build_folder(
    folder: Path,
    files: list[Path],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    provider: str,
    bundle: Path | None = None,
    serving: Serving | None = None,
    others: Mapping[str, Sequence[Path]] | None = None,
) -> None:
    """Write an MLflow model to `folder`: the .onnx (`files[0]`) as model.onnx, its external data where the graph looks
    for it, the signature, the validation bundle below validation/, and last the manifest of it all.

    `others` are the files of those providers that have a winner of their own, by name of the runtime: they go to
    providers/NAME/, the .onnx as model.onnx. `serving` says which of all these is served where, with which session
    options; MLflow's own flavor is given those of `provider`.

    Raises:
        ValueError: `serving` names a file that is not there.
        Refused: external data has the name of another file of the folder.
    """
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema
    from mlflow.types.schema import TensorSpec as Tensor
    from onnx import ModelProto

    def schema(specs: list[TensorSpec]) -> Schema:
        return Schema(
            [
                Tensor(np.dtype(spec.dtype), tuple(-1 if isinstance(d, str) else d for d in spec.shape), spec.name)
                for spec in specs
            ]
        )

    main = serving.on(provider) if serving else None
    mlflow.onnx.save_model(
        ModelProto(),
        str(folder),
        signature=ModelSignature(inputs=schema(inputs), outputs=schema(outputs)),
        pip_requirements=_requirements(),
        onnx_execution_providers=[provider],
        onnx_session_options=main.options.to_mlflow() if main else None,
        save_as_external_data=False,
    )
    _without_time(folder / MLMODEL)
    _place(files, folder)
    for name, theirs in (others or {}).items():
        _place(theirs, folder / PROVIDERS / name)
    if serving is not None:
        serving.save(folder)
    if bundle is not None:
        shutil.copytree(bundle, folder / VALIDATION)
    write_manifest(folder)


def _without_time(file: Path) -> None:
    """Take from MLflow's own file what differs each time it is written: a random id, and the time. The same files give
    the same manifest, on whatever machine and whenever they are built."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(("model_uuid:", "utc_time_created:"))))


def _place(files: Sequence[Path], folder: Path) -> None:
    """Copy a graph (`files[0]`) as model.onnx, and its external data under the names that the graph has for it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph, *data = files
    shutil.copyfile(graph, folder / MODEL)
    for file in data:
        name = file.relative_to(graph.parent)
        target = folder / name
        if target.exists() or name.parts[0] in _TAKEN:
            raise Refused(
                f"the external data {name.as_posix()!r} of {graph.name} has the name of another file of a version"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _requirements() -> list[str]:
    found = []
    for name in ("mlflow", "onnx", "onnxruntime", "numpy"):
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            found.append(name)
    return found
