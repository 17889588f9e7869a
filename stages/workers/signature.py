"""Matches the inputs and outputs of params.yaml with a module's forward(): inputs by parameter name, outputs by key.

Matching by position alone could swap two inputs of the same shape, or two entries of a dict, without an error.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onward.registry.artifact.graph_nodes import WRAPPED

Path = tuple[str | int, ...]


class Mismatch(ValueError):
    """forward() does not take the declared inputs, or does not return the declared outputs."""


@dataclass(frozen=True)
class Binding:
    """How to pass inputs to forward().

    Attributes:
        positional: Names of the inputs to pass by position, in the order of forward()'s parameters.
        keywords: Names of the inputs to pass by keyword; each is the name of a parameter.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    def arguments(self, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional arguments, keyword arguments) for a call with these inputs."""
        return tuple(tensors[name] for name in self.positional), {name: tensors[name] for name in self.keywords}


def bind(module: nn.Module, inputs: Sequence[str]) -> Binding:
    """Match inputs with the parameters of forward() by name.

    Inputs are matched by their declared order if forward() takes `*args` only, or if there is one input and at most one
    required parameter, whatever their names.

    Args:
        module: The module whose forward() is called.
        inputs: Names of the inputs, in the order of params.yaml.

    Raises:
        Mismatch: An input matches no parameter, or a required parameter matches no input.
    """
    parameters = _parameters(module)
    kinds = inspect.Parameter
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    }
    variadic = {parameter.kind for parameter in parameters} - {parameter.kind for parameter in named.values()}
    unknown = [name for name in inputs if name not in named]
    required = [
        name for name, parameter in named.items() if parameter.default is parameter.empty and name not in inputs
    ]
    if not named and kinds.VAR_POSITIONAL in variadic and kinds.VAR_KEYWORD not in variadic:
        return Binding(tuple(inputs))
    if len(inputs) == 1 and unknown and len(required) <= 1 and (required or not named):
        return Binding(tuple(inputs))  # one input and one parameter cannot be confused
    if kinds.VAR_KEYWORD in variadic:
        unknown = []
    if unknown and kinds.VAR_POSITIONAL in variadic and not required:
        unknown = [] if list(inputs[: len(named)]) == list(named) else unknown
        if not unknown:
            return Binding(tuple(inputs))
    if unknown or required:
        words = [f"it has no parameter {name!r}" for name in unknown]
        words += [f"no input is called {name!r}" for name in required]
        raise Mismatch(
            f"forward{_words(parameters)} does not take the inputs {', '.join(inputs)}: {'; '.join(words)}. "
            "In params.yaml, give the inputs the names of forward()'s parameters, or wrap the module"
        )
    return _split(inputs, named)


def _split(inputs: Sequence[str], named: Mapping[str, inspect.Parameter]) -> Binding:
    """Pass inputs by position up to the first parameter without an input, and the others by keyword."""
    positional: list[str] = []
    for name, parameter in named.items():
        if name not in inputs or parameter.kind is parameter.KEYWORD_ONLY:
            break
        positional.append(name)
    return Binding(tuple(positional), tuple(name for name in inputs if name not in positional))


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward.schema  # type: ignore[attr-defined]  # an attribute of scripted methods
        return [
            inspect.Parameter(
                argument.name,
                inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=argument.default_value if argument.has_default_value() else inspect.Parameter.empty,
            )
            for argument in schema.arguments[1:]
        ]
    return list(inspect.signature(module.forward).parameters.values())


def parameter_names(module: nn.Module) -> list[str]:
    """Names of the parameters of forward(), in its order, without `*args` and `**kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter.name for parameter in _parameters(module) if parameter.kind not in variadic]


def positional_names(module: nn.Module, count: int) -> list[str]:
    """Name `count` tensors that forward() takes by position.

    Returns:
        the names of the parameters, and `input` or `input_0`, `input_1`, ... for what goes to `*args`.

    Raises:
        Mismatch: forward() takes fewer by position.
    """
    kinds = inspect.Parameter
    parameters = _parameters(module)
    names = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    if len(names) < count and any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        more = range(count - len(names))
        names += [f"input_{number}" for number in more] if len(more) > 1 or "input" in names else ["input"]
    if len(names) < count:
        raise Mismatch(f"forward{_words(parameters)} takes {len(names)} tensors by position, the example has {count}")
    return names[:count]


def _words(parameters: Sequence[inspect.Parameter]) -> str:
    """The signature as text, without annotations."""
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


class Named(NamedTuple):
    """The outputs of forward().

    Attributes:
        outputs: Tensors by declared name, in the declared order.
        dropped: Names of the entries that were None, and so left out.
    """

    outputs: dict[str, Tensor]
    dropped: list[str]


def name_outputs(results: Any, declared: Sequence[str]) -> Named:
    """Match what forward() returned with the outputs that params.yaml declares.

    Entries of dicts, dataclasses, named tuples and Hugging Face's ModelOutput are matched by key; nested keys are
    joined with `_` (`boxes_left`). Entries without a key, such as members of a tuple, are matched by position.

    Args:
        results: What forward() returned.
        declared: Names of the declared outputs, in the order of params.yaml.

    Raises:
        Mismatch: The entries do not match the declared outputs, or an entry is not a tensor.
    """
    keyed: dict[str, Tensor] = {}
    unnamed: list[Tensor] = []
    dropped: list[str] = []
    for path, value in _leaves(results, ()):
        label = _label(path)
        if value is None:
            dropped.append(label)
        elif not isinstance(value, Tensor):
            raise Mismatch(
                f"the module returns {type(value).__name__} for its output {label}: only tensors can be exported; "
                "wrap the module so that it returns tensors"
            )
        elif not any(isinstance(part, str) for part in path):
            unnamed.append(value)
        elif label in keyed:
            raise Mismatch(f"the module returns two outputs with the name {label!r}; rename one in forward()")
        else:
            keyed[label] = value
    missing = [name for name in declared if name not in keyed]
    surplus = [name for name in keyed if name not in declared]
    if surplus or (keyed and len(missing) != len(unnamed)):
        shown = [f"{name} {list(value.shape)}" for name, value in keyed.items()]
        shown += [f"an unnamed one {list(value.shape)}" for value in unnamed]
        raise Mismatch(
            f"the module returns the outputs {', '.join(shown)}; params.yaml declares {', '.join(declared)}. "
            "Declare each output under this name, or wrap the module so that it returns fewer"
        )
    if len(missing) != len(unnamed):
        raise Mismatch(f"the module returns {len(unnamed)} outputs, params.yaml declares {len(declared)}")
    found = keyed | dict(zip(missing, unnamed, strict=True))
    return Named({name: found[name] for name in declared}, dropped)


def output_names(results: Any) -> list[str]:
    """Name what forward() returned.

    Returns:
        its keys; `output`, or `output_0`, `output_1`, ..., if it has no keys. Entries that are None have no name.

    Raises:
        Mismatch: an entry is no tensor, or two have the same key.
    """
    leaves = [(path, value) for path, value in _leaves(results, ()) if value is not None]
    keys = [_label(path) for path, _ in leaves if any(isinstance(part, str) for part in path)]
    bare = len(leaves) - len(keys)
    free = iter(["output"] if bare == 1 and "output" not in keys else _free_names(bare, keys))
    names = [_label(path) if any(isinstance(part, str) for part in path) else next(free) for path, _ in leaves]
    name_outputs(results, names)
    return names


def _free_names(count: int, taken: Sequence[str]) -> Iterator[str]:
    numbered = (f"output_{number}" for number in itertools.count())
    return itertools.islice((name for name in numbered if name not in taken), count)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """(path, value) of every leaf of nested containers."""
    if isinstance(value, Mapping):
        entries: Iterator[tuple[str | int, Any]] = ((str(key), entry) for key, entry in value.items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        entries = zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        entries = ((number, entry) for number, entry in enumerate(value))
    else:
        yield path, value
        return
    for key, entry in entries:
        yield from _leaves(entry, (*path, key))


def _label(path: Path) -> str:
    """The name of a path: `boxes_0` for ("boxes", 0). Indices before the first key are left out."""
    first = next((number for number, part in enumerate(path) if isinstance(part, str)), 0)
    return "_".join(str(part) for part in path[first:])


class Exportable(NamedTuple):
    """A module that takes and returns tensors by position.

    Attributes:
        module: The module.
        inputs: Names of its inputs, in the order of its parameters.
    """

    module: nn.Module
    inputs: list[str]


def exportable(
    module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], example: Mapping[str, Tensor]
) -> Exportable:
    """Prepare a module for exporters, which pass inputs and outputs by position.

    Args:
        module: The module.
        inputs: Names of the declared inputs.
        outputs: Names of the declared outputs.
        example: Inputs by name, for one call.

    Returns:
        The module itself if its inputs and outputs are positional, else a wrapper.

    Raises:
        Mismatch: As `bind` and `name_outputs`.
    """
    binding = bind(module, inputs)
    positional, keywords = binding.arguments(example)
    with torch.no_grad():
        results = module(*positional, **keywords)
    name_outputs(results, outputs)
    is_flat = isinstance(results, Tensor) or (
        isinstance(results, (tuple, list))
        and not hasattr(results, "_fields")
        and all(isinstance(value, Tensor) for value in results)
    )
    if is_flat and not keywords:
        return Exportable(module, list(binding.positional))
    return Exportable(_ByPosition(module, binding, inputs, outputs).eval(), list(inputs))


class _ByPosition(nn.Module):
    """Wraps a module so that its inputs and outputs are in the order of params.yaml."""

    def __init__(self, module: nn.Module, binding: Binding, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        setattr(self, WRAPPED, module)
        self.binding, self.inputs, self.outputs = binding, list(inputs), list(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        positional, keywords = self.binding.arguments(dict(zip(self.inputs, tensors, strict=True)))
        return tuple(name_outputs(getattr(self, WRAPPED)(*positional, **keywords), self.outputs).outputs.values())
