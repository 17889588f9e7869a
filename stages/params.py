"""Checks params.yaml and writes the settings of each stage of each model.

`build/params/MODEL/STAGE.json` contains the settings that the stage reads and the digests of the source files behind
them. Each stage depends on its own file alone. So a change of one model's tolerance repeats neither another model's
stages nor an export.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onward.registry import checkout
from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.evidence.reports import Report
from onward.registry.files import contents, replacing, sha256_file
from onward.registry.host.runtimes import AUTO, CPU_RUNTIMES
from onward.registry.text import printable
from onward.stages import command
from onward.stages.config import code, paths, techniques
from onward.stages.config.layout import Layout
from onward.stages.config.load import READS, Settings, read, resolve
from onward.stages.config.schema import ModelParams, Params
from onward.stages.config.source_files import defines, installed_version, is_installed, local_sources, locate

# The only output of this stage for DVC: the file that says that the settings are there. Stages depend on their own
# settings file; if these were outputs, `dvc dag` would connect `params` with every stage.
CHECKED = "checked.txt"
_CALLABLES = ("build", "train", "samples", "quality", "fidelity", "cases")


def _named(model: ModelParams) -> Iterable[tuple[str, str]]:
    """Key and `module:attribute` of every callable in a model's settings."""
    for key in _CALLABLES:
        if getattr(model, key):
            yield key, getattr(model, key)
    if model.custom_ops and ":" in model.custom_ops:
        yield "custom_ops", model.custom_ops
    if model.export.custom_translations:
        yield "export.custom_translations", model.export.custom_translations


def _model_files(model: ModelParams) -> Iterable[tuple[str, str]]:
    """Key and path of the files that contain the model."""
    if model.weights is not None:
        yield "weights", model.weights.file
    if model.onnx is not None:
        yield "onnx", model.onnx
    if model.custom_ops is not None and ":" not in model.custom_ops:
        yield "custom_ops", model.custom_ops


class _Team:
    """The team's modules and files. Each is looked up once, because hundreds of models share them."""

    def __init__(self) -> None:
        self.root, self.repository = paths.root(), checkout.repository().resolve()
        self._folders = paths.source_folders()
        self._modules: dict[str, dict[str, str]] = {}
        self._files: dict[Path, str] = {}
        self._faults: dict[str, str] = {}

    def digests(self, module: str) -> dict[str, str]:
        """The sha256 of the files behind a module, by path; empty for an installed package."""
        if module not in self._modules:
            self._modules[module] = {}
            for name, path in local_sources(module, self._folders).items():
                inside = path.resolve().is_relative_to(self.repository)
                label = Path(os.path.relpath(path, self.root)).as_posix() if inside else name
                self._modules[module][label] = self.digest(path)
        return self._modules[module]

    def digest(self, path: Path) -> str:
        """The sha256 of a file."""
        if path not in self._files:
            self._files[path] = sha256_file(path)
        return self._files[path]

    def fault(self, named: str) -> str:
        """What is wrong with `module:attribute`; empty if the module defines it."""
        if named not in self._faults:
            self._faults[named] = self._fault(*named.split(":", 1))
        return self._faults[named]

    def _fault(self, module: str, attribute: str) -> str:
        found = locate(module, self._folders)
        if found is None:
            if importlib.util.find_spec(module.partition(".")[0]) is None or module not in sys.modules:
                return f"there is no module {module!r}"
            return ""
        try:
            if not is_installed(found) and not defines(found, attribute):
                return f"{module} defines no {attribute!r}"
        except SyntaxError as error:
            return f"{module} has a syntax error: {error.msg} (line {error.lineno})"
        return ""


def _digests(name: str, model: ModelParams, stage: str, team: _Team) -> dict[str, str]:
    """Digests of the team's own files that a stage of a model uses.

    The key is a path and the value its sha256; for a callable in an installed package, module name and version.
    """
    found: dict[str, str] = {}
    root = team.root
    for key, value in _named(model):
        if key.partition(".")[0] in READS[stage]:
            module = value.partition(":")[0]
            found |= team.digests(module) or {module: installed_version(module)}
    files = [file for _, file in _model_files(model)] if stage in ("train", "export") else []
    files += [model.data.suite] if stage == "data" and model.data.suite else []
    for file in files:
        if not (root / file).is_relative_to(root / "build" / name / "train"):
            found[file] = team.digest(root / file)
            if file == model.onnx:
                found |= _external_data(root, Path(file))
    return found


def _external_data(root: Path, file: Path) -> dict[str, str]:
    """sha256 of an ONNX file's external data files, by path."""
    try:
        _, *data = onnx_file.files(root / file)
    except UsageError:
        return {}  # the train stage reports the error
    return {(file.parent / path.relative_to((root / file).parent)).as_posix(): sha256_file(path) for path in data}


def _missing(name: str, model: ModelParams, team: _Team) -> Iterable[str]:
    """Errors about callables and files that params.yaml names but that do not exist."""
    root = team.root
    for key, value in _named(model):
        if fault := team.fault(value):
            yield f"models.{name}.{key}: {fault}"
    for key, file in (*_model_files(model), ("data.suite", model.data.suite)):
        if not file:
            continue
        if not (root / file).resolve().is_relative_to(team.repository):
            yield f"models.{name}.{key}: {file}: is outside the repository: copy it into the repository"
            continue
        made_here = model.train and (root / file).is_relative_to(root / "build" / name / "train")
        if not made_here and not (root / file).is_file():
            yield f"models.{name}.{key}: {file}: there is no such file"


