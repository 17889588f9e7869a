"""The DVC stage that checks params.yaml and writes what each stage of each model depends on.

For each model and stage it writes the settings that this stage reads and the digests of the source files behind them
(`build/params/<model>/<stage>.json`). Each stage depends on its own such file, so changing one model's tolerance
re-runs nothing of another model and no export, and a default may stand in one place.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.files import replacing, sha256_file, write_atomically
from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import READS, read, resolve
from onward.stages.config.schema import ModelParams, Params
from onward.stages.config.source_files import defines, local_sources

_CALLABLES = ("build", "train", "samples", "quality", "fidelity", "cases")
_FILES = ("weights", "onnx")


def _named(model: ModelParams) -> Iterable[tuple[str, str]]:
    """(key, `module:attribute`) of everything of the team's own code that a model's settings name."""
    for key in _CALLABLES:
        if getattr(model, key):
            yield key, getattr(model, key)
    if model.export.custom_translations:
        yield "export.custom_translations", model.export.custom_translations


def _digests(name: str, model: ModelParams, stage: str) -> dict[str, str]:
    """sha256 of each of the repository's files behind what `stage` reads of `model`."""
    found = {}
    root = paths.root()
    for key, value in _named(model):
        if key.partition(".")[0] in READS[stage]:
            for path in local_sources(value.partition(":")[0], root):
                found[path.relative_to(root).as_posix()] = sha256_file(path)
    files = [getattr(model, key) for key in _FILES if key in READS[stage]] if stage == "train" else []
    files += [model.data.suite] if stage == "data" else []
    for file in filter(None, files):
        if not (root / file).is_relative_to(root / "build" / name / "train"):
            found[file] = sha256_file(root / file)
            if file == model.onnx:
                found |= _external_data(root, Path(file))
    return found


def _external_data(root: Path, file: Path) -> dict[str, str]:
    """sha256 of the files that hold the weights of an ONNX file, where it has such files."""
    try:
        _, *data = onnx_file.files(root / file)
    except UsageError:
        return {}  # the train stage says what is wrong with it
    return {(file.parent / path.relative_to((root / file).parent)).as_posix(): sha256_file(path) for path in data}


def _missing(name: str, model: ModelParams) -> Iterable[str]:
    """Callables and files that params.yaml names and the repository lacks."""
    root = paths.root()
    for key, value in _named(model):
        module, _, attribute = value.partition(":")
        try:
            found = defines(module, attribute, root)
        except SyntaxError as error:
            yield f"models.{name}.{key}: {module} does not parse: {error.msg} (line {error.lineno})"
            continue
        if found is False:
            yield f"models.{name}.{key}: {module} defines no {attribute!r}"
        if found is None and importlib.util.find_spec(module.partition(".")[0]) is None:
            yield f"models.{name}.{key}: there is no module {module!r}"
    for key, file in (("weights", model.weights), ("onnx", model.onnx), ("data.suite", model.data.suite)):
        made_here = file and model.train and (root / file).is_relative_to(root / "build" / name / "train")
        if file and not made_here and not (root / file).is_file():
            yield f"models.{name}.{key}: {file}: there is no such file"


def write_sections(params: Params, target: Path) -> None:
    """Write what each stage of each model depends on, below `target`, replacing what is there.

    Raises:
        UsageError: a callable that params.yaml names does not import, or a file that it names is not there.
    """
    problems = [problem for name, model in params.models.items() for problem in _missing(name, model)]
    if problems:
        raise UsageError("\n".join(f"params.yaml: {problem}" for problem in problems))
    texts: dict[str, bytes] = {}
    for name, model in params.models.items():
        for stage, keys in READS.items():
            settings = model.model_dump(mode="json", include=set(keys))
            if stage == "train":
                settings["dims"] = _batch_limits(model)
            content: dict[str, Any] = {"settings": settings, "sources": _digests(name, model, stage)}
            if stage in ("optimize", "quantize", "benchmark"):
                content["runtimes"] = params.runtimes
            if stage == "publish":
                content["experiment"] = params.tracking.experiment
            texts[f"{name}/{stage}.json"] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    if any(not (target / path).is_file() or (target / path).read_bytes() != text for path, text in texts.items()):
        _import_all(params)
    with replacing(target) as fresh:
        for path, text in texts.items():
            write_atomically(fresh / path, text)


def _batch_limits(model: ModelParams) -> dict[str, dict[str, int]]:
    """What training depends on of `dims`: how many samples may be fed at once. Other sizes train nothing again."""
    first = next(iter(model.inputs.values())).shape[0]
    return {first: {"min": model.dims[first].min, "max": model.dims[first].max}} if isinstance(first, str) else {}


def _import_all(params: Params) -> None:
    problems = []
    for name, model in params.models.items():
        for key, value in _named(model):
            try:
                resolve(value, f"models.{name}.{key}", "a function" if key in _CALLABLES else "a table or a function")
            except UsageError as error:
                problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def main() -> None:
    """Check params.yaml and write what each stage of each model depends on to build/params/.

    Nothing is written where anything is wrong; each mistake is one line with the path into the file, and exit 2.
    """
    write_sections(read(), paths.root() / "build" / "params")


if __name__ == "__main__":
    command.run_plain(main)
