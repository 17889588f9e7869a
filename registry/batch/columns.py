"""Converts columns of a parquet file to a model's inputs, and a model's outputs to columns.

A row is a sample. A column contains numbers, texts, or lists of them, nested as deeply as the input has axes. A flat
list is also accepted for an input whose axes have fixed sizes. Rows whose lists differ in length are run in groups of
equal ones; nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from onward.registry.errors import UsageError

Array = npt.NDArray[Any]
# The sizes of an input's axes without that of samples; a name or "?" where the size is not fixed.
Sizes = Sequence[int | str]


def groups(
    table: pa.Table, inputs: Mapping[str, Sizes], columns: Mapping[str, str]
) -> Iterator[tuple[Array, dict[str, Array]]]:
    """Convert rows to arrays, in groups of rows whose lists have equal lengths.

    Args:
        table: The rows.
        inputs: The sizes of each input's axes, by the input's name.
        columns: The column of each input, by the input's name.

    Yields:
        The positions of the rows of a group, and each input's array, [rows, ...], by the input's name.

    Raises:
        UsageError: A column contains a null, lists that are no array, or values of a type that no array has.
    """
    if table.num_rows == 0:
        return
    rows = {name: _Rows(name, table.column(columns[name]), sizes) for name, sizes in inputs.items()}
    shapes = np.concatenate([one.shapes for one in rows.values()], axis=1)
    different, group = np.unique(shapes, axis=0, return_inverse=True)
    for number in range(len(different)):
        chosen = np.flatnonzero(group.ravel() == number)
        yield chosen, {name: one.array(chosen) for name, one in rows.items()}


class _Rows:
    """The rows of an input's column.

    Args:
        name: The input's name.
        column: The column.
        sizes: The sizes of the input's axes.
    """

    def __init__(self, name: str, column: pa.ChunkedArray, sizes: Sizes) -> None:
        self.name, self.sizes = name, sizes
        level = pa.concat_arrays(column.chunks)
        if isinstance(level, pa.ExtensionArray):
            level = level.storage
        self.count = len(level)
        row_of = np.arange(self.count)  # the row that each element of `level` belongs to
        shapes = []
        while (
            pa.types.is_list(level.type)
            or pa.types.is_large_list(level.type)
            or pa.types.is_fixed_size_list(level.type)
        ):
            self._require_values(level)
            lengths = _lengths(level)
            shapes.append(self._common(row_of, lengths))
            row_of = np.repeat(row_of, lengths)
            level = level.flatten()
        self._require_values(level)
        if not (
            pa.types.is_primitive(level.type) or pa.types.is_string(level.type) or pa.types.is_large_string(level.type)
        ):
            raise UsageError(f"input {name}: a column of {column.type} cannot be an array of numbers or texts")
        self.values: Array = level.to_numpy(zero_copy_only=False)
        self.shapes = np.stack(shapes, axis=1) if shapes else np.empty((self.count, 0), np.int64)
        self.starts = np.searchsorted(row_of, np.arange(self.count))

    def array(self, chosen: Array) -> Array:
        """The array of rows with lists of equal lengths.

        Args:
            chosen: The positions of the rows.
        """
        shape = tuple(self.shapes[chosen[0]].tolist())
        size = math.prod(shape)
        whole = len(chosen) == self.count
        values = self.values if whole else self.values[(self.starts[chosen, None] + np.arange(size)).ravel()]
        fixed = tuple(size for size in self.sizes if isinstance(size, int))
        if len(fixed) == len(self.sizes) and shape != fixed and math.prod(fixed) == size:
            shape = fixed
        return values.reshape(len(chosen), *shape)

    def _require_values(self, level: pa.Array) -> None:
        if level.null_count:
            raise UsageError(f"input {self.name}: its column contains nulls")

    def _common(self, row_of: Array, lengths: Array) -> Array:
        """The length of the lists in each row."""
        found = np.zeros(self.count, np.int64)
        found[row_of] = lengths  # the last one of each row
        if (wrong := np.flatnonzero(found[row_of] != lengths)).size:
            row = int(row_of[wrong[0]])
            raise UsageError(
                f"input {self.name}: row {row} contains lists of {lengths[wrong[0]]} and {found[row]} values"
            )
        return found


def _lengths(level: pa.Array) -> Array:
    if pa.types.is_fixed_size_list(level.type):
        return np.full(len(level), level.type.list_size)
    lengths: Array = level.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def column(parts: Sequence[tuple[Array, Any]]) -> pa.Array:
    """Join an output's values to a column, in the order of the rows.

    Args:
        parts: The positions of a group's rows, and the output's values for them, [rows, ...].

    Returns:
        Numbers or texts if a sample has one value; else lists, nested as the output's axes.
    """
    order = np.concatenate([chosen for chosen, _ in parts])
    joined = pa.concat_arrays([_nested(values) for _, values in parts])
    if len(parts) == 1 and np.array_equal(order, np.arange(len(order))):
        return joined
    return joined.take(pa.array(np.argsort(order)))


def _nested(values: Any) -> pa.Array:
    if not isinstance(values, np.ndarray):  # a sequence or a map for each sample
        return pa.array(list(values))
    found = pa.array(values.ravel() if values.dtype != object else [str(value) for value in values.ravel()])
    for axis in range(values.ndim - 1, 0, -1):
        count, size = math.prod(values.shape[:axis]), values.shape[axis]
        found = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(size)), found)
    return found
