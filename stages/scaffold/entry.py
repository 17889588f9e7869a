"""The entry of a model in params.yaml: its keys, its text, and what is left to fill in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onward.registry.text import one_line, printable
from onward.stages.config.load import PLACEHOLDER
from onward.stages.scaffold.dimension_names import BATCH
from onward.stages.scaffold.found_model import FoundDim, FoundModel, FoundTensor
from onward.stages.scaffold.sample_axes import states_of, with_samples
from onward.stages.scaffold.yaml_scalars import inline


@dataclass(frozen=True)
class Todo:
    """What a person has to add: the path of the key in params.yaml, and what to write there.

    `onward stage params` fails until all that are required are done.
    """

    key: str
    what: str
    required: bool


@dataclass(frozen=True)
class Entry:
    """An entry below `models:`.

    Attributes:
        name: the model's name.
        values: what the text says, as params.yaml is read.
        lines: the text, the name first, without the indentation that `models:` asks for.
        todos: what is left to fill in; each is also a comment in `lines`.
    """

    name: str
    values: dict[str, Any]
    lines: list[str]
    todos: list[Todo]


def build_entry(name: str, given: Mapping[str, str], found: FoundModel, defaults: Mapping[str, Any]) -> Entry:
    """The entry of a model.

    Args:
        name: the model's name.
        given: `build` or `onnx`, and `samples` where it is known.
        found: what was found out about the model.
        defaults: the section `defaults` of params.yaml. Its `samples`, `quality` and `dims` are used where they fit.
    """
    writer = _Writer(name)
    for key, value in given.items():
        writer.add(key, value)
    if "samples" not in given and not defaults.get("samples"):
        writer.add("samples", PLACEHOLDER, [("", SAMPLES, True)])
    if "build" in given and not (defaults.get("weights") or defaults.get("train")):
        writer.remind("weights", WEIGHTS)
    if not (defaults.get("quality") or defaults.get("fidelity")):
        writer.remind("quality", QUALITY)
    makes_cases = bool(defaults.get("cases"))
    found, axes = with_samples(found)
    writer.add_group("inputs", {tensor.name: _input(tensor, makes_cases, axes) for tensor in found.inputs})
    writer.add_group("outputs", {tensor.name: _output(tensor) for tensor in found.outputs})
    if states := states_of(found):
        writer.add("states", states, [("", STATES, False)])
    own = defaults.get("dims") if isinstance(defaults.get("dims"), Mapping) else None
    known = {dim: sizes for dim, sizes in own.items() if _fits(sizes, found.dims.get(dim))} if own else {}
    if found.dims and not (own and known.keys() == own.keys() == found.dims.keys()):
        first = {tensor.shape[0] for tensor in found.inputs if tensor.shape}
        writer.add_group(
            "dims",
            {
                dim: (known[dim], []) if dim in known else _dim(sizes, dim in first or dim == BATCH)
                for dim, sizes in found.dims.items()
            },
        )
    elif own and not found.dims:
        writer.add("dims", {})
    return Entry(name, writer.values, writer.lines, writer.todos)


def _fits(sizes: Any, found: FoundDim | None) -> bool:
    """Whether the model accepts the sizes that `defaults` gives a dimension."""
    least = sizes.get("min", 1) if isinstance(sizes, Mapping) else 0
    return found is not None and isinstance(least, int) and least >= found.min


SAMPLES = (
    "package.module:function of 'evaluation' or 'calibration'; returns a dict of arrays by input name, samples on the "
    "first axis"
)
QUALITY = (
    "package.module:function of (outputs by name, labels) or of the outputs alone, higher is better; without it, "
    "outputs are compared with the original's"
)
WEIGHTS = "path/to/weights.safetensors; or train: package.module:function; neither if build returns the trained module"

STATES = "check that these outputs are the inputs of the next step; remove this key if they are not"

# What is left to do about one line: (key below that of the line, what, whether it is required).
_Left = list[tuple[str, str, bool]]


def _input(tensor: FoundTensor, makes_cases: bool, axes: Mapping[str, int | None]) -> tuple[dict[str, Any], _Left]:
    values: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape or ())}
    left: _Left = []
    if tensor.shape == ():
        return {**values, "value": PLACEHOLDER}, [("value", "the only value of this input", True)]
    if tensor.name in axes:
        values["sample_axis"] = "none" if axes[tensor.name] is None else axes[tensor.name]
        left = [("sample_axis", "check which axis counts samples; none: all samples share this input", False)]
    if "int" not in tensor.dtype:
        return values, left
    if tensor.range is not None:
        return {**values, "range": list(tensor.range)}, left
    if makes_cases:
        return values, left
    seen = f"; the example contains {tensor.seen[0]} to {tensor.seen[1]}" if tensor.seen else ""
    return {**values, "range": PLACEHOLDER}, [*left, ("range", f"[lowest, highest] valid value{seen}", True)]


def _output(tensor: FoundTensor) -> tuple[dict[str, Any], _Left]:
    if tensor.shape is not None and None not in tensor.shape:
        return {"shape": list(tensor.shape)}, []
    known = "" if tensor.shape is None else f", here [{', '.join('?' if n is None else str(n) for n in tensor.shape)}]"
    what = f"the size of each axis, or the name of a dimension of the inputs{known}; {tensor.note}"
    return {"shape": PLACEHOLDER}, [("shape", what, True)]


def _dim(sizes: FoundDim, is_batch: bool) -> tuple[dict[str, Any], _Left]:
    values: dict[str, Any] = {"min": sizes.min}
    if sizes.max is None or sizes.typical is None:
        left = [("max", "the largest size that the model accepts", True)]
        left += [("typical", "the sizes that are served most, such as [16, 64]", True)]
        return {**values, "max": PLACEHOLDER, "typical": PLACEHOLDER}, left
    values |= {"max": sizes.max, "typical": list(sizes.typical)}
    guess = "assumed" if is_batch else "those of the example"
    return values, [("", f"check these sizes ({guess}): max is the largest served, typical the most frequent", False)]


class _Writer:
    """Collects keys, lines and what is left to do."""

    def __init__(self, name: str) -> None:
        self.path = f"models.{name}"
        self.values: dict[str, Any] = {}
        self.lines = [f"{inline(name)}:"]
        self.todos: list[Todo] = []

    def add(self, key: str, value: Any, left: _Left | None = None) -> None:
        self.values[key] = value
        self._line(f"  {inline(key)}: {inline(value)}", f"{self.path}.{key}", left or [])

    def remind(self, key: str, what: str) -> None:
        """Add a comment on a key that may be added."""
        self.todos.append(Todo(f"{self.path}.{key}", what, False))
        self.lines.append(f"  # TODO: {key} (optional): {what}")

    def add_group(self, key: str, items: Mapping[str, tuple[Any, _Left]]) -> None:
        self.values[key] = {name: value for name, (value, _) in items.items()}
        self.lines.append(f"  {key}:")
        for name, (value, left) in items.items():
            self._line(f"    {inline(name)}: {inline(value)}", f"{self.path}.{key}.{name}", left)

    def _line(self, text: str, path: str, left: _Left) -> None:
        said = []
        for key, what, required in left:
            self.todos.append(Todo(f"{path}.{key}".rstrip("."), what, required))
            said.append(f"{key}: {what}" if key else what)
        self.lines.append(f"{text}  # TODO: {printable(one_line('; '.join(said)))}" if said else text)
