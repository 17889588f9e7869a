"""Read the embedded store's SQLite file directly, for `onward status` and `dvc repro`.

This takes a few milliseconds, while importing MLflow and opening the store with it takes seconds. MLflow's tables are
not a public interface. So this module never writes, reads the registry's tables only in the one revision that it was
written for, and otherwise returns None. The caller then uses MLflow.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from onward.registry.store.connection import tracking_uri
from onward.registry.store.monitor_tags import ALARM, ENVIRONMENT, MODEL, MONITOR, ROLE, Recorded, by_environment
from onward.registry.store.newest_run import MARK, to_reason
from onward.registry.store.reach import open_sqlite
from onward.registry.store.rows import Row
from onward.registry.store.schema import Overview
from onward.registry.uri import sqlite_file

Answer = TypeVar("Answer")

# The revision in the table alembic_version of MLflow 3.17.2. A test compares it with a store that MLflow creates.
REVISION = "dc11669786a5"

_ALIASES = "SELECT name, alias, version FROM registered_model_aliases WHERE workspace = 'default'"
_MODEL_TAGS = "SELECT name, key, value FROM registered_model_tags WHERE workspace = 'default'"
# MLflow stores prompts as registered models. Like MLflow's search, this query leaves them out.
_MODELS = """
    SELECT name FROM registered_models WHERE workspace = 'default' AND name NOT IN (
        SELECT name FROM registered_model_tags
        WHERE workspace = 'default' AND key = 'mlflow.prompt.is_prompt' AND lower(value) = 'true')
"""
_NEWEST = """
    SELECT name, max(version) AS version, creation_time, current_stage, source, run_link FROM model_versions
    WHERE workspace = 'default' AND current_stage <> 'Deleted_Internal' GROUP BY name, current_stage
"""
_TAGS = f"""
    SELECT tag.name, tag.version, tag.key, tag.value FROM model_version_tags AS tag JOIN ({_NEWEST}) AS newest
    ON tag.workspace = 'default' AND tag.name = newest.name AND tag.version = newest.version
"""
# The same runs as registry/store/newest_run.py finds through MLflow.
_FAILED = f"""
    SELECT model.value, reason.value FROM tags AS newest
    JOIN runs ON runs.run_uuid = newest.run_uuid AND runs.lifecycle_stage = 'active'
    JOIN experiments AS e ON e.experiment_id = runs.experiment_id AND e.lifecycle_stage = 'active'
        AND e.workspace = 'default'
    JOIN tags AS role ON role.key = 'onward.role' AND role.run_uuid = newest.run_uuid AND role.value = 'model'
    JOIN tags AS status ON status.key = 'onward.status' AND status.run_uuid = newest.run_uuid
        AND status.value = 'failed'
    JOIN tags AS model ON model.key = 'onward.model' AND model.run_uuid = newest.run_uuid
    LEFT JOIN tags AS reason ON reason.key = 'onward.reason' AND reason.run_uuid = newest.run_uuid
    WHERE newest.key = '{MARK}' AND newest.value = 'true' ORDER BY runs.start_time
"""
# The same runs as registry/store/monitor_runs.py finds through MLflow.
_ALARMS = f"""
    SELECT environment.value, model.value, alarm.key, alarm.value FROM tags AS alarm
    JOIN runs ON runs.run_uuid = alarm.run_uuid AND runs.lifecycle_stage = 'active'
    JOIN experiments AS e ON e.experiment_id = runs.experiment_id AND e.lifecycle_stage = 'active'
        AND e.workspace = 'default'
    JOIN tags AS role ON role.key = '{ROLE}' AND role.run_uuid = alarm.run_uuid AND role.value = '{MONITOR}'
    JOIN tags AS model ON model.key = '{MODEL}' AND model.run_uuid = alarm.run_uuid
    JOIN tags AS environment ON environment.key = '{ENVIRONMENT}' AND environment.run_uuid = alarm.run_uuid
    WHERE substr(alarm.key, 1, {len(ALARM)}) = '{ALARM}' ORDER BY runs.start_time, alarm.key
