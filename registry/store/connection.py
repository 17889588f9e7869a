"""Find the MLflow store in use, and connect to it.

The store is `MLFLOW_TRACKING_URI`, else an SQLite file `mlflow.db` beside `dvc.yaml`, with its artifacts in
`mlartifacts/`. `dvc exp run --temp` and `--queue` work in a temporary copy of the checkout; there, the store is the
file of the original checkout, also if the variable names a relative path. Runs, registered models and files are all
in this one store.

A process may already use MLflow for itself, such as a service that logs its requests. Onward neither uses nor changes
those settings. MLflow is imported late, because the import takes more than a second.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from onward.registry import checkout
from onward.registry.errors import MachineFault, OnwardError, Refused, StoreMissing, StoreUnreachable, UsageError
from onward.registry.store import reach
from onward.registry.uri import hidden, sqlite_file, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_SQLITE = "sqlite:///"
# The number of rows that one request asks MLflow for.
PAGE = 1000

# Report a server that is down after a few seconds, not after MLflow's default of several minutes. Keep standard output
# for the command's own answer: MLflow prints two lines there for every run that it ends on a server.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PGCONNECT_TIMEOUT": "5",
}
# Errors of the operating system and of SQLite that mean a fault of this machine. MLflow's errors repeat these words.
_MACHINE_FAULT_WORDS = re.compile(
    "No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Input/output error"
    "|database or disk is full|attempt to write a readonly database|unable to open database file|disk I/O error"
)
# MLflow raises these errors if the answer is not from an MLflow server, but from a proxy or another service.
_NOT_MLFLOW_WORDS = re.compile("not in a valid JSON format|Failed to parse|Expecting value")


def tracking_uri() -> str:
    """The store's URI, including credentials. Never write it to a report or a log."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        return sqlite_uri(_home() / DATABASE)
    file, here = sqlite_file(named), Path.cwd()
    if file is None or file.is_absolute() or checkout.original(here) == here:
        return named
    return sqlite_uri(checkout.original(here) / file)


def _home() -> Path:
    try:
        return checkout.home()
    except UsageError as error:
        raise UsageError(f"{error}. Or name an MLflow store with MLFLOW_TRACKING_URI") from None


def still(opened: str) -> str:
    """The URI of the store that an object opened on `opened` should use now.

    It is the store of the environment variables, unless MLFLOW_TRACKING_URI was set by this process through
    `mlflow.set_tracking_uri`, which also sets the variable. Such a call is for the process's own MLflow logging, so
    `opened` stays in use.

    Args:
        opened: the URI of the store at the time of opening.
    """
    utils = sys.modules.get("mlflow.tracking._tracking_service.utils")
    named = getattr(utils, "_tracking_uri", None)
    return opened if named and named == os.environ.get("MLFLOW_TRACKING_URI") else tracking_uri()


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite file.

    A path with special characters (`50%25`, `why?`) is percent-quoted, including its slashes. MLflow creates the
    parent folder of the text after `sqlite:///` before it unquotes that text. With quoted slashes, it finds no parent
    folder and creates nothing.
    """
    path = str(file)
    return f"{_SQLITE}{path if unquote(path) == path and '?' not in path else quote(os.fsencode(path), safe='')}"


def require_store() -> None:
    """Check that the store in use exists, without creating it.

    Raises:
        StoreMissing: there is no store.
        StoreUnreachable: the store does not answer, as in reach.check.
        UsageError: the address is not the address of a store, as in reach.check.
        MachineFault: the store's file cannot be read, as in reach.check.
    """
    reach.check(tracking_uri(), create=False)


def nothing_yet() -> bool:
    """Whether the checkout's own store is in use and does not exist yet."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return False
    try:
        require_store()
    except StoreMissing:
        return True
    return False


_settled = False


def settle_process() -> None:
    """Shorten MLflow's timeouts and silence its logs, for the whole process.

    Only Onward's own processes (the command, the pipeline's stages) call this, never a process that imports Onward as
    a library.
    """
    global _settled
    _settled = True
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    _quieten()


def checked(uri: str | None = None, create: bool = True) -> str:
    """Check that a store can be opened.

    Args:
        uri: the store's URI, including credentials; None for the store in use.
        create: whether an SQLite store that does not exist is acceptable. Its folder must exist.

    Returns:
        the store's URI.

    Raises:
        StoreUnreachable: the store cannot be opened.
        StoreMissing: there is no store.
        UsageError: MLFLOW_TRACKING_URI is not the address of a store, or MLFLOW_REGISTRY_URI names another store.
    """
    registry = "" if uri else os.environ.get("MLFLOW_REGISTRY_URI")
    uri = uri or tracking_uri()
    if registry and registry.rstrip("/") != uri.rstrip("/"):
        raise UsageError(
            f"MLFLOW_REGISTRY_URI is {without_credentials(registry)} and the store is {without_credentials(uri)}: "
            "Onward keeps registered models, runs and files in one store. Unset MLFLOW_REGISTRY_URI, or set "
            "MLFLOW_TRACKING_URI to the same address"
        )
    reach.check(uri, create)
    return uri


def connect(uri: str | None = None, create: bool = True) -> MlflowClient:
    """Connect to a store, without changing any setting of the process.

    Args:
        uri: the store's URI, including credentials; None for the store in use.
        create: whether to create an SQLite store that does not exist. Its folder must exist.

    Raises:
        StoreUnreachable: the store cannot be opened.
        StoreMissing: there is no store.
        UsageError: as `checked`, or the store needs packages that are not installed.
    """
    uri = checked(uri, create)
    with reachable():
        from mlflow import MlflowClient

        if not reach.is_server(uri):
            require_databases(uri)
        if _settled and not reach.is_server(uri):
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = 2  # MLflow's default of ten tries takes more than 90 s
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def require_databases(uri: str) -> None:
    """Check that this host can open a store that is not a server. A serving host has only MLflow's client.

    Args:
        uri: the store's URI, for the message.

    Raises:
        UsageError: it cannot.
    """
    if importlib.util.find_spec("sqlalchemy") is None or importlib.util.find_spec("alembic") is None:
        raise UsageError(
            f"the MLflow store {without_credentials(uri)} is a file or a database, which needs all of MLflow: install "
            "onward[store], or set MLFLOW_TRACKING_URI to the address of an MLflow server"
        )


