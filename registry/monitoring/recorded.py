"""Files with recorded requests: `FOLDER/TARGET/TIME-SERVER.parquet`, one for each window of time and server.

A file is complete or does not exist. Its name contains a random part of the server's, so that several servers write to
one folder. Tensors are stored as raw bytes with dtype and shape; texts as JSON. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from onward.registry.errors import UsageError
from onward.registry.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]
SCHEMA = "1"
_NAME = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{16}\.parquet")
# What a killed process leaves of `write_atomically`.
_REMAINS = re.compile(r"\.\d{8}T\d{6}Z-[0-9a-f]{16}\.parquet\.[0-9a-f]{16}")
_ABANDONED_S = 3600.0
_TIME = "%Y%m%dT%H%M%SZ"
_TEXT = "text"
# Numbers and truth values; no objects, no dates.
_KINDS = "biuf"
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Tensor:
    """One input or output of a recorded request.

    Attributes:
        name: its name.
        dtype: NumPy's name of its type; "text" for texts.
        shape: its shape.
        data: its bytes; None if they were not kept.
        sha256: the digest of dtype, shape and bytes; "" if it was dropped.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | None = field(repr=False)
    sha256: str = ""

    def array(self) -> Array | None:
        """The values; None if they were not kept.

        Raises:
            ValueError: the bytes do not fit dtype and shape, or the dtype is not that of numbers.
        """
        if self.data is None:
            return None
        if self.dtype == _TEXT:
            values = json.loads(self.data)
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise ValueError(f"{self.name} is not a list of texts")
            return np.array(values, dtype=object).reshape(self.shape)
        dtype = np.dtype(self.dtype)
        if dtype.kind not in _KINDS:
            raise ValueError(f"{self.name} has the dtype {self.dtype}, which is none of numbers")
        return np.frombuffer(self.data, dtype).reshape(self.shape)


@dataclass(frozen=True)
class Row:
    """One recorded request; the fields are those of registry/serve/observer.py's Observation.

    Attributes:
        target: the target of the version that computed, such as "cnn@production".
        version: the version.
        sha256: its digest.
        entry: the number of its log entry; 0 for a file or a version.
        host: the fingerprint of the host and the provider (registry/host/fingerprint.py).
        request: the request's identifier.
        arrived: when, in seconds since 1970.
        latency_us: time from the arrival to the answer, in µs.
        queue_us: time before the model ran, in µs.
        compute_us: time of the model's run, in µs.
        outcome: how it ended.
        cause: "live", "canary" or "shadow".
        size: the number of elements of all inputs.
        inputs: the inputs.
        outputs: the outputs; empty without an answer.
    """

    target: str
    version: str
    sha256: str
    entry: int
    host: str
    request: str
    arrived: float
    latency_us: float
    queue_us: float
    compute_us: float
    outcome: str
    cause: str
    size: int
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


def to_tensor(name: str, value: Array, keep: str, most_bytes: int) -> Tensor:
    """Convert an array to what is recorded of it.

    Args:
        name: its name.
        value: the array.
        keep: "keep", "hash" or "drop".
        most_bytes: a larger array is hashed instead of kept.
    """
    value = np.asarray(value)
    shape = tuple(int(size) for size in value.shape)
    text = value.dtype.kind not in _KINDS
    dtype = _TEXT if text else value.dtype.newbyteorder("<").str
    if keep == "drop":
        return Tensor(name, dtype, shape, None)
    if text:
        data = json.dumps([_as_text(one) for one in value.ravel().tolist()]).encode()
    else:
        data = np.ascontiguousarray(value, np.dtype(dtype)).tobytes()
    digest = hashlib.sha256(f"{dtype} {shape} ".encode() + data).hexdigest()
    return Tensor(name, dtype, shape, data if keep == "keep" and len(data) <= most_bytes else None, digest)


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def folder_of(folder: Path, target: str) -> Path:
    """The folder with the requests of a target. Characters that are special in a path are percent-quoted.

    Args:
        folder: the folder of all recorded requests.
        target: the target.
    """
    name = quote(target, safe="@").replace(".", "%2E")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(target.encode()).hexdigest()[:16]}"
    return folder / name


