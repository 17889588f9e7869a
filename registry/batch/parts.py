"""Divides parquet files into parts. One worker runs a part, and writes the results to a file of its own."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from onward.registry.errors import Refused, UsageError
from onward.registry.text import first_line, printable

# A part is at most this long and this large. It is what is lost when a machine is.
PART_ROWS = 16_384
PART_BYTES = 256 << 20
# What a worker holds at a time, in bytes of the inputs.
CHUNK_BYTES = 32 << 20
# Readers of parquet folders ignore names that begin with an underscore.
RECORD = "_onward.json"


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a file.

    Attributes:
        path: The file, as its file system names it.
        row_group: The number of the row group.
        start: The first row, counted in the row group.
        rows: The number of rows.
        chunk: The number of rows to hold at a time.
        output: The name of the file with the results.
    """

    path: str
    row_group: int
    start: int
    rows: int
    chunk: int
    output: str


@dataclass(frozen=True)
class Place:
    """A file or folder.

    Attributes:
        uri: As the user named it, absolute.
        path: As its file system names it.
    """

    uri: str
    path: str

    @property
    def files(self) -> pafs.FileSystem:
        """The file system."""
        return pafs.FileSystem.from_uri(self.uri)[0]


def place(named: str) -> Place:
    """Find the file system of a path or URI.

    Args:
        named: A local path, or the URI of a file or folder, such as s3://bucket/folder.

    Raises:
        UsageError: There is no such file system.
    """
    uri = named if "://" in named else Path(named).absolute().as_uri()
    try:
        _, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{printable(named)}: {first_line(error)}; use a local path or an s3:// address") from None
    return Place(uri, path)


def files_in(source: Place) -> list[str]:
    """List the parquet files at a place, in the order of their names.

    Raises:
        UsageError: There is none.
    """
    files = source.files
    try:
        info = files.get_file_info(source.path)
        if info.type == pafs.FileType.File:
            return [source.path]
        if info.type == pafs.FileType.NotFound:
            raise UsageError(f"{printable(source.uri)}: there is no such file or folder")
        found = files.get_file_info(pafs.FileSelector(source.path, recursive=True))
    except OSError as error:
        raise UsageError(f"{printable(source.uri)}: {first_line(error)}") from None
    names = [
        one.path
        for one in found
        if one.type == pafs.FileType.File
        and one.path.endswith(".parquet")
        and not any(part.startswith(("_", ".")) for part in posixpath.relpath(one.path, source.path).split("/"))
    ]
    if not names:
        raise UsageError(f"{printable(source.uri)}: contains no .parquet file")
    return sorted(names)


def divide(source: Place, path: str, read: list[str], batch: int) -> Iterator[Part]:
    """Divide a file into parts.

    Args:
        source: The place that contains the file.
        path: The file, as its file system names it.
        read: The columns that the model reads.
        batch: The number of samples in a batch.

    Raises:
        UsageError: It is not a parquet file, or it lacks a column.
    """
    try:
        with source.files.open_input_file(path) as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{printable(path)}: cannot be read as a parquet file: {first_line(error)}") from None
    names = metadata.schema.to_arrow_schema().names
    for column in read:
        if column not in names:
            raise UsageError(
                f"{printable(path)}: has no column {column!r} (--column INPUT=COLUMN names another); "
                f"it has {printable(', '.join(names))}"
            )
    within = posixpath.relpath(path, source.path) if path != source.path else posixpath.basename(path)
    label = f"{posixpath.splitext(posixpath.basename(path))[0]}-{hashlib.sha256(within.encode()).hexdigest()[:8]}"
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not group.num_rows:
            continue
        row_bytes = max(1, group.total_byte_size // group.num_rows)
        rows = max(batch, min(PART_ROWS, PART_BYTES // row_bytes))
        chunk = max(batch, min(rows, CHUNK_BYTES // row_bytes))
        for start in range(0, group.num_rows, rows):
            count = min(rows, group.num_rows - start)
            yield Part(path, number, start, count, chunk, f"{label}-{number:05d}-{start:09d}.parquet")


def adopt(target: Place, record: Mapping[str, Any]) -> set[str]:
    """Prepare the folder for the results.

    Args:
        target: The folder.
        record: What the results depend on: the version, its digest, the input files and the options.

    Returns:
        The names of the parts that an earlier run has finished.

    Raises:
        Refused: The folder contains results of another version or of other inputs, or other files.
    """
    files, path = target.files, posixpath.join(target.path, RECORD)
    files.create_dir(target.path, recursive=True)
    listed = files.get_file_info(pafs.FileSelector(target.path, allow_not_found=True))
    names = {posixpath.basename(one.path) for one in listed}
    if RECORD in names:
        with files.open_input_stream(path) as file:
            before = json.loads(file.read())
        for key, value in record.items():
            if before.get(key) != value:
                raise Refused(
                    f"{printable(target.uri)}: contains results of another run ({key}: {_short(before.get(key))}, now "
                    f"{_short(value)}): name another folder, or delete this one"
                )
        return {name for name in names if name.endswith(".parquet")}
    if any(not name.startswith(".") for name in names):
        raise Refused(f"{printable(target.uri)}: is not empty, and not from onward batch: name another folder")
    with files.open_output_stream(path) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    return set()


def record_of(
    source: Place, paths: list[str], stamp: Mapping[str, str], columns: Mapping[str, str], shared: Mapping[str, Any]
) -> dict[str, Any]:
    """What the results depend on.

    Args:
        source: The place of the inputs.
        paths: The input files, as their file system names them.
        stamp: The version.
        columns: The column of each input.
        shared: The values of the inputs that all samples share.
    """
    infos = source.files.get_file_info(paths)
    files = [[one.path, one.size, one.mtime_ns] for one in infos]
    return {**stamp, "columns": dict(columns), "shared": dict(shared), "inputs": files}


def _short(value: Any) -> str:
    return printable(str(value)[:80])