def untracked(params: Params) -> list[str]:
    """List the callables in installed packages: changes of their files go unnoticed, only their version is tracked.

    Returns:
        One line for each callable.
    """
    lines, team = [], _Team()
    for name, model in params.models.items():
        for key, value in _named(model):
            module = value.partition(":")[0]
            if not team.digests(module):
                version = installed_version(module) or "no installed distribution"
                lines.append(
                    f"models.{name}.{key}: {module} belongs to {version}: its version is tracked, its files are not"
                )
    return lines


def sections(params: Params) -> dict[str, bytes]:
    """Make the files of build/params/: the settings of each stage of each model.

    Args:
        params: The checked params.yaml.

    Returns:
        The content of each file, by its path below build/params/.

    Raises:
        UsageError: params.yaml names a callable that is not defined, or a file that does not exist.
    """
    team = _Team()
    problems = [problem for name, model in params.models.items() for problem in _missing(name, model, team)]
    if problems:
        raise UsageError("\n".join(f"params.yaml: {problem}" for problem in problems))
    found = {
        "host.json": _whole(runtimes=list(params.runtimes)),
        "tracking.json": _whole(**params.tracking.model_dump()),
        "verdict.json": _whole(code=code.digests("verdict"), models=list(params.models)),
    }
    for name, model in params.models.items():
        dumped = model.model_dump(mode="json")
        for stage in READS:
            found[f"{name}/{stage}.json"] = _settings(name, model, dumped, stage, params, team)
    return {
        path: f"{content.model_dump_json(exclude_defaults=True, indent=2)}\n".encode()
        for path, content in found.items()
    }


def _whole(**content: Any) -> Settings:
    return Settings(schema_version=1, report_schema=Report.model_fields["schema_version"].default, **content)


def _settings(
    name: str, model: ModelParams, dumped: dict[str, Any], stage: str, params: Params, team: _Team
) -> Settings:
    settings = {key: value for key, value in dumped.items() if key in READS[stage]}
    if stage == "train":
        settings["dims"] = _batch_limits(model)
    elif stage != "benchmark" and "dims" in settings:  # benchmark is the only stage that computes means over sizes
        settings["dims"] = {
            axis: {key: value for key, value in dim.items() if key != "weights"}
            for axis, dim in settings["dims"].items()
        }
    specs = getattr(model, stage).candidates if stage in techniques.FOLDERS else []
    return _whole(
        code=code.digests(stage, tuple(dict.fromkeys(techniques.source(stage, spec) for spec in specs))),
        sources=_digests(name, model, stage, team),
        settings=settings,
        runtimes=_runtimes(stage, params),
        experiment=params.tracking.experiment if stage == "publish" else "",
        params=model.model_dump(mode="json", exclude_none=True) if stage == "publish" else {},
    )


def _runtimes(stage: str, params: Params) -> list[str]:
    """The runtimes that a stage reads.

    For `auto`, graphs are made for all runtimes of CPUs, so that every machine makes the same ones.
    """
    if stage in ("optimize", "quantize"):
        return list(CPU_RUNTIMES) if AUTO in params.runtimes else list(params.runtimes)
    return list(params.runtimes) if stage == "benchmark" else []


def write_sections(params: Params, target: Path) -> None:
    """Replace a folder by the files of `sections`. If any of them changed, import every callable first.

    Args:
        params: The checked params.yaml.
        target: The folder.

    Raises:
        UsageError: params.yaml names a callable that cannot be imported, or a file that does not exist.
    """
    texts = sections(params)
    before = contents(target)
    if any(before.get(path) != text for path, text in texts.items()):
        _import_all(params)
    texts[CHECKED] = b"params.yaml was checked; the settings of each stage are beside this file\n"
    if before == texts:
        return
    with replacing(target) as fresh:
        for name in params.models:
            (fresh / name).mkdir()
        for path, text in texts.items():
            with open(f"{fresh}/{path}", "xb", buffering=0) as file:  # pathlib takes a third longer for 9,000 files
                file.write(text)


def _batch_limits(model: ModelParams) -> dict[str, dict[str, Any]]:
    """The part of `dims` that training depends on, the batch limits. Changes of other sizes do not repeat training."""
    first = Layout.of(model).size
    if not isinstance(first, str):
        return {}
    least, most = model.dims[first].min, model.dims[first].max
    factor = model.dims[first].multiple_of
    multiple = {"multiple_of": factor} if factor > 1 else {}
    return {first: {"min": least, "max": most, "typical": [most], **multiple}}


def _import_all(params: Params) -> None:
    problems = []
    resolved: set[tuple[str, str]] = set()
    for name, model in params.models.items():
        for key, value in _named(model):
            if (key, value) in resolved:  # hundreds of models share their functions
                continue
            wants = "a function" if key in (*_CALLABLES, "custom_ops") else "a table or a function"
            try:
                resolve(value, f"models.{name}.{key}", wants)
                resolved.add((key, value))
            except UsageError as error:
                problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def main() -> None:
    """Check params.yaml and write the settings of each stage of each model to build/params/.

    If there are mistakes, nothing is written. Each mistake is one line with its place in the file; the exit code is 2.
    """
    params = read()
    write_sections(params, paths.root() / "build" / "params")
    for line in untracked(params):
        print(printable(line))


if __name__ == "__main__":
    command.run_plain(main)
