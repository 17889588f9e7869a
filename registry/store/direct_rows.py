"""Read rows without MLflow: from the embedded store's SQLite file, or from a server with plain HTTP requests.

Importing MLflow and opening a store with it takes seconds, and MLflow's SQLite store needs packages that a serving host
does without. MLflow's tables are not a public interface, so they are read only in the revision that
registry/store/sqlite_reader.py knows. Where a setting is in use that only MLflow's client handles, `open_rows` returns
None, and the caller uses that client.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from onward.registry.store import reach, sqlite_reader
from onward.registry.store.connection import reachable
from onward.registry.store.reach import open_sqlite
from onward.registry.store.rest_api import Api
from onward.registry.store.rows import PROMPT, Row, Rows
from onward.registry.store.schema import Version
from onward.registry.uri import sqlite_file

# Settings that only MLflow's client handles: other ways to log in, and workspaces.
_ONLY_MLFLOW = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")
_CREDENTIALS_FILES = ("~/.mlflow/credentials", "~/.netrc", "~/_netrc", "$NETRC")
_COLUMNS = "name, version, creation_time, current_stage, source, run_link"
_HERE = "workspace = 'default' AND name = ? AND current_stage <> 'Deleted_Internal'"
_PROMPTS = f"""
    SELECT version FROM model_version_tags
    WHERE workspace = 'default' AND name = ? AND key = '{PROMPT}' AND lower(value) = 'true' LIMIT 1
"""


def open_rows(uri: str) -> Rows | None:
    """Open a store for reading without MLflow.

    Args:
        uri: the store's URI, including credentials; connection.checked has checked it.

    Returns:
        None if the store cannot be read without MLflow.
    """
    if any(os.environ.get(name) for name in _ONLY_MLFLOW):
        return None
    file = sqlite_file(uri)
    if file is not None:
        return SqliteRows(file) if "?" not in uri and sqlite_reader.is_known(file) else None
    if not reach.is_server(uri) or any(
        Path(os.path.expandvars(name)).expanduser().is_file() for name in _CREDENTIALS_FILES
    ):
        return None
    if any(True for _ in entry_points(group="mlflow.request_header_provider")):
        return None
    return ServerRows(uri)


class SqliteRows(Rows):
    """Reads the file of an embedded store.

    Args:
        file: the file, with the tables of sqlite_reader.REVISION.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def page(self, registered: str, below: int, size: int) -> list[Version]:
        """See Rows.page. Like MLflow's search, it finds nothing if the registered model is marked as a prompt."""
        if self.prompt(registered) is not None:
            return []
        wanted = f"{_HERE} AND version < ? ORDER BY version DESC LIMIT ?"
        return self._read(wanted, (registered, below or 2**63 - 1, size))

    def get(self, registered: str, number: int) -> Version | None:
        """See Rows.get."""
        return next(iter(self._read(f"{_HERE} AND version = ?", (registered, number))), None)

    def prompt(self, registered: str) -> int | None:
        """See Rows.prompt."""
        with reachable(), closing(open_sqlite(self._file, timeout_s=5)) as tables:
            found = tables.execute(_PROMPTS, (registered,)).fetchone()
        return None if found is None else int(found[0])

    def _read(self, condition: str, values: tuple[str | int, ...]) -> list[Version]:
        with reachable(), closing(open_sqlite(self._file, timeout_s=5)) as tables:
            tables.execute("BEGIN")  # rows and tags of the same state
            found = tables.execute(f"SELECT {_COLUMNS} FROM model_versions WHERE {condition}", values).fetchall()
            tags = _tags(tables, str(values[0]), [row[1] for row in found])
        return [_local_row(row, tags[row[1]]) for row in found]


def _local_row(row: tuple[Any, ...], tags: dict[str, str]) -> Row:
    """A version as the columns _COLUMNS give it."""
    name, version, created, stage, source, link = row
    return Row(name, version, created, stage, source, link, tags)


def _tags(tables: sqlite3.Connection, registered: str, numbers: Iterable[int]) -> Mapping[int, dict[str, str]]:
    tags: defaultdict[int, dict[str, str]] = defaultdict(dict)
    query = "SELECT key, value FROM model_version_tags WHERE workspace = 'default' AND name = ? AND version = ?"
    for number in numbers:
        tags[number] = dict(tables.execute(query, (registered, number)))
    return tags


class ServerRows(Rows):
    """Reads a server with MLflow's REST API.

    Args:
        uri: the server's address.
    """

    def __init__(self, uri: str) -> None:
        self._api = Api(uri)

    def page(self, registered: str, below: int, size: int) -> list[Version]:
        """See Rows.page."""
        wanted = f"name = '{registered}'" + (f" and version_number < {below}" if below else "")
        return self._search(wanted, size, order_by="version_number DESC")

    def get(self, registered: str, number: int) -> Version | None:
        """See Rows.get."""
        with reachable():
            found = self._api.get("model-versions/get", name=registered, version=str(number))
            return None if found is None else _row(found["model_version"])

    def prompt(self, registered: str) -> int | None:
        """See Rows.prompt."""
        found = self._search(f"name = '{registered}' and tags.`{PROMPT}` = 'true'", 1)
        return int(found[0].version) if found else None

    def _search(self, wanted: str, size: int, **more: str) -> list[Version]:
        with reachable():
            found = self._api.get("model-versions/search", filter=wanted, max_results=str(size), **more) or {}
            return [_row(row) for row in found.get("model_versions", ())]


def _row(document: Mapping[str, Any]) -> Row:
    """A version as the REST API gives it.

    Raises:
        ValueError: the answer is not from an MLflow server.
    """
    try:
        return Row(
            str(document["name"]),
            int(document["version"]),
            int(document.get("creation_timestamp", 0)),
            document.get("current_stage"),
            document.get("source"),
            document.get("run_link"),
            {str(tag["key"]): str(tag.get("value", "")) for tag in document.get("tags", ())},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"Failed to parse a version: {type(error).__name__}: {error}") from None
