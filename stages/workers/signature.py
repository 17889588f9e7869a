"""How the inputs and outputs of params.yaml meet a module's forward(): inputs by parameter name, outputs by key.

Position alone is no evidence: two inputs of one shape, or the entries of a dict, would be swapped without an error.
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
    """Which inputs forward() takes by position, in its own order, and which by keyword.

    Attributes:
        positional: names of inputs.
        keywords: names of inputs, each of which is the name of a parameter, too.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    def arguments(self, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(positional arguments, keyword arguments) of a call with these inputs."""
        return tuple(tensors[name] for name in self.positional), {name: tensors[name] for name in self.keywords}


def bind(module: nn.Module, inputs: Sequence[str]) -> Binding:
    """Match inputs with the parameters of forward() by name.

    A module whose parameters have no names of their own (`*args`) takes the inputs in the declared order, and so does
    one with a single input and a single required parameter, whatever the two are called.

    Args:
        module: the module, in whose forward() the names are looked up.
        inputs: names of the inputs, in the order of params.yaml.

    Raises:
        Mismatch: a name, or a required parameter, has no counterpart.
    """
    parameters = _parameters(module)
    kinds = inspect.Parameter
    named = {p.name: p for p in parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)}
    takes_any = {p.kind for p in parameters} - {p.kind for p in named.values()}
    unknown = [name for name in inputs if name not in named]
    required = [name for name, p in named.items() if p.default is p.empty and name not in inputs]
    if not named and kinds.VAR_POSITIONAL in takes_any and kinds.VAR_KEYWORD not in takes_any:
        return Binding(tuple(inputs))
    if len(inputs) == 1 and unknown and len(required) <= 1 and (required or not named):
        return Binding(tuple(inputs))  # one tensor in, one parameter: there is nothing to confuse
    if kinds.VAR_KEYWORD in takes_any:
        unknown = []
    if unknown and kinds.VAR_POSITIONAL in takes_any and not required:
        unknown = [] if list(inputs[: len(named)]) == list(named) else unknown
        if not unknown:
            return Binding(tuple(inputs))
    if unknown or required:
        words = [f"it has no parameter {name!r}" for name in unknown]
        words += [f"no input is called {name!r}" for name in required]
        raise Mismatch(
            f"forward{_words(parameters)} does not take the inputs {', '.join(inputs)}: {'; '.join(words)}. "
            "Name the inputs in params.yaml as forward() names its parameters, or wrap the module in one that does"
        )
    return _split(inputs, named)


def _split(inputs: Sequence[str], named: Mapping[str, inspect.Parameter]) -> Binding:
    """By position as far as forward() takes the inputs without a gap, by keyword after that."""
    positional: list[str] = []
    for name, parameter in named.items():
        if name not in inputs or parameter.kind is parameter.KEYWORD_ONLY:
            break
        positional.append(name)
    return Binding(tuple(positional), tuple(name for name in inputs if name not in positional))


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward.schema  # type: ignore[attr-defined]  # a scripted method has one
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
    """Names for `count` tensors that forward() takes by position: those of its parameters, and `input` or `input_0`,
    `input_1`, ... for what goes to `*args`.

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
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


class Named(NamedTuple):
    """Outputs by their declared names, in the declared order; and which entries were None, and so left out."""

    outputs: dict[str, Tensor]
    dropped: list[str]


def name_outputs(results: Any, declared: Sequence[str]) -> Named:
    """What forward() returned, by the names that params.yaml declares.

    Entries of dicts, dataclasses, named tuples and Hugging Face's ModelOutput go by their keys; keys of nested ones are
    joined by `_` (`boxes_left`). What has no key, such as the members of a tuple, goes by position.

    Raises:
        Mismatch: the entries are not the declared ones, or one of them is no tensor.
    """
    keyed: dict[str, Tensor] = {}
    bare: list[Tensor] = []
    dropped: list[str] = []
    for path, value in _leaves(results, ()):
        label = _label(path)
        if value is None:
            dropped.append(label)
        elif not isinstance(value, Tensor):
            raise Mismatch(
                f"the module returns {type(value).__name__} for its output {label}: only tensors can be exported; "
                "wrap the module in one that returns tensors"
            )
        elif not any(isinstance(part, str) for part in path):
            bare.append(value)
        elif label in keyed:
            raise Mismatch(f"the module returns two outputs that would be called {label!r}; rename one in forward()")
        else:
            keyed[label] = value
    free = [name for name in declared if name not in keyed]
    surplus = [name for name in keyed if name not in declared]
    if surplus or (keyed and len(free) != len(bare)):
        shown = [f"{name} {list(value.shape)}" for name, value in keyed.items()]
        shown += [f"an unnamed one {list(value.shape)}" for value in bare]
        raise Mismatch(
            f"the module returns the outputs {', '.join(shown)}; params.yaml declares {', '.join(declared)}. "
            "Declare each under its own name, or wrap the module in one that returns fewer"
        )
    if len(free) != len(bare):
        raise Mismatch(f"the module returns {len(bare)} outputs, params.yaml declares {len(declared)}")
    found = keyed | dict(zip(free, bare, strict=True))
    return Named({name: found[name] for name in declared}, dropped)


def output_names(results: Any) -> list[str]:
    """Names to declare for what forward() returned: its keys; `output`, or `output_0`, `output_1`, ..., where it has no
    keys. Entries that are None have no name.

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
    """`boxes_0` of ("boxes", 0); an index before the first key says nothing and is left out."""
    first = next((number for number, part in enumerate(path) if isinstance(part, str)), 0)
    return "_".join(str(part) for part in path[first:])


class Exportable(NamedTuple):
    """A module that takes tensors by position and returns tensors by position, and the inputs in that order."""

    module: nn.Module
    inputs: list[str]


def exportable(
    module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], example: Mapping[str, Tensor]
) -> Exportable:
    """What exporters are given: the module itself where its inputs and outputs go by position, else a wrapper.

    Raises:
        Mismatch: as `bind` and `name_outputs`.
    """
    binding = bind(module, inputs)
    positional, keywords = binding.arguments(example)
    with torch.no_grad():
        results = module(*positional, **keywords)
    name_outputs(results, outputs)
    flat = isinstance(results, Tensor) or (
        isinstance(results, (tuple, list))
        and not hasattr(results, "_fields")
        and all(isinstance(value, Tensor) for value in results)
    )
    if flat and not keywords:
        return Exportable(module, list(binding.positional))
    return Exportable(_ByPosition(module, binding, inputs, outputs).eval(), list(inputs))


class _ByPosition(nn.Module):
    """The same module, with its inputs and outputs in the order of params.yaml."""

    def __init__(self, module: nn.Module, binding: Binding, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        setattr(self, WRAPPED, module)
        self.binding, self.inputs, self.outputs = binding, list(inputs), list(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        positional, keywords = self.binding.arguments(dict(zip(self.inputs, tensors, strict=True)))
        return tuple(name_outputs(getattr(self, WRAPPED)(*positional, **keywords), self.outputs).outputs.values())
