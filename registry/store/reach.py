"""Whether there is a store at an address, asked in seconds and before MLflow is.

MLflow itself tries a database for minutes, makes one where a path is mistyped, and raises what it likes for a scheme
that it does not know.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from onward.registry.errors import MachineFault, StoreMissing, StoreUnreachable, UsageError
from onward.registry.uri import hidden, scheme, sqlite_file, without_credentials

SERVERS = ("http", "https")
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SUPPORTED = (*SERVERS, "sqlite", "postgresql", "mysql", "mssql")
# MLflow's own, which Onward neither helps nor hinders.
_MLFLOWS = ("databricks", "databricks-uc", "uc")
_CONNECT_S = 5.0
_ENCODE = "in a user's name or a password, write @ as %40, / as %2F, # as %23, ? as %3F, : as %3A"
ADVICE = "Check MLFLOW_TRACKING_URI and that the server is up"


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, and not a file or a database of its own."""
    return scheme(uri) in SERVERS


def check(uri: str, create: bool) -> None:
    """Look whether a store can be there.

    Args:
        uri: of the store.
        create: whether an SQLite file may be made where there is none. The folder has to be there all the same.

    Raises:
        UsageError: the address is none of a store.
        StoreMissing: it is a file, and there is none.
        StoreUnreachable: nothing answers there, or it is no store.
        MachineFault: it is a file that may not be read.
    """
    kind = scheme(uri)
    if kind == "sqlite":
        if (file := sqlite_file(uri)) is not None:
            _check_file(file, create)
    elif kind in _PORTS:
        _check_server(uri, kind)
    elif kind not in _MLFLOWS and kind not in _plugins():
        raise UsageError(
            f"MLFLOW_TRACKING_URI: {without_credentials(uri)} is no store that Onward can use: "
            f"it begins with one of {', '.join(f'{known}://' for known in SUPPORTED)}"
        )


def _plugins() -> set[str]:
    """The schemes of stores that others add to MLflow."""
    from importlib.metadata import entry_points

    return {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}


def _check_file(file: Path, create: bool) -> None:
    if not file.exists():
        if not file.parent.is_dir():
            raise StoreMissing(f"there is no MLflow store {file}: there is no folder {file.parent}")
        if not create:
            raise StoreMissing(f"there is no MLflow store {file}: `dvc repro` makes one and registers models in it")
        return
    if file.is_dir() or not os.access(file, os.R_OK):
        raise MachineFault(f"the MLflow store {file} {'is a folder' if file.is_dir() else 'may not be read'}")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as opened:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:
        return  # in use just now, or a journal is in the way: MLflow waits
    except sqlite3.DatabaseError as error:
        raise StoreUnreachable(f"the MLflow store {file} cannot be read: {error}") from None
    if "experiments" not in tables and (tables or not create):
        raise StoreMissing(f"{file} is no MLflow store: MLflow's tables are not in it")


def _check_server(uri: str, kind: str) -> None:
    """Whether somebody listens there. Where a proxy or a socket stands between, MLflow finds out by itself."""
    import socket
    import urllib.request

    wrong = UsageError(f"MLFLOW_TRACKING_URI: {without_credentials(uri)} is no URL of a server: {_ENCODE}")
    try:
        parts = urlsplit(uri)
        several = kind not in SERVERS and "," in parts.netloc  # Postgres takes several hosts
        name, port = parts.hostname, None if several else parts.port
    except ValueError:
        raise wrong from None
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" or parts.netloc.count("@") > 1:
        raise wrong
    if kind in SERVERS:
        if not name:
            raise wrong
        if kind in urllib.request.getproxies() and not urllib.request.proxy_bypass(name):
            return
    if not name or several or "host=" in parts.query:
        return
    try:
        socket.create_connection((name, port or _PORTS[kind]), timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StoreUnreachable(
            f"the MLflow store {without_credentials(uri)} could not be reached: {hidden(reason)}. {ADVICE}"
        ) from error
