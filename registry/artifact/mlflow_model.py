"""Builds the folder of an MLflow model around an ONNX file without changing the file.

`mlflow.onnx.log_model` serialises the model again, with different bytes each time. So MLflow writes its files around a
placeholder here, and the measured files then replace the placeholder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.artifact.custom_ops import FOLDER
from onward.registry.artifact.manifest import MANIFEST, NOT_OURS, write_manifest
from onward.registry.artifact.replay import BUNDLE
from onward.registry.artifact.serving_plan import MODEL, PROVIDERS, SERVING, Serving
from onward.registry.errors import Refused
from onward.registry.evidence.records import TensorSpec
from onward.registry.evidence.session_options import CPU, OPENVINO_NATIVE

MLMODEL = "MLmodel"
# The folder of the reference that live traffic is compared with (registry/monitoring/reference.py).
MONITORING = "monitoring"
# Elements of an input example. MLflow writes two JSON files, each with up to 20 bytes per element.
LARGEST_EXAMPLE = 200_000
# Names that external data cannot have: Onward writes them beside the model's files, or MLflow does when downloading.
_TAKEN = (BUNDLE, FOLDER, MONITORING, PROVIDERS, SERVING, MANIFEST, NOT_OURS)


def build_folder(
    folder: Path,
    files: list[Path],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    provider: str,
    bundle: Path | None = None,
    serving: Serving | None = None,
    others: Mapping[str, Sequence[Path]] | None = None,
    libraries: Sequence[Path] = (),
    example: Mapping[str, npt.NDArray[Any]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write an MLflow model to `folder`, with the manifest of all its files last.

    Args:
        folder: The folder to write.
        files: The .onnx, which becomes model.onnx, then its external data, which keeps its name relative to the .onnx.
        inputs: The model's inputs, for MLflow's signature.
        outputs: The model's outputs, for MLflow's signature.
        provider: The execution provider of `files`, for MLflow's own flavor.
        bundle: The folder with recorded inputs and answers, which becomes validation/.
        serving: Which file is served on which provider, with which session options.
        others: The files of runtimes with a graph of their own, by the runtime's name. They go to providers/NAME/.
        libraries: Native libraries with custom operators, which go to custom_ops/.
        example: The inputs of one call, for MLflow's input example. A large one is left out.
        texts: Text files of the folder, by path.

    Raises:
        ValueError: `serving` names a file that is missing.
        Refused: External data has the name of another file of the folder.
    """
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema
    from mlflow.types.schema import TensorSpec as Tensor
    from onnx import ModelProto

    def schema(specs: list[TensorSpec]) -> Schema:
        return Schema(
            [
                Tensor(
                    np.dtype(spec.dtype), tuple(-1 if isinstance(size, str) else size for size in spec.shape), spec.name
                )
                for spec in specs
            ]
        )

    main = serving.on(provider) if serving else None
    if provider == OPENVINO_NATIVE:  # MLflow's flavor has ONNX Runtime only
        provider, main = CPU, None
    mlflow.onnx.save_model(
        ModelProto(),
        str(folder),
        signature=ModelSignature(inputs=schema(inputs), outputs=schema(outputs)),
        pip_requirements=_requirements(),
        onnx_execution_providers=[provider],
        onnx_session_options=main.options.to_mlflow() if main else None,
        save_as_external_data=False,
        input_example=_fitting(example),
    )
    for name, text in (texts or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    _without_time(folder / MLMODEL)
    _place(files, folder)
    for name, runtime_files in (others or {}).items():
        _place(runtime_files, folder / PROVIDERS / name)
    for library in libraries:
        (folder / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(library, folder / FOLDER / library.name)
    if serving is not None:
        serving.save(folder)
    if bundle is not None:
        shutil.copytree(bundle, folder / BUNDLE)
    write_manifest(folder)


def _fitting(example: Mapping[str, npt.NDArray[Any]] | None) -> dict[str, npt.NDArray[Any]] | None:
    """The example as MLflow takes it; None if its JSON would be large, or a value is not a number that JSON has."""
    if not example or sum(array.size for array in example.values()) > LARGEST_EXAMPLE:
        return None
    if not all(array.dtype.kind in "fiub" and np.isfinite(array).all() for array in example.values()):
        return None
    return dict(example)


def _without_time(file: Path) -> None:
    """Remove the random id and the time from MLflow's own file.

    Then the same files give the same manifest on every machine and at any time.
    """
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(("model_uuid:", "utc_time_created:"))))


def _place(files: Sequence[Path], folder: Path) -> None:
    """Copy a graph (`files[0]`) as model.onnx, and its external data under the names in the graph."""
    folder.mkdir(parents=True, exist_ok=True)
    graph, *data = files
    shutil.copyfile(graph, folder / MODEL)
    for file in data:
        name = file.relative_to(graph.parent)
        target = folder / name
        if target.exists() or name.parts[0] in _TAKEN:
            raise Refused(
                f"the external data {name.as_posix()!r} of {graph.name} has the name of another file of a version: "
                "rename it"
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
