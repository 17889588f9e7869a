"""Reads and validates params.yaml, and gives each stage its own settings.

Every mistake in params.yaml is reported in one line with the path into the file, before any stage runs.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from onward.registry import yaml_text
from onward.registry.errors import NotReady, UsageError
from onward.registry.gates import policy
from onward.registry.names import is_name
from onward.registry.text import suggestion
from onward.stages.config import migrations, paths
from onward.stages.config.schema import Dim, Input, ModelParams, Output, Params

LONGEST_NAME = 64
# A setting with this value is as if it was not written. `dvc exp run -S` only changes keys that params.yaml contains.
INHERITED = "default"
# The sections of a model, and of `defaults`, in which a setting may have this value.
SECTIONS = ("export", "tolerance", "verify", "data", "optimize", "quantize", "benchmark", "budget")
# `onward add` writes this where a value is required and unknown.
PLACEHOLDER = "TODO"
RESERVED = {"params", "host", "tracking"}

_MODEL = ("build", "onnx", "inputs", "outputs", "states", "dims", "seed")
_CHECK = (*_MODEL, "cases", "tolerance", "verify")

# The settings that each stage may read of its model; `section` gives no others.
READS: dict[str, tuple[str, ...]] = {
    "train": (*_MODEL, "custom_ops", "constants", "train", "weights", "samples", "label", "quality", "quality_floor"),
    "data": ("samples", "label", "quality", "inputs", "outputs", "states", "data"),
    "export": (*_MODEL, "custom_ops", "cases", "export"),
    "verify": (*_CHECK, "export", "label", "quality", "fidelity"),
    "optimize": (*_CHECK, "optimize"),
    "quantize": (*_CHECK, "label", "quality", "fidelity", "budget", "quantize"),
    "benchmark": (*_CHECK, "label", "quality", "fidelity", "budget", "benchmark"),
    "select": ("budget", "tolerance", "dims", "quality", "fidelity"),
    "publish": ("inputs", "outputs", "states", "dims", "tolerance", "budget", "card"),
}


def read(path: Path | None = None) -> Params:
    """Read and validate params.yaml.

    Args:
        path: The file; by default the project's params.yaml.

    Returns:
        The settings, with `defaults` merged into every model.

    Raises:
        UsageError: The file has mistakes. The message has one line per mistake, with the path into the file.
    """
    path = path or paths.root() / "params.yaml"
    raw = parse(path)
    if migrations.version_of(raw) < migrations.VERSION:
        raise UsageError(f"{path.name}: is of an older schema version: run `onward upgrade`")
    problems = _merge_defaults(raw)
    params = None
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        first: dict[str, str] = {}  # each branch of a union has its own error: report the first one only
        for item in error.errors(include_url=False):
            first.setdefault(*_explain(item, raw))
        problems += [f"{where}: {message}" for where, message in first.items()]
    if params is not None:
        for name, model in params.models.items():
            problems += [f"models.{name}{'.' if at else ''}{at}: {what}" for at, what in model.problems()]
    try:
        policy.parse(raw.get("environments"))
    except UsageError as error:
        problems += [line.removeprefix("params.yaml: ") for line in str(error).splitlines()]
    if problems or params is None:
        raise UsageError("\n".join(f"{path.name}: {problem}" for problem in dict.fromkeys(problems)))
    return params


class Settings(BaseModel):
    """The settings file of one stage, written by the `params` stage and hashed by DVC.

    Stages read this file instead of params.yaml, which may have changed since. A change of any field makes DVC run the
    stage again.

    Attributes:
        schema_version: Version of this file's format.
        report_schema: Schema version of reports.
        code: Digests of the Onward modules that the stage runs, by module name (config/code.py).
        sources: Digests of the team's files that the stage depends on, by path or module name.
        settings: The model's settings that the stage reads (`READS`).
        runtimes: Runtimes to benchmark.
        experiment: Name of the MLflow experiment.
        register_experiments: Whether DVC experiments register versions.
        models: Names of all models, for stages that process all models at once.
        params: All settings of the model, for logging.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1]
    report_schema: int
    code: dict[str, str] = {}
    sources: dict[str, str] = {}
    settings: dict[str, Any] = {}
    runtimes: list[str] = []
    experiment: str = ""
    register_experiments: bool = False
    models: list[str] = []
    params: dict[str, Any] = {}


def section(model: str, stage: str) -> ModelParams:
    """Load the settings of `model` that `stage` reads. Any other attribute raises AttributeError.

    Raises:
        UsageError: params.yaml does not contain the model.
        NotReady: The `params` stage has not run.
    """
    content = settings(stage, model).settings
    part = ModelParams.model_construct(**{name: _field(name).validate_python(value) for name, value in content.items()})
    for name in set(ModelParams.model_fields) - set(content):
        part.__dict__.pop(name, None)
    return part


def settings(stage: str, model: str = "") -> Settings:
    """Load the settings file of a stage.

    Args:
        stage: Name of the stage.
        model: Name of the model; empty for a stage that processes all models at once.

    Raises:
        UsageError: params.yaml does not contain the model.
        NotReady: The `params` stage has not run.
    """
    path = paths.root() / "build" / "params" / model / f"{stage}.json"
    try:
        return Settings.model_validate_json(path.read_text())
    except (FileNotFoundError, ValidationError):
        pass
    models = read().models
    if model and model not in models:
        raise UsageError(
            f"params.yaml: models.{model}: there is no such model"
            + (suggestion(model, models) or f"; the models are {', '.join(models)}")
        )
    raise NotReady(
        f"{path.relative_to(paths.root())} is missing or was written by another version: run `onward stage params`"
    )