def write(folder: Path, target: str, rows: Sequence[Row], began: float, server: str) -> Path:
    """Write a window's rows to a file of their own.

    Args:
        folder: the folder of all recorded requests.
        target: the target of the rows.
        rows: the rows, at least one.
        began: when the window began, in seconds since 1970.
        server: 16 hexadecimal digits that no other server has.

    Returns:
        the file.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {name: [] for name in _schema().names}
    for row in sorted(rows, key=lambda row: row.arrived):
        for name in columns:
            value = getattr(row, name)
            columns[name].append([vars(tensor) for tensor in value] if name in ("inputs", "outputs") else value)
    table = pa.table(columns, schema=_schema())
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    place = folder_of(folder, target) / f"{datetime.fromtimestamp(began, UTC):{_TIME}}-{server}.parquet"
    write_atomically(place, sink.getvalue().to_pybytes())
    return place


def read(folder: Path, target: str, since: float = 0.0, tensors: bool = True) -> tuple[list[Row], list[str]]:
    """Read the recorded requests of a target.

    Args:
        folder: the folder of all recorded requests.
        target: the target.
        since: only requests that arrived at this time or later, in seconds since 1970.
        tensors: whether inputs and outputs are read.

    Returns:
        the requests in the order of time, and a sentence about each file that cannot be read.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; `onward serve --record {folder}` records requests there")
    rows: list[Row] = []
    problems: list[str] = []
    for file in _files(folder_of(folder, target)):
        try:
            rows += [row for row in _read(file, tensors) if row.arrived >= since and row.target == target]
        except FileNotFoundError:  # another process deleted it meanwhile, because it was too old
            continue
        except Exception as error:  # pyarrow's exceptions share no base but this
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            problems.append(f"{file} cannot be read and is left out: {reason}")
    return sorted(rows, key=lambda row: row.arrived), problems


def targets(folder: Path) -> list[str]:
    """The names of the subfolders with recorded requests, for messages."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and any(_files(path)))


def expire(folder: Path, hours: float, most_bytes: int, now: float) -> int:
    """Delete files that are too old, and then the oldest ones until the rest is small enough.

    Only files with names of recorded requests are deleted. Two servers may do this at the same time.

    Args:
        folder: the folder of all recorded requests.
        hours: the age after which a file is deleted.
        most_bytes: the largest size of all files together.
        now: the time, in seconds since 1970.

    Returns:
        the number of deleted files.
    """
    found: list[tuple[float, int, Path]] = []
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        for file in subfolder.iterdir():
            try:
                state = file.stat()
            except FileNotFoundError:
                continue
            if _NAME.fullmatch(file.name):
                found.append((began(file), state.st_size, file))
            elif _REMAINS.fullmatch(file.name) and now - state.st_mtime > _ABANDONED_S:
                file.unlink(missing_ok=True)
    total, deleted = sum(size for _, size, _ in found), 0
    for time, size, file in sorted(found):
        if now - time <= hours * 3600 and total <= most_bytes:
            break
        file.unlink(missing_ok=True)
        total -= size
        deleted += 1
    return deleted


def began(file: Path) -> float:
    """When the window of a file began, in seconds since 1970, from its name."""
    return datetime.strptime(file.name.partition("-")[0], _TIME).replace(tzinfo=UTC).timestamp()


def arrays(tensors: Iterable[Tensor]) -> dict[str, Array]:
    """The values of the tensors that were kept, by name."""
    found = ((tensor.name, tensor.array()) for tensor in tensors)
    return {name: array for name, array in found if array is not None}


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (file for file in sorted(folder.iterdir()) if _NAME.fullmatch(file.name))


def _schema() -> pa.Schema:
    import pyarrow as pa

    tensor = pa.struct(
        [
            ("name", pa.string()),
            ("dtype", pa.string()),
            ("shape", pa.list_(pa.int64())),
            ("data", pa.binary()),
            ("sha256", pa.string()),
        ]
    )
    texts = ("target", "version", "sha256", "host", "request", "outcome", "cause")
    numbers = ("arrived", "latency_us", "queue_us", "compute_us")
    fields = [
        *((name, pa.string()) for name in texts),
        *((name, pa.float64()) for name in numbers),
        ("entry", pa.int64()),
        ("size", pa.int64()),
        ("inputs", pa.list_(tensor)),
        ("outputs", pa.list_(tensor)),
    ]
    return pa.schema(fields, metadata={"onward": SCHEMA})


def _read(file: Path, tensors: bool) -> list[Row]:
    from pyarrow import parquet

    names = [name for name in _schema().names if tensors or name not in ("inputs", "outputs")]
    table = parquet.read_table(file, columns=names, partitioning=None)
    if (table.schema.metadata or {}).get(b"onward") != SCHEMA.encode():
        raise ValueError("Onward did not write it, or another version of Onward did")
    rows = [_row(found) for found in table.to_pylist()]
    for row in rows:
        arrays((*row.inputs, *row.outputs))  # a tensor that cannot be decoded makes the file unreadable
    return rows


def _row(found: Mapping[str, Any]) -> Row:
    values = dict(found)
    for name in ("inputs", "outputs"):
        values[name] = tuple(Tensor(**{**one, "shape": tuple(one["shape"])}) for one in values.get(name) or ())
    if any(value is None for value in values.values()):
        raise ValueError("a value is missing")
    return Row(**values)
