"""Custom operators: finds the library that params.yaml names, and the operators of a graph that need one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx

from onward.registry.artifact.custom_ops import FOLDER
from onward.registry.artifact.graph_nodes import nodes
from onward.registry.errors import UsageError
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.config.schema import ModelParams
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import WorkerFailure

# Domains of operators that ONNX Runtime has itself.
_OWN = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "com.microsoft", "com.ms.internal.nhwc")
_SECONDS = 60.0


def library(settings: ModelParams, key: str) -> Path | None:
    """The library that `custom_ops` names: a file, or the path that a function returns. None without `custom_ops`.

    Args:
        settings: The model's settings.
        key: The model's path in params.yaml, for messages.

    Raises:
        UsageError: There is no such file, or the function returns none.
    """
    name = settings.custom_ops
    if name is None:
        return None
    where = f"params.yaml: {key}.custom_ops: {name}"
    if ":" not in name:
        path = paths.root() / name
    else:
        try:
            path = Path(isolated_call.call(_SECONDS, _path_of, name, f"{key}.custom_ops"))
        except WorkerFailure as failure:
            raise UsageError(f"{where}: {failure.reason}") from failure
    if not path.is_file():
        raise UsageError(f"{where}: there is no such file")
    return path


def _path_of(name: str, key: str) -> str:
    return str(resolve(name, key)())


def taken_along(settings: ModelParams, key: str, folder: Path) -> tuple[Path, ...]:
    """Copy the library to custom_ops/ in the stage's folder, from where later stages and the version take it."""
    found = library(settings, key)
    if found is None:
        return ()
    (folder / FOLDER).mkdir()
    return (Path(shutil.copyfile(found, folder / FOLDER / found.name)),)


def without_library(model: onnx.ModelProto, settings: ModelParams) -> Iterator[str]:
    """Describe the operators that ONNX Runtime lacks, if params.yaml names no library.

    Args:
        model: The model.
        settings: The model's settings.

    Yields:
        One sentence per operator, with the line to write.
    """
    if settings.custom_ops is not None:
        return
    functions = {(function.domain, function.name) for function in model.functions}
    seen = set()
    for node in nodes(model):
        kind = (node.domain, node.op_type)
        is_own = any(node.domain == own or (own and node.domain.startswith(f"{own}.")) for own in _OWN)
        if (is_own and "contrib" not in node.domain and "extensions" not in node.domain) or kind in functions:
            continue
        if kind not in seen:
            seen.add(kind)
            yield (
                f"the operator {node.op_type} of the domain {node.domain!r} (node {node.name or node.output[0]!r}) is "
                "not one of ONNX Runtime's: name the library that implements it in params.yaml, custom_ops: "
                "path/to/lib.so or custom_ops: package.module:function_that_returns_its_path"
            )
