"""The available optimisation and quantisation techniques, one module each, and their options.

Onward's own techniques are in transforms/optimizers/ and transforms/quantizers/. Another package adds one with an
entry point in the group `onward.optimizers` or `onward.quantizers` that names its module
(docs/adding-an-optimizer.md).

Options are parsed from the modules' source text, so that checking params.yaml imports none of them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from onward.registry.errors import UsageError
from onward.registry.text import suggestion
from onward.stages.config.source_files import located

Option = bool | int | float | str
Options = Mapping[str, Option]

# By stage: the folder of Onward's own techniques, the entry point group, and the word for a technique in messages.
FOLDERS = {"optimize": "optimizers", "quantize": "quantizers"}
GROUPS = {"optimize": "onward.optimizers", "quantize": "onward.quantizers"}
CALLED = {"optimize": "optimiser", "quantize": "quantiser"}
_TRANSFORMS = Path(__file__).parent.parent / "transforms"


class TechniqueSpec(BaseModel):
    """A technique to try, with its options: `name` or `{name: {option: value}}` in params.yaml.

    stages/config/techniques.py lists the available techniques and their options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, bool | int | float | str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1:
            name, options = next(iter(value.items()))
            return {"name": name, "options": options or {}}
        raise ValueError("must be the name of a technique, or {name: {option: value}}")

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        return {self.name: self.options}


@functools.cache
def modules(stage: str) -> dict[str, str]:
    """The modules of all available techniques, by technique name.

    Args:
        stage: "optimize" or "quantize".

    Raises:
        UsageError: Two packages offer a technique of the same name.
    """
    own = {
        path.stem: f"onward.stages.transforms.{FOLDERS[stage]}.{path.stem}"
        for path in (_TRANSFORMS / FOLDERS[stage]).glob("*.py")
        if not path.stem.startswith("_")
    }
    found = dict(own)
    for point in importlib.metadata.entry_points(group=GROUPS[stage]):
        if found.setdefault(point.name, point.module) != point.module:
            there = "Onward has one" if point.name in own else f"{found[point.name]} is one, too"
            raise UsageError(f"the {CALLED[stage]} {point.name!r} of {point.module}: {there}: rename or uninstall it")
    return dict(sorted(found.items()))


def names(stage: str) -> list[str]:
    """The names of all available techniques of a stage."""
    return list(modules(stage))


def allowed(stage: str, name: str) -> dict[str, tuple[Option, ...]]:
    """The options of a technique, each with its allowed values, the default first.

    If only one value is listed, it is the default, and any value of the same type is allowed.
    """
    found: dict[str, tuple[Option, ...]] = _literal(stage, name, "OPTIONS", {})
    return found


def accuracy_only(stage: str, name: str) -> tuple[str, ...]:
    """The options of a technique that affect the results of its graphs but not their latency."""
    found: tuple[str, ...] = _literal(stage, name, "ACCURACY_ONLY", ())
    return found


def problems(stage: str, candidates: Iterable[TechniqueSpec]) -> Iterable[tuple[str, str]]:
    """Check candidates for unknown techniques, unknown options, invalid values and duplicates.

    Returns:
        (path below the model, message) of each problem.
    """
    known = names(stage)
    seen: list[tuple[str, Options]] = []  # compares in a tenth of the time of the records
    for index, candidate in enumerate(candidates):
        where = f"{stage}.candidates[{index}]"
        this = candidate.name, dict(candidate.options)
        if this in seen:
            yield where, f"the same as {stage}.candidates[{seen.index(this)}]"
        seen.append(this)
        if candidate.name not in known:
            missing = f"there is no {CALLED[stage]} {candidate.name!r}"
            yield where, missing + suggestion(candidate.name, known)
            continue
        options = allowed(stage, candidate.name)
        for option, value in candidate.options.items():
            if option not in options:
                there = f"; there are {', '.join(options)}" if options else "; it has none"
                yield f"{where}.{option}", "no such option" + (suggestion(option, options) or there)
            elif not _fits(value, options[option]):
                yield f"{where}.{option}", f"{value!r} is none of {_words(options[option])}"


def complete(stage: str, candidate: TechniqueSpec) -> dict[str, Option]:
    """All options of a candidate, including defaults."""
    defaults = {option: values[0] for option, values in allowed(stage, candidate.name).items()}
    return defaults | candidate.options


def label(stage: str, candidate: TechniqueSpec) -> str:
    """The variant's name: the technique's name and the options that differ from their defaults."""
    parts = [candidate.name]
    for option, values in allowed(stage, candidate.name).items():
        value = candidate.options.get(option, values[0])
        if value != values[0]:
            on_off = option if value is True else f"no_{option}"
            parts.append(on_off if isinstance(value, bool) else value if isinstance(value, str) else f"{option}{value}")
    return "-".join(parts)


def source(stage: str, candidate: TechniqueSpec) -> str:
    """The name of the technique's module."""
    return modules(stage)[candidate.name]


def module(stage: str, candidate: TechniqueSpec) -> ModuleType:
    """Import the technique's module. Techniques import third-party packages only when they are called."""
    return importlib.import_module(source(stage, candidate))


def _literal(stage: str, name: str, constant: str, default: Any) -> Any:
    path = located(modules(stage)[name])
    if path is None:
        raise UsageError(f"the {CALLED[stage]} {name!r}: its module {modules(stage)[name]} has no source file")
    return _literals(path).get(constant, default)


@functools.cache
def _literals(path: Path) -> dict[str, Any]:
    """The upper-case constants at a file's top level whose values are literals."""
    found = {}
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            with contextlib.suppress(ValueError):  # a computed value
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def _fits(value: Option, values: tuple[Option, ...]) -> bool:
    if len(values) == 1:
        return type(value) is type(values[0])
    return any(type(value) is type(one) and value == one for one in values)  # True == 1, but they are not the same


def _words(values: tuple[Option, ...]) -> str:
    if len(values) == 1:
        return f"the values of type {type(values[0]).__name__}"
    return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
