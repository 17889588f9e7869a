"""`onward add`: inspects a model and writes its entry into the project's params.yaml."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from onward.registry import checkout, yaml_text
from onward.registry.errors import UsageError
from onward.registry.files import write_atomically
from onward.registry.names import valid_name
from onward.stages.config.load import LONGEST_NAME, RESERVED, not_yaml, read
from onward.stages.config.values import RepositoryPath
from onward.stages.scaffold import settings
from onward.stages.scaffold.callables import require_callable, require_callable_name
from onward.stages.scaffold.entry import Entry, Todo, build_entry
from onward.stages.scaffold.found_model import FoundModel, require_declarable
from onward.stages.scaffold.params_text import insert_entry
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import WorkerFailure

R = TypeVar("R")

PARAMS = "params.yaml"
INSPECTION_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Added:
    """What was added: the entry, what is left to fill in, and the line of the entry in params.yaml."""

    entry: Entry
    todos: list[Todo]
    line: int


def add(
    name: str,
    onnx: Path | None = None,
    build: str | None = None,
    example: str | None = None,
    samples: str | None = None,
    dry_run: bool = False,
) -> Added:
    """Inspect a model and add its entry to params.yaml.

    Args:
        name: the model's name.
        onnx: its ONNX file; or
        build: `package.module:function` that returns its PyTorch module, together with
        example: `package.module:name` of one example input.
        samples: `package.module:function` that returns its samples.
        dry_run: write nothing.

    Raises:
        UsageError: a name, file or callable is wrong, or params.yaml has an entry of this name; nothing is written.
    """
    if (onnx is None) == (build is None):
        raise UsageError("give either --onnx FILE, or --build with --example")
    if (build is None) != (example is None):
        missing, there = ("--example", "--build") if build else ("--build", "--example")
        raise UsageError(f"{there} needs {missing}, too: the module is run on one example input")
    _require_free_name(name)
    _read_params(name)
    for option, value in (("--build", build), ("--example", example), ("--samples", samples)):
        if value is not None:
            require_callable_name(option, value)
    given: dict[str, str] = {}
    if onnx is not None:
        given["onnx"] = _repository_path(onnx)
        found = _inspect_file(onnx)
    else:
        assert build is not None
        assert example is not None
        given["build"] = build
        found = _inspect_module(build, example)
    require_declarable(found, given.get("onnx") or f"--build: {build}")
    if samples is not None:
        _isolated("--samples", require_callable, "--samples", samples)
        given["samples"] = samples
    text, content = _read_params(name)  # anew: the inspection takes time, and the file may have changed
    entry = build_entry(name, given, found, content.get("defaults") or {})
    entry = replace(
        entry,
        values={**entry.values, **settings.values()},
        lines=[*entry.lines, *(f"  {line}" for line in settings.lines())],
    )
    new = insert_entry(text, entry.lines, {name: entry.values})
    if not dry_run:
        write_atomically(checkout.root() / PARAMS, new.encode())
    line = max(number for number, given_line in enumerate(new.split("\n"), 1) if given_line.strip() == entry.lines[0])
    return Added(entry, [*entry.todos, *_further(name, new, entry)], line)


def _require_free_name(name: str) -> None:
    valid_name(name, "a model")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"{name!r} is no name for a model: it has more than {LONGEST_NAME} characters")
    if name in RESERVED:
        raise UsageError(f"{name!r} is no name for a model: build/{name}/ belongs to the {name} stage")


def _read_params(new: str) -> tuple[str, dict[str, Any]]:
    """The text of params.yaml, which has no model of the name `new`, and what it says."""
    path = checkout.root() / PARAMS
    try:
        content = yaml_text.load(path, YAML(typ="safe", pure=True).load)
    except FileNotFoundError:
        raise UsageError(f"{PARAMS}: there is none in {path.parent}; `onward init` writes one") from None
    except (YAMLError, ValueError) as error:
        raise not_yaml(PARAMS, error) from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UsageError(f"{PARAMS}: wants a mapping with the key models")
    for key in ("models", "defaults"):
        if not isinstance(content.get(key) or {}, Mapping):
            raise UsageError(f"{PARAMS}: {key}: wants a mapping")
    if new in (content.get("models") or {}):
        raise UsageError(f"{PARAMS}: there is a model {new!r} already; nothing was changed")
    return path.read_bytes().decode(), content


def _repository_path(path: Path) -> str:
    """A file as params.yaml names it: relative to params.yaml, with forward slashes."""
    if not path.is_file():
        raise UsageError(f"{path}: {'is no file' if path.exists() else 'there is no such file'}")
    repository = checkout.repository().resolve()
    if not path.resolve().is_relative_to(repository):
        raise UsageError(f"{path}: lies outside the repository {repository}; copy it into the repository")
    place = path.parent.resolve() / path.name
    relative = Path(os.path.relpath(place, checkout.root())).as_posix()
    try:
        TypeAdapter(RepositoryPath).validate_python(relative)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {problem}; copy it into {checkout.root()}") from None
    return relative


def _isolated(where: str, function: Callable[..., R], *arguments: Any) -> R:
    """Call a function that runs native code, or the team's, in a process of its own."""
    try:
        return isolated_call.call(INSPECTION_TIMEOUT_S, function, *arguments)
    except WorkerFailure as failure:
        raise UsageError(f"{where}: {failure.reason}") from failure


def _inspect_file(path: Path) -> FoundModel:
    from onward.stages.scaffold.onnx_inspection import complete_outputs, inspect_file

    return complete_outputs(path, _isolated(path.name, inspect_file, path))


def _inspect_module(build: str, example: str) -> FoundModel:
    def inspect() -> FoundModel:  # torch is imported in the isolated process alone
        from onward.stages.scaffold.module_inspection import inspect_module

        return inspect_module(build, example)

    return _isolated(f"--build: {build}", inspect)


def _further(name: str, text: str, entry: Entry) -> list[Todo]:
    """What `onward stage params` would say of the entry beyond its placeholders, such as a clash with `defaults`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS
        path.write_bytes(text.encode())
        try:
            read(path)
        except UsageError as error:
            found = [line.removeprefix(f"{PARAMS}: ").partition(": ") for line in str(error).split("\n")]
        else:
            return []
    known = tuple(todo.key for todo in entry.todos if todo.required)
    own = f"models.{name}"
    return [
        Todo(key, what, True)
        for key, _, what in found
        if (key == own or key.startswith(f"{own}.")) and not key.startswith(known)
    ]
