"""Where the embedded store's files are recorded to be, and what to do after its folder was moved or copied.

MLflow keeps absolute locations (`file:///home/ann/onward/mlartifacts/...`), and resolves relative ones against the
working directory of whoever asks. So after `mv`, no file is found any more; and after `cp -r`, the copy would write
into the original's folder, and `mlflow gc` there would delete the original's files. `find` notices both, from the
database alone and within a millisecond. `move` rewrites the locations, in one transaction.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from onward.registry.errors import Refused, StoreUnreachable, UsageError
from onward.registry.store.connection import ARTIFACTS, tracking_uri
from onward.registry.store.sqlite_reader import REVISION
from onward.registry.uri import sqlite_file

# Every column that holds a location of files, in the tables of REVISION; of trace_tags, those rows alone that do.
_COLUMNS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("trace_tags", "value", "WHERE key = 'mlflow.artifactLocation'"),
    ("workspaces", "default_artifact_root", ""),
    ("workspaces", "trace_archival_location", ""),
)
# Of these, what holds files of its own: with all of them missing beside the database, they were left behind.
_WITH_FILES = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
_LISTED = 5


@dataclass(frozen=True)
class Elsewhere:
    """The folder that holds the database, and the other folders that it says its files are in."""

    here: Path
    recorded: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the store in {self.here} was moved or copied: it says that its files are in {', '.join(self.recorded)}; "
            "`onward store move` makes it use those beside it"
        )


@dataclass(frozen=True)
class Moved:
    """What `move` rewrote, or would: how many locations in each column, from which folders to which."""

    here: Path
    recorded: tuple[str, ...]
    rewritten: dict[str, int]
    dry_run: bool


def find(uri: str | None = None) -> Elsewhere | None:
    """Where else the store in use says its files are; None where they are beside it, or it is no SQLite file.

    Raises:
        UsageError: no store is named, and there is no checkout to have one.
    """
    database = sqlite_file(uri or tracking_uri())
    if database is None or not database.is_file():
        return None
    here = database.resolve().parent
    address = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=5)) as tables:
            recorded = _recorded(tables, here)
    except sqlite3.Error:
        return None  # no tables of MLflow's that are known: MLflow itself says what is wrong with them
    return Elsewhere(here, recorded) if recorded else None


def require_here(uri: str | None = None) -> None:
    """Make sure that the store's files are where its database is, before they are read or written.

    Raises:
        UsageError: the database was moved or copied; the message says what to do.
    """
    elsewhere = find(uri)
    if elsewhere is not None:
        raise UsageError(f"{elsewhere}; nothing was read or written")


def move(*, dry_run: bool = False) -> Moved:
    """Make the embedded store use the files beside its database, wherever they were recorded to be before.

    Nothing outside of the database is written, so that what a copy was made from stays as it is. A second call changes
    nothing, and one that is interrupted changes nothing at all.

    Raises:
        UsageError: the store is no SQLite file, or there is none, or its tables are those of another MLflow.
        Refused: files that the store knows are not beside the database.
        StoreUnreachable: another process is writing to the database, or it cannot be written.
    """
    database = sqlite_file(tracking_uri())
    if database is None:
        raise UsageError("only the embedded store (mlflow.db) can be moved: a server keeps its files where it wants")
    if not database.is_file():
        raise UsageError(f"there is no store to move: {database} does not exist")
    here = database.resolve().parent
    address = f"{database.absolute().as_uri()}?mode={'ro' if dry_run else 'rw'}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=10, isolation_level=None)) as tables:
            tables.execute("BEGIN" if dry_run else "BEGIN IMMEDIATE")
            _require_revision(tables, database)
            recorded = _recorded(tables, here)
            _require_files(tables, here, recorded)
            changes = _changes(tables, here, recorded)
            rewritten = {f"{table}.{column}": len(rows) for (table, column), rows in changes.items() if rows}
            if not dry_run:
                for (table, column), rows in changes.items():
                    tables.executemany(
                        f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
                        [(location, number) for number, location in rows],
                    )
                tables.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreUnreachable(f"{database} could not be rewritten: {error}; nothing was changed. Try again") from error
    return Moved(here, recorded, rewritten, dry_run)


def _require_revision(tables: sqlite3.Connection, database: Path) -> None:
    try:
        found = tables.execute("SELECT group_concat(version_num) FROM alembic_version").fetchone()[0]
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        found = None
    if found != REVISION:
        raise UsageError(
            f"{database} has tables of another MLflow (revision {found or 'none'}, known is {REVISION}): nothing was "
            "changed. Move the folder back, or install the MLflow of constraints.txt and, if the store is older than "
            "that, run `mlflow db upgrade` on it"
        )


def _changes(
    tables: sqlite3.Connection, here: Path, recorded: tuple[str, ...]
) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """By table and column, the rows to change and what goes there."""
    return {
        (table, column): [
            (number, moved)
            for number, location in tables.execute(f"SELECT rowid, {column} FROM {table} {condition}")
            if (moved := _moved(location, recorded, here)) is not None
        ]
        for table, column, condition in _COLUMNS
    }


def _moved(location: str | None, recorded: tuple[str, ...], here: Path) -> str | None:
    """A location below one of the recorded folders, as it is below `here`; None for any other."""
    path = to_path(location)
    if location is None or path is None:
        return None
    # The longest first: one may be below another, and then is the one that is meant.
    for folder in sorted(recorded, key=len, reverse=True):
        if path == folder or path.startswith(f"{folder}/"):
            moved = f"{here}{path[len(folder) :]}"
            return to_uri(moved) if location.startswith("file:") else moved
    return None


def _require_files(tables: sqlite3.Connection, here: Path, recorded: tuple[str, ...]) -> None:
    """Make sure that no files are left behind. Those that are in neither place were lost before."""
    beside, behind = 0, []
    for table, column in _WITH_FILES:
        for (location,) in tables.execute(f"SELECT {column} FROM {table}"):
            old, moved = to_path(location), to_path(_moved(location, recorded, here))
            if old is None or moved is None:
                continue
            if os.path.isdir(moved):
                beside += 1
            elif table == "logged_models" or os.path.isdir(old):
                behind.append((old, os.path.isdir(old)))
    left = [old for old, there in behind if there]
    if left or (behind and not beside):
        listed = "".join(f"\n  {old}" for old in left[:_LISTED])
        more = f"\n  and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        still = f". These are still there:{listed}{more}" if left else ""
        raise Refused(
            f"nothing was changed: {len(left or behind)} folders that the store knows are not beside it. Copy "
            f"{ARTIFACTS}/ of {', '.join(recorded)} to {here / ARTIFACTS}, then run this again{still}"
        )
    shared = (here / ARTIFACTS).resolve()
    for folder in recorded:
        if not shared.is_relative_to(here) and (Path(folder) / ARTIFACTS).resolve() == shared:
            raise Refused(
                f"nothing was changed: {here / ARTIFACTS} is a link to {shared}, which the store in {folder} uses, "
                "too. Put a copy of that folder in place of the link, then run this again"
            )


def _recorded(tables: sqlite3.Connection, here: Path) -> tuple[str, ...]:
    """The folders besides `here` that hold the files of experiments, where connection.ensure_experiment put them. An
    experiment with its files anywhere else was made by somebody with another wish, and is left alone."""
    folders = set()
    for name, location in tables.execute("SELECT name, artifact_location FROM experiments"):
        path, own = to_path(location) or "", f"/{ARTIFACTS}/{name}"
        if path.endswith(own):
            folders.add(path.removesuffix(own) or "/")
    # A folder may be recorded under the name of a link to it.
    return tuple(sorted(folder for folder in folders if folder != str(here) and os.path.realpath(folder) != str(here)))


def to_path(location: str | None) -> str | None:
    """The local path that a location is, a file: URI or a path; None where it is anything else."""
    if not location:
        return None
    if location.startswith("/"):
        return location
    found = re.fullmatch(r"file:(?://(?:localhost)?)?(/[^?#]*)", location)
    return os.fsdecode(unquote_to_bytes(found[1])) if found else None


def to_uri(path: str) -> str:
    """The file: URI of an absolute path, as Path.as_uri writes it."""
    return f"file://{quote(os.fsencode(path))}"