@functools.cache
def _field(name: str) -> TypeAdapter[Any]:
    field = ModelParams.model_fields[name]
    return TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]  # a type created at run time


def resolve(name: str, key: str = "", wants: str = "a function") -> Any:
    """Import the object that a key of params.yaml names.

    Args:
        name: `package.module:attribute`.
        key: Path of the key in params.yaml, for messages.
        wants: What the key expects, for messages. With "a function", the object must be callable.

    Raises:
        NotReady: The import fails, or the object is not callable.
    """
    module, _, attribute = name.partition(":")
    where = f"params.yaml: {key}: " if key else ""
    _search_first(paths.source_folders())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise NotReady(f"{where}{module} has no {attribute!r}; expected {wants}") from None
    except Exception as error:
        raise NotReady(f"{where}{module} does not import: {type(error).__name__}: {error}") from error
    if wants == "a function" and not callable(found):
        raise NotReady(f"{where}{name} is not a function")
    return found


def _search_first(folders: Sequence[Path]) -> None:
    """Import modules from these folders before all others, also if `sys.path` has them behind others.

    A worker that is started by its file has Onward's own folder first, with all packages that are installed there.
    """
    wanted = [str(folder) for folder in folders]
    if sys.path[: len(wanted)] != wanted:
        sys.path[:] = [*wanted, *(place for place in sys.path if place not in wanted)]


def parse(path: Path) -> dict[str, Any]:
    """Read params.yaml without checking its keys.

    Args:
        path: The file.

    Raises:
        UsageError: There is no such file, or it is not a YAML mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = yaml_text.load(path, YAML(typ="safe", pure=True).load)
    except FileNotFoundError:
        raise UsageError(f"{path.name}: this file is missing in {path.parent.name}/") from None
    except YAMLError as error:
        raise not_yaml(path.name, error) from None
    except ValueError as error:  # an invalid date or number
        raise UsageError(f"{path.name}: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path.name}: must be a mapping with the key models")
    return raw


def not_yaml(name: str, error: Exception) -> UsageError:
    """The error to raise for a file that ruamel.yaml cannot parse, with the line if it is known."""
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return UsageError(f"{name}:{line} {problem}")


def _merge_defaults(raw: dict[str, Any]) -> list[str]:
    """Merge `defaults` into each model, in place, and return the problems found."""
    defaults = raw.get("defaults") or {}
    models: Any = raw.get("models")
    problems = []
    if not isinstance(defaults, dict):
        return ["defaults: must be a mapping"]
    for key in defaults:
        if key not in ModelParams.model_fields:
            problems.append(f"defaults.{key}: unknown key" + suggestion(str(key), ModelParams.model_fields))
    defaults = _without_inherited(defaults)
    for name in models if isinstance(models, dict) else ():
        if not isinstance(name, str) or not is_name(name) or len(name) > LONGEST_NAME:
            problems.append(
                f"models.{name}: a model's name has letters, digits, - and _ only, and at most {LONGEST_NAME} of them"
            )
        elif name in RESERVED:
            problems.append(f"models.{name}: this name is reserved: Onward uses build/{name}/ itself")
        if isinstance(models[name], dict):
            models[name] = _merged(defaults, _without_inherited(models[name]))
    raw["defaults"] = defaults
    return problems


def _without_inherited(section: dict[str, Any]) -> dict[str, Any]:
    """A model's settings without those whose value is `default`."""

    def cleaned(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: cleaned(item) for key, item in value.items() if item != INHERITED}

    found = {key: cleaned(value) if key in SECTIONS else value for key, value in section.items()}
    return {key: value for key, value in found.items() if not (key in (*SECTIONS, "seed") and value == INHERITED)}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old: Any = merged.get(key)
        # inputs, outputs and dims are replaced as a whole: a merged default dimension might not exist in the model.
        nested = isinstance(old, dict) and isinstance(value, dict) and key not in ("inputs", "outputs", "dims")
        merged[key] = _merged(old, value) if nested else value
    return merged


def _explain(error: Any, raw: dict[str, Any]) -> tuple[str, str]:
    """(path into the file, message) of one pydantic error."""
    where = ""
    value: Any = raw
    for part in error["loc"]:
        if isinstance(part, int) and isinstance(value, list):
            where += f"[{part}]"
            value = value[part]
        elif isinstance(value, dict):
            where += f".{part}"
            value = value.get(part)
        else:
            break  # pydantic's name for a branch of a union, not a key of the file
    kind, got = error["type"], error["input"]
    if got == PLACEHOLDER:
        message = "this value is still missing; the comment beside it says what to fill in"
    elif kind == "extra_forbidden":
        message = "unknown key" + suggestion(str(error["loc"][-1]), _siblings(error["loc"]))
    elif kind == "missing":
        message = "this key is missing"
    elif kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
    else:
        message = error["msg"] + (f", not {got!r}" if isinstance(got, (str, int, float, type(None))) else "")
    return where.lstrip("."), message


def _siblings(loc: tuple[Any, ...]) -> Iterable[str]:
    """The valid keys at the place where an unknown key was found."""
    kind: Any = Params
    if loc[0] == "models" and len(loc) == 3:
        kind = ModelParams
    elif loc[0] == "models" and len(loc) == 5:
        kind = {"inputs": Input, "outputs": Output, "dims": Dim}.get(loc[2])
    elif loc[0] == "models" and len(loc) == 4:
        kind = ModelParams.model_fields[loc[2]].annotation
    elif len(loc) == 2:
        kind = Params.model_fields[loc[0]].annotation
    return getattr(kind, "model_fields", {}).keys()
