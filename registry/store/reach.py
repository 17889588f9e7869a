"""Check within seconds whether a store exists at an address, before MLflow uses it.

MLflow itself retries a database for minutes, creates a new database at a mistyped path, and raises unclear errors for
an unknown scheme.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from onward.registry.errors import MachineFault, StoreMissing, StoreUnreachable, UsageError
from onward.registry.uri import hidden, scheme, sqlite_file, without_credentials

SERVERS = ("http", "https")
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SUPPORTED = (*SERVERS, "sqlite", "postgresql", "mysql", "mssql")
# Schemes that MLflow handles itself. Onward does not check them.
_MLFLOW_SCHEMES = ("databricks", "databricks-uc", "uc")
_CONNECT_S = 5.0
_ENCODE = "in a user name or a password, write @ as %40, / as %2F, # as %23, ? as %3F, : as %3A"
ADVICE = "Check MLFLOW_TRACKING_URI and that the server is up"


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, and not a file or a database."""
    return scheme(uri) in SERVERS


def check(uri: str, create: bool) -> None:
    """Check that a store can exist at an address.

    Args:
        uri: the store's URI.
        create: whether an SQLite file that does not exist is acceptable. Its folder must exist.

    Raises:
        UsageError: the address is not the address of a store.
        StoreMissing: the store is a file that does not exist.
        StoreUnreachable: the host does not answer, or the file is not a store.
        MachineFault: the file cannot be read.
    """
    kind = scheme(uri)
    if kind == "sqlite":
        if (file := sqlite_file(uri)) is not None:
            _check_file(file, create)
    elif kind in _PORTS:
        _check_server(uri, kind)
    elif kind not in _MLFLOW_SCHEMES and kind not in _plugin_schemes():
        raise UsageError(
            f"MLFLOW_TRACKING_URI: Onward cannot use {without_credentials(uri)} as a store: "
            f"the address must begin with one of {', '.join(f'{known}://' for known in SUPPORTED)}"
        )


def _plugin_schemes() -> set[str]:
    """The schemes that MLflow plugins add."""
    from importlib.metadata import entry_points

    return {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}


def _check_file(file: Path, create: bool) -> None:
    if not file.exists():
        if not file.parent.is_dir():
            raise StoreMissing(f"there is no MLflow store {file}: its folder {file.parent} does not exist")
        if not create:
            raise StoreMissing(f"there is no MLflow store {file}: `dvc repro` creates it and registers models in it")
        return
    if file.is_dir() or not os.access(file, os.R_OK):
        problem = "is a folder, and must be a file" if file.is_dir() else "cannot be read: look at its permissions"
        raise MachineFault(f"the MLflow store {file} {problem}")
    try:
        with closing(open_sqlite(file, timeout_s=5)) as opened:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:
        return  # another process is writing: MLflow waits for it
    except sqlite3.DatabaseError as error:
        raise StoreUnreachable(f"the MLflow store {file} cannot be read: {error}") from None
    if "experiments" not in tables and (tables or not create):
        raise StoreMissing(f"{file} is not an MLflow store: it does not contain MLflow's tables")


def open_sqlite(file: Path, timeout_s: float, mode: Literal["ro", "rw"] = "ro") -> sqlite3.Connection:
    """Open an SQLite file, without beginning a transaction and without creating the file.

    Args:
        file: the file.
        timeout_s: how long to wait for another process's lock, in s.
        mode: whether to open it read-only or for writing.
    """
    address = f"{file.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)


def _check_server(uri: str, kind: str) -> None:
    """Check that the server accepts connections. Behind a proxy or a local socket, this is left to MLflow."""
    import socket
    import urllib.request

    wrong = UsageError(f"MLFLOW_TRACKING_URI: {without_credentials(uri)} is not the URL of a server: {_ENCODE}")
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
