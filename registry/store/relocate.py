"""Detect that the folder of an embedded store was moved or copied, and correct the recorded file locations.

MLflow stores absolute locations (`file:///home/ann/onward/mlartifacts/...`), and would resolve relative ones against
the working directory of each process. After `mv`, MLflow therefore finds no files. After `cp -r`, the copy would write
into the original's folder, and `mlflow gc` in the copy would delete the original's files. `find` detects both cases
from the database alone, within a millisecond. `move` rewrites the locations in one transaction.
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
from onward.registry.store.reach import open_sqlite
from onward.registry.store.sqlite_reader import REVISION
from onward.registry.uri import sqlite_file

# All columns that contain a location of files, in the tables of REVISION. In trace_tags, only some rows contain one.
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
# The columns whose locations contain files. If all of these folders are missing beside the database, only the database
# was moved.
_WITH_FILES = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
_LISTED = 5


@dataclass(frozen=True)
class Elsewhere:
    """A store whose recorded locations do not match the location of its database.

    Attributes:
        here: the folder that contains the database.
        recorded: the other folders that the database names as the location of its files.
    """

    here: Path
    recorded: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the store in {self.here} was moved or copied: it still looks for its files in "
            f"{', '.join(self.recorded)}; `onward store move` makes it use the files beside it"
        )


@dataclass(frozen=True)
class Moved:
    """What `move` rewrote, or would rewrite in a dry run.

    Attributes:
        here: the folder that the locations point to now.
        recorded: the folders that they pointed to before.
        rewritten: the number of changed locations in each column (`table.column`).
        dry_run: whether nothing was written.
    """

    here: Path
    recorded: tuple[str, ...]
    rewritten: dict[str, int]
    dry_run: bool


def find(uri: str | None = None) -> Elsewhere | None:
    """Find out whether the store's files are recorded in another folder than its database's.

    Args:
        uri: the store's URI; None for the store in use.

    Returns:
        the folders, or None if the files are beside the database or the store is not an SQLite file.

    Raises:
        UsageError: MLFLOW_TRACKING_URI is not set, and there is no checkout.
    """
    database = sqlite_file(uri or tracking_uri())
    if database is None or not database.is_file():
        return None
    here = database.resolve().parent
    try:
        with closing(open_sqlite(database, timeout_s=5)) as tables:
            recorded = _recorded(tables, here)
    except sqlite3.Error:
        return None  # these are not the known tables of MLflow: MLflow itself reports what is wrong with them
    return Elsewhere(here, recorded) if recorded else None


def require_here(uri: str | None = None) -> None:
    """Check that the store's files are beside its database. Call this before files are read or written.

    Args:
        uri: the store's URI; None for the store in use.

    Raises:
        UsageError: the database was moved or copied; the message says what to do.
    """
    elsewhere = find(uri)
    if elsewhere is not None:
        raise UsageError(f"{elsewhere}; nothing was read or written")


def move(*, dry_run: bool = False) -> Moved:
    """Make the embedded store use the files beside its database.

    Only the database is written, so the original of a copied store stays unchanged. An interrupted call changes
    nothing, and a second call has nothing left to change.

    Args:
        dry_run: whether to report the changes without making them.

    Raises:
        UsageError: the store is not an SQLite file, it does not exist, or its tables are from another MLflow version.
        Refused: files that the database names are not beside it.
        StoreUnreachable: another process is writing to the database, or it cannot be written.
    """
    database = sqlite_file(tracking_uri())
    if database is None:
        raise UsageError(
            "only the embedded store (mlflow.db) can be moved: MLFLOW_TRACKING_URI names another kind of store, "
            "which manages its own files"
        )
    if not database.is_file():
        raise UsageError(f"there is no store to move: {database} does not exist")
    here = database.resolve().parent
    try:
        with closing(open_sqlite(database, timeout_s=10, mode="ro" if dry_run else "rw")) as tables:
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
            f"{database} was written by another version of MLflow (its revision is {found or 'none'}, Onward knows "
            f"{REVISION}): nothing was changed. Move the folder back, or install the MLflow of constraints.txt and, if "
            "the store is older than that, run `mlflow db upgrade` on it"
        )


def _changes(
    tables: sqlite3.Connection, here: Path, recorded: tuple[str, ...]
) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """The rows to change and their new values, by table and column."""
    return {
        (table, column): [
            (number, moved)
            for number, location in tables.execute(f"SELECT rowid, {column} FROM {table} {condition}")
            if (moved := _moved(location, recorded, here)) is not None
        ]
        for table, column, condition in _COLUMNS
    }


def _moved(location: str | None, recorded: tuple[str, ...], here: Path) -> str | None:
    """The location with its recorded folder replaced by `here`; None if it is in no recorded folder."""
    path = to_path(location)
    if location is None or path is None:
        return None
    # The longest first: one folder may contain another, and then the inner one is meant.
    for folder in sorted(recorded, key=len, reverse=True):
        if path == folder or path.startswith(f"{folder}/"):
            moved = f"{here}{path[len(folder) :]}"
            return to_uri(moved) if location.startswith("file:") else moved
    return None


def _require_files(tables: sqlite3.Connection, here: Path, recorded: tuple[str, ...]) -> None:
    """Check that no files would be left behind. Files that are in neither folder were lost earlier."""
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
    left = [old for old, exists in behind if exists]
    if left or (behind and not beside):
        listed = "".join(f"\n  {old}" for old in left[:_LISTED])
        more = f"\n  and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        still = f". These are still there:{listed}{more}" if left else ""
        raise Refused(
            f"nothing was changed: {len(left or behind)} folders of the store are not beside its database. Copy "
            f"{ARTIFACTS}/ of {', '.join(recorded)} to {here / ARTIFACTS}, then run this again{still}"
        )
    shared = (here / ARTIFACTS).resolve()
    for folder in recorded:
        if not shared.is_relative_to(here) and (Path(folder) / ARTIFACTS).resolve() == shared:
            raise Refused(
                f"nothing was changed: {here / ARTIFACTS} is a link to {shared}, and the store in {folder} also uses "
                "that folder. Replace the link with a copy of the folder, then run this again"
            )


def _recorded(tables: sqlite3.Connection, here: Path) -> tuple[str, ...]:
    """The folders, other than `here`, that the experiments name as the location of their files.

    Only locations of the form that connection.ensure_experiment creates count. Users chose all other locations on
    purpose, so they stay unchanged.
    """
    folders = set()
    for name, location in tables.execute("SELECT name, artifact_location FROM experiments"):
        path, own = to_path(location) or "", f"/{ARTIFACTS}/{name}"
        if path.endswith(own):
            folders.add(path.removesuffix(own) or "/")
    # The recorded path may be a link to `here`.
    return tuple(sorted(folder for folder in folders if folder != str(here) and os.path.realpath(folder) != str(here)))


def to_path(location: str | None) -> str | None:
    """The local path of a location that is a file: URI or an absolute path; None for any other location."""
    if not location:
        return None
    if location.startswith("/"):
        return location
    found = re.fullmatch(r"file:(?://(?:localhost)?)?(/[^?#]*)", location)
    return os.fsdecode(unquote_to_bytes(found[1])) if found else None


def to_uri(path: str) -> str:
    """The file: URI of an absolute path, in the form of Path.as_uri."""
    return f"file://{quote(os.fsencode(path))}"
