"""What `onward status` asks of the embedded store, read from its SQLite file: in a few milliseconds, where importing
MLflow and opening the store with it takes seconds.

MLflow promises nothing of its tables. So only tables of the one revision that this was written for are read, with
nothing written and nothing locked for longer than that; for any other store `read` gives None, and MLflow is asked.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from registry.connection import tracking_uri
from registry.layout import Overview

# Of MLflow 3.17.2, by its table alembic_version; a test compares it with that of a store that MLflow makes.
REVISION = "dc11669786a5"
_PREFIX = "sqlite:///"

_ALIASES = "SELECT name, alias, version FROM registered_model_aliases WHERE workspace = 'default'"
# Prompts are registered models to MLflow, and left out by its search, too.
_MODELS = """
    SELECT name FROM registered_models WHERE workspace = 'default' AND name NOT IN (
        SELECT name FROM registered_model_tags
        WHERE workspace = 'default' AND key = 'mlflow.prompt.is_prompt' AND lower(value) = 'true')
"""
_NEWEST = """
    SELECT name, max(version) AS version, creation_time, current_stage, source FROM model_versions
    WHERE workspace = 'default' AND current_stage <> 'Deleted_Internal' GROUP BY name, current_stage
"""
_TAGS = f"""
    SELECT tag.name, tag.version, tag.key, tag.value FROM model_version_tags AS tag JOIN ({_NEWEST}) AS newest
    ON tag.workspace = 'default' AND tag.name = newest.name AND tag.version = newest.version
"""


@dataclass(frozen=True)
class Row:
    """A layout.Version, as far as a glance goes."""

    name: str
    version: int
    creation_timestamp: int
    current_stage: str
    source: str
    tags: Mapping[str, str]


def read() -> dict[str, Overview] | None:
    """The newest versions and the aliases of all registered models of the store in use, or None where the store is not
    an SQLite file whose tables are known, or its file cannot be read just now.

    Raises:
        UsageError: no store is named, and there is no checkout to have one.
    """
    uri = tracking_uri()
    elsewhere = any(os.environ.get(name) for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_WORKSPACE"))
    if elsewhere or not uri.startswith(_PREFIX) or "?" in uri:
        return None
    path = Path(uri.removeprefix(_PREFIX)).absolute()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1, isolation_level=None)) as tables:
            tables.execute("BEGIN")  # all that is read is of one moment
            return _read(tables) if _revision(tables) == REVISION else None
    except sqlite3.Error:
        return None


def _revision(tables: sqlite3.Connection) -> str:
    return str(tables.execute("SELECT group_concat(version_num) FROM alembic_version").fetchone()[0])


def _read(tables: sqlite3.Connection) -> dict[str, Overview]:
    aliases: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, alias, version in tables.execute(_ALIASES):
        aliases[name][alias] = version
    tags: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for name, version, key, value in tables.execute(_TAGS):
        tags[name, version][key] = value
    newest: defaultdict[str, list[Row]] = defaultdict(list)
    for name, version, created, stage, source in tables.execute(f"{_NEWEST} ORDER BY version DESC"):
        newest[name].append(Row(name, version, created, stage, source, tags[name, version]))
    return {name: Overview(tuple(newest[name]), aliases[name]) for (name,) in tables.execute(_MODELS)}