_REDIRECTING = threading.Lock()


@contextmanager
def as_default(client: MlflowClient) -> Iterator[None]:
    """Make a client's SQLite store the process-wide MLflow store, for the length of the context.

    When MLflow's SQLite store registers a version of a logged model, it looks that model up in the process-wide store,
    even if the client uses another one (see the TODO in its `create_model_version`). With a server, the lookup happens
    on the server, so nothing is changed.

    Args:
        client: a client of the store.
    """
    import mlflow
    from mlflow.tracking._tracking_service import utils

    if sqlite_file(client.tracking_uri) is None:
        yield
        return
    with _REDIRECTING:
        before, variable = utils._tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(client.tracking_uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None is what it was before the first call
            if variable is None:
                os.environ.pop("MLFLOW_TRACKING_URI", None)
            else:
                os.environ["MLFLOW_TRACKING_URI"] = variable


def _quieten() -> None:
    """Silence other packages' logs of errors: the raised error contains the same text, and is printed once."""
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def reachable() -> Iterator[None]:
    """Translate errors of the store into Onward's errors. All other errors pass through unchanged.

    Raises:
        StoreUnreachable: the store did not answer, or the answer is not from an MLflow server.
        MachineFault: the store is a file, and the disk or its permissions prevent the access.
        UsageError: the server does not know the user (HTTP 401).
        Refused: the server does not allow the request (HTTP 403).
    """
    try:
        yield
    except OnwardError:
        raise
    except Exception as error:
        name = type(error).__name__
        text = str(error)
        code = http_status(error)
        if code == 401:
            raise UsageError(
                f"the MLflow server {without_credentials(tracking_uri())} does not know you: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        if code == 403:
            user = os.environ.get("MLFLOW_TRACKING_USERNAME", "this user")
            raise Refused(
                f"the MLflow server {without_credentials(tracking_uri())} does not allow {user} to do this"
                f"{_endpoint(text)}. Ask its administrator for EDIT on the environment (docs/team-setup.md)"
            ) from error
        # By name, because Onward does not import requests or sqlalchemy itself.
        network = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("requests")
        if (
            network
            or name in ("OperationalError", "InterfaceError")
            or (name == "MlflowException" and re.search(r"API request to .* failed|Max retries|OperationalError", text))
        ):
            if found := _MACHINE_FAULT_WORDS.search(text):
                raise MachineFault(
                    f"{found[0]}: this machine could not read or write MLflow's store or files ({excerpt(text)})"
                ) from error
            raise StoreUnreachable(_unreachable(error)) from error
        if _NOT_MLFLOW_WORDS.search(text) or name in ("JSONDecodeError", "ParseError") or _misread(error):
            raise StoreUnreachable(
                f"{without_credentials(tracking_uri())} did not answer like an MLflow server: {excerpt(text)}. "
                "Check MLFLOW_TRACKING_URI, and any proxy in front of the server"
            ) from error
        raise


def _misread(error: Exception) -> bool:
    """Whether MLflow's client failed because it could not parse a server's answer."""
    if not reach.is_server(tracking_uri()) or not isinstance(error, (AttributeError, KeyError, TypeError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith(("mlflow.", "google.protobuf."))


def all_items(fetch_page: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield all items of one of MLflow's paged answers.

    Args:
        fetch_page: requests a page, given the token of the page (None for the first one).
    """
    token: str | None = None
    while True:
        page = fetch_page(token)
        yield from page
        token = page.token
        if not token:
            return


def excerpt(text: str) -> str:
    """The first 300 characters of another package's message, on one line and without secrets.

    Args:
        text: the message.
    """
    return hidden(" ".join(text.split()))[:300]


def http_status(error: BaseException) -> int | None:
    """The HTTP status of an error of `requests` or MLflow; None for any other error."""
    answered = getattr(getattr(error, "response", None), "status_code", None)
    found = re.search(r"failed with error code (\d{3})\b", str(error))
    return int(found[1]) if found else answered


def _endpoint(text: str) -> str:
    found = re.search(r"API request to endpoint (\S+)", text)
    return f" ({found[1].removeprefix('/api/2.0/mlflow/')})" if found else ""


def _unreachable(error: BaseException) -> str:
    reason = excerpt(str(error).partition("\n")[0]) or type(error).__name__
    return f"the MLflow store {without_credentials(tracking_uri())} could not be reached: {reason}. {reach.ADVICE}"


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, and create the experiment if it does not exist.

    In the embedded SQLite store, its artifacts go to `mlartifacts/` beside the database. A server chooses the location
    itself.

    Args:
        client: a client of the store.
        name: the experiment's name.

    Raises:
        UsageError: the experiment was deleted but not purged, so its name is still taken.
        StoreUnreachable: the store did not answer.
    """
    from mlflow.exceptions import MlflowException

    with reachable():
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            database = sqlite_file(client.tracking_uri)
            location = (database.resolve().parent / ARTIFACTS / name).as_uri() if database else None
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            raise UsageError(
                f"the MLflow experiment {name!r} was deleted: restore it (`mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}`), purge it (`mlflow gc`), or set tracking.experiment "
                "in params.yaml to another name"
            )
        return str(experiment.experiment_id)