"""


def read() -> dict[str, Overview] | None:
    """The newest versions and the aliases of all registered models of the store in use.

    Returns:
        None if the store is not an SQLite file with the known tables, or its file cannot be read at the moment.

    Raises:
        UsageError: MLFLOW_TRACKING_URI is not set, and there is no checkout.
    """
    return _query(_overviews)


def failures() -> dict[str, str] | None:
    """The models whose newest pipeline run failed, and the reason for each.

    Returns:
        None in the same cases as `read`.

    Raises:
        UsageError: in the same cases as `read`.
    """
    return _query(_failed)


def alarms() -> dict[tuple[str, str], tuple[Recorded, ...]] | None:
    """The monitor's alarms by environment and model.

    Returns:
        None in the same cases as `read`.

    Raises:
        UsageError: in the same cases as `read`.
    """
    return _query(_alarms)


def _query(function: Callable[[sqlite3.Connection], Answer]) -> Answer | None:
    """The result of a function that reads the tables; None if they cannot be read."""
    uri = tracking_uri()
    elsewhere = any(os.environ.get(name) for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_WORKSPACE"))
    file = sqlite_file(uri)
    if elsewhere or file is None or "?" in uri:
        return None
    try:
        with closing(open_sqlite(file, timeout_s=1)) as tables:
            tables.execute("BEGIN")  # all queries read the same state
            return function(tables) if _revision(tables) == REVISION else None
    except sqlite3.Error:
        return None


def is_known(file: Path) -> bool:
    """Whether an SQLite file has the tables that this module was written for.

    Args:
        file: the file.
    """
    try:
        with closing(open_sqlite(file, timeout_s=1)) as tables:
            return _revision(tables) == REVISION
    except sqlite3.Error:
        return False


def experiment(name: str) -> tuple[str, str] | None:
    """Id and creation time of an active experiment.

    Args:
        name: the experiment's name.

    Returns:
        None if the store is not an SQLite file, or has no such experiment.
    """
    file = sqlite_file(tracking_uri())
    if file is None or not file.is_file():
        return None
    query = "SELECT experiment_id, creation_time FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
    try:
        with closing(open_sqlite(file, timeout_s=5)) as tables:
            row = tables.execute(query, (name,)).fetchone()
    except sqlite3.Error:
        return None  # the tables have another schema: the caller uses MLflow's client
    return (str(row[0]), str(row[1])) if row else None


def _revision(tables: sqlite3.Connection) -> str:
    return str(tables.execute("SELECT group_concat(version_num) FROM alembic_version").fetchone()[0])


def _overviews(tables: sqlite3.Connection) -> dict[str, Overview]:
    aliases: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, alias, version in tables.execute(_ALIASES):
        aliases[name][alias] = version
    tags: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for name, version, key, value in tables.execute(_TAGS):
        tags[name, version][key] = value
    newest: defaultdict[str, list[Row]] = defaultdict(list)
    for name, version, created, stage, source, link in tables.execute(f"{_NEWEST} ORDER BY version DESC"):
        newest[name].append(Row(name, version, created, stage, source, link, tags[name, version]))
    of_models: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, key, value in tables.execute(_MODEL_TAGS):
        of_models[name][key] = value
    return {name: Overview(tuple(newest[name]), aliases[name], of_models[name]) for (name,) in tables.execute(_MODELS)}


def _failed(tables: sqlite3.Connection) -> dict[str, str]:
    return {model: to_reason(reason) for model, reason in tables.execute(_FAILED)}


def _alarms(tables: sqlite3.Connection) -> dict[tuple[str, str], tuple[Recorded, ...]]:
    rows = tables.execute(_ALARMS)
    return by_environment({ENVIRONMENT: env, MODEL: model, name: value} for env, model, name, value in rows)
