"""Runs a model over parts of parquet files; an actor of Ray Data."""

from __future__ import annotations

import os
import posixpath
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from onward.registry import processors
from onward.registry.batch.columns import Sizes, column, groups
from onward.registry.batch.parts import Part, Place
from onward.registry.errors import OnwardError, Refused, UsageError

# The keys of the metadata in the schema of each file of results.
STAMP = "onward."


@dataclass(frozen=True)
class Work:
    """What all workers have in common.

    Attributes:
        target: MODEL@ENVIRONMENT or MODEL/VERSION.
        store: The URI of the MLflow store, with credentials.
        source: The place of the inputs.
        output: The folder of the results.
        columns: The column of each input that has an axis of samples.
        shared: The values of the inputs that have none.
        batch: The number of samples in a batch.
        processors: The number of processors of a worker.
        require_signed: Whether to load only what a signer deployed.
        stamp: The version that the target named when the run began: what the results say about their origin.
    """

    target: str
    store: str
    source: Place
    output: Place
    columns: dict[str, str]
    shared: dict[str, Any]
    batch: int
    processors: int
    require_signed: bool
    stamp: dict[str, str]


class Worker:
    """A session in a process of its own, on processors of its own.

    Args:
        work: What all workers have in common.

    Raises:
        OnwardError: The version cannot be loaded on this machine, or the environment has moved to another one.
    """

    def __init__(self, work: Work) -> None:
        os.environ["MLFLOW_TRACKING_URI"] = work.store
        from onward.registry.inference.session import InferenceSession

        self.work = work
        self._reserved = ExitStack()
        mine = self._reserved.enter_context(processors.reserved(work.processors))
        if mine is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, mine)
        # Threads that wait busily take the processors of the workers beside this one.
        options = {"threads": work.processors, "spinning": False}
        self.session = InferenceSession(work.target, require_signed=work.require_signed, overrides=options)
        found = self.session.metadata
        began = work.stamp
        if (found.sha256, found.manifest) != (began["sha256"], began["manifest"]):
            raise Refused(
                f"{work.target} is now version {found.version}, and this run began with version {began['version']}: "
                f"the finished parts stay; run again with {found.model}/{began['version']} to finish it with that "
                "version"
            )
        self._first_output = found.outputs[0].name
        self.sizes: dict[str, Sizes] = {}
        for spec in found.inputs:
            axis = self.session.sample_axes[spec.name]
            if spec.name in work.columns and axis is not None:
                self.sizes[spec.name] = [size for number, size in enumerate(spec.shape) if number != axis]

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Run one part.

        Args:
            rows: The fields of a Part, each in an array of one value.

        Returns:
            The part's output, its number of rows, the seconds it took, and why it failed, each in a list of one value.
        """
        part = Part(**{name: np.asarray(values).tolist()[0] for name, values in rows.items()})
        begun, reason = time.monotonic(), ""
        try:
            self._run(part)
        except OnwardError as error:
            reason = str(error)
        except (pa.ArrowException, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        return {
            "output": [part.output], "rows": [part.rows], "seconds": [time.monotonic() - begun], "reason": [reason],
        }  # fmt: skip

    def _run(self, part: Part) -> None:
        """Write the results of a part. The file has its name only when it is complete."""
        files = self.work.output.files
        final = posixpath.join(self.work.output.path, part.output)
        local = isinstance(files, pafs.LocalFileSystem)
        # An object store shows a file only when it is closed; a local file gets its name when it is complete.
        path = posixpath.join(self.work.output.path, f".{part.output}.{uuid.uuid4().hex}") if local else final
        writer: pq.ParquetWriter | None = None
        try:
            with self.work.source.files.open_input_file(part.path) as file:
                for number, table in _chunks(pq.ParquetFile(file), part):
                    result = self._results(table, f"{part.path}: rows from {number} of row group {part.row_group}")
                    if writer is None:
                        writer = pq.ParquetWriter(path, result.schema, filesystem=files, compression="zstd")
                    writer.write_table(result)
            if writer is not None:
                writer.close()
        except BaseException:
            if local:
                Path(path).unlink(missing_ok=True)
            raise
        if local:
            os.replace(path, final)

    def _results(self, table: pa.Table, where: str) -> pa.Table:
        """The model's answers to some rows, beside the columns that are no inputs."""
        found: dict[str, list[tuple[Any, Any]]] = {}
        try:
            for chosen, arrays in groups(table, self.sizes, self.work.columns):
                feed = {name: self._placed(name, values) for name, values in arrays.items()} | self.work.shared
                answers = self.session.predict_batches(feed, self.work.batch)
                outputs = answers if isinstance(answers, dict) else {self._first_output: answers}
                for name, values in outputs.items():
                    found.setdefault(name, []).append((chosen, self._in_front(name, values)))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        kept = {name: table.column(name) for name in table.column_names if name not in self.work.columns.values()}
        made = pa.table({**kept, **{name: column(parts) for name, parts in found.items()}})
        return made.replace_schema_metadata({f"{STAMP}{key}": value for key, value in self.work.stamp.items()})

    def _placed(self, name: str, values: Any) -> Any:
        """An array with its samples on the axis that the input has them on."""
        axis = self.session.sample_axes[name]
        return np.moveaxis(values, 0, axis) if axis else values

    def _in_front(self, name: str, values: Any) -> Any:
        """An output with its samples on the first axis."""
        axis = self.session.sample_axes[name]
        return np.moveaxis(values, axis, 0) if axis else values


def _chunks(file: pq.ParquetFile, part: Part) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a part, as tables of at most `part.chunk` rows, each with the number of its first row."""
    position, end = 0, part.start + part.rows
    for batch in file.iter_batches(batch_size=part.chunk, row_groups=[part.row_group]):
        first, last = max(part.start - position, 0), min(end - position, batch.num_rows)
        if first < last:
            yield position + first, pa.Table.from_batches([batch.slice(first, last - first)])
        position += batch.num_rows
        if position >= end:
            return
