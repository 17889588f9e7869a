"""Names for the dimensions of a model: valid in params.yaml, unique, and one for each dimension."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onward.registry.evidence.records import dimension
from onward.registry.evidence.size_expressions import is_name
from onward.stages.config.load import PLACEHOLDER
from onward.stages.scaffold.found_model import FoundShape

BATCH = "batch"
# tf2onnx numbers the dimensions that have no name: equal numbers are one dimension.
_NUMBERED = re.compile(r"unk__\d+")


def valid_name(name: str) -> str:
    """The name of a dimension that params.yaml accepts and that is nearest to `name`: `batch_1` for `batch+1`."""
    words = re.sub(r"\W+", "_", "".join(sign if f"a{sign}".isidentifier() else " " for sign in name))
    words = words.strip("_") if words != name else words
    return words if is_name(words) else f"dim_{words}".rstrip("_")


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, made valid, with the first number that makes it differ from all names in `taken`."""
    name = valid_name(wanted)
    used = {*taken, PLACEHOLDER}
    number = 2
    unique = name
    while unique in used:
        unique = f"{name}_{number}"
        number += 1
    return unique


class DimensionNames:
    """Names for the dimensions that a file declares.

    One symbol of the file is one dimension. An axis without a symbol is a dimension of its own, except for axis 0: that
    is the batch, which all inputs share.

    Args:
        inputs: names and shapes of the inputs. A shape contains sizes, symbols, and None for an axis without both.
    """

    def __init__(self, inputs: Sequence[tuple[str, FoundShape]]) -> None:
        symbols = [size for _, shape in inputs for size in shape if isinstance(size, str) and not _is_unnamed(size)]
        kept = [symbol for symbol in dict.fromkeys(symbols) if symbol == valid_name(symbol) != PLACEHOLDER]
        self._names = {symbol: symbol for symbol in kept}
        for symbol in dict.fromkeys(symbols):
            if symbol not in self._names:
                self._names[symbol] = unique_name(symbol, self._names.values())
        first = {shape[0] for _, shape in inputs if shape and isinstance(shape[0], str) and not _is_unnamed(shape[0])}
        # Samples are stacked on axis 0 of every input: an open axis 0 is the one that the file names elsewhere.
        self._batch = self._names[first.pop()] if len(first) == 1 else ""
        if not self._batch and any(shape and _is_open(shape[0]) for _, shape in inputs):
            self._batch = BATCH if BATCH in first else unique_name(BATCH, self._names.values())
        self.inputs = {name: tuple(self._axis(name, n, size) for n, size in enumerate(shape)) for name, shape in inputs}

    @property
    def batch(self) -> str:
        """The dimension on axis 0 of the inputs; empty where the file fixes it or names more than one."""
        return self._batch

    def of_output(self, shape: FoundShape) -> FoundShape:
        """The shape of an output: symbols by the names that the inputs gave them, None where an axis is unknown."""
        return tuple(self._names.get(size) if isinstance(size, str) else None if size == 0 else size for size in shape)

    def _axis(self, tensor: str, axis: int, size: int | str | None) -> int | str:
        if isinstance(size, int) and size > 0:
            return size
        symbol = size if isinstance(size, str) and _is_symbol(size) else None
        if symbol in self._names:
            return self._names[symbol]
        taken = [*self._names.values(), self._batch]
        name = self._batch if axis == 0 else unique_name(f"{tensor}_axis{axis}", taken)
        # A dimension without a symbol is stored by its place, which no file can name.
        self._names[symbol or f"\0{tensor}\0{axis}"] = name
        return name


def _is_unnamed(symbol: str) -> bool:
    """Whether a symbol says that a dimension has no name (`?`, `-1`, `unk__12`)."""
    return dimension(symbol) is None


def _is_open(size: int | str | None) -> bool:
    return size is None or size == 0 or (isinstance(size, str) and _is_unnamed(size))


def _is_symbol(size: str) -> bool:
    return not _is_unnamed(size) or _NUMBERED.fullmatch(size) is not None
