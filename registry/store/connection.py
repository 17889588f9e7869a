"""Which MLflow store is in use, and a client for it. MLflow is imported late: it costs more than a second.

The store is `MLFLOW_TRACKING_URI`, else an SQLite file `mlflow.db` beside `dvc.yaml`, with its artifacts in
`mlartifacts/`. Inside `dvc exp run --temp` or `--queue`, which work in a throw-away copy of the checkout, it is the
file of the checkout that the experiment was started from. Runs, registered models and files are all in this one store.

A process may have an MLflow of its own, such as a service that logs its requests. That one is neither used nor changed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
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

# A server that is down must be told from a slow one within a time that a person waits for.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PGCONNECT_TIMEOUT": "5",
}
# What fails on this machine, in the words of the system and of SQLite, which MLflow's errors repeat.
_OF_THIS_MACHINE = re.compile(
    "No space left on device|Disk quota exceeded|Read-only file system|Permission denied|Input/output error"
    "|database or disk is full|attempt to write a readonly database|unable to open database file|disk I/O error"
)
# What a server answers that is no MLflow, or a proxy before one.
_NONSENSE = re.compile("not in a valid JSON format|Failed to parse|Expecting value")


def tracking_uri() -> str:
    """The store's URI, credentials included: for the client alone, never for a report or a log."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(_home() / DATABASE)


def _home() -> Path:
    try:
        return checkout.home()
    except UsageError as error:
        raise UsageError(f"{error}. Or name an MLflow store with MLFLOW_TRACKING_URI") from None


def still(opened: str) -> str:
    """The store's URI now, for what was opened on the store `opened`. That stays where only this process named another
    to MLflow since: `mlflow.set_tracking_uri` also sets MLFLOW_TRACKING_URI."""
    utils = sys.modules.get("mlflow.tracking._tracking_service.utils")
    named = getattr(utils, "_tracking_uri", None)
    return opened if named and named == os.environ.get("MLFLOW_TRACKING_URI") else tracking_uri()


def sqlite_uri(file: Path) -> str:
    """The URI of an SQLite file.

    A name that would be read as something else (`50%25`, `why?`) is quoted, slashes included: MLflow makes the folder
    of what follows `sqlite:///` before that is unquoted, and so makes none.
    """
    path = str(file)
    return f"{_SQLITE}{path if unquote(path) == path and '?' not in path else quote(os.fsencode(path), safe='')}"


def require_store() -> None:
    """Look whether there is a store in use, and make none.

    Raises:
        StoreMissing: there is none.
        StoreUnreachable, UsageError, MachineFault: as reach.check has them.
    """
    reach.check(tracking_uri(), create=False)


def nothing_yet() -> bool:
    """Whether the checkout has no store yet: nobody named another one, and nothing was registered so far."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return False
    try:
        require_store()
    except StoreMissing:
        return True
    return False


_settled = False


def settle_process() -> None:
    """Set for this whole process how long MLflow waits for a store, and what it logs: in Onward's own processes (the
    command, the pipeline's stages), never in one that only uses Onward."""
    global _settled
    _settled = True
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    _quieten()


def connect(uri: str | None = None, create: bool = True) -> MlflowClient:
    """A client of the store in use, or of the one that `uri` names. Nothing of the process changes.

    Args:
        uri: of the store, credentials included.
        create: whether an SQLite store may be made where there is none, in a folder that is there.

    Raises:
        StoreUnreachable: the store cannot be opened.
        StoreMissing: there is none.
        UsageError: MLFLOW_TRACKING_URI is no address of a store, or registered models would be in another store.
    """
    registry = "" if uri else os.environ.get("MLFLOW_REGISTRY_URI")
    uri = uri or tracking_uri()
    if registry and registry.rstrip("/") != uri.rstrip("/"):
        raise UsageError(
            f"MLFLOW_REGISTRY_URI is {without_credentials(registry)} and the store is {without_credentials(uri)}: "
            "Onward keeps registered models, runs and files in one store. Unset MLFLOW_REGISTRY_URI, or set "
            "MLFLOW_TRACKING_URI to the same"
        )
    reach.check(uri, create)
    with reachable():
        from mlflow import MlflowClient

        if _settled and not reach.is_server(uri):
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = 2  # ten tries take more than a minute and a half
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


_REDIRECTING = threading.Lock()


@contextmanager
def as_default(client: MlflowClient) -> Iterator[None]:
    """Make a client's SQLite store MLflow's own of this process for a moment.

    To register a version of a logged model, MLflow's SQLite store looks that model up in the store of the process,
    whatever the client's is (the TODO in its `create_model_version`). A server does that on its side.
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
    """What others log of an error is in the error, too, and is said once, in one line."""
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def reachable() -> Iterator[None]:
    """Turn what is the server's doing into errors of ours; every other error passes through as it is.

    Raises:
        StoreUnreachable: the store did not answer, or what answered is no MLflow.
        MachineFault: the store is a file, and the disk or its permissions are in the way.
        UsageError: the server does not know who asks.
        Refused: the server knows, and does not allow it.
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
        # Told by name: neither requests nor sqlalchemy is ours to import.
        network = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("requests")
        if (
            network
            or name in ("OperationalError", "InterfaceError")
            or (name == "MlflowException" and re.search(r"API request to .* failed|Max retries|OperationalError", text))
        ):
            if found := _OF_THIS_MACHINE.search(text):
                raise MachineFault(f"{found[0]}: MLflow's store or files on this machine ({_first(text)})") from error
            raise StoreUnreachable(_unreachable(error)) from error
        if _NONSENSE.search(text) or name in ("JSONDecodeError", "ParseError") or _misread(error):
            raise StoreUnreachable(
                f"what answers at {without_credentials(tracking_uri())} is no MLflow server, or a proxy before one: "
                f"{_first(text)}. Check MLFLOW_TRACKING_URI"
            ) from error
        raise


def _misread(error: Exception) -> bool:
    """Whether MLflow's client stumbled over what a server answered."""
    if not reach.is_server(tracking_uri()) or not isinstance(error, (AttributeError, KeyError, TypeError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith(("mlflow.", "google.protobuf."))


def _first(text: str) -> str:
    """The beginning of somebody else's words, in a line."""
    return hidden(" ".join(text.split()))[:300]


def http_status(error: BaseException) -> int | None:
    """The HTTP status that an error stands for, where it stands for one."""
    answered = getattr(getattr(error, "response", None), "status_code", None)
    found = re.search(r"failed with error code (\d{3})\b", str(error))
    return int(found[1]) if found else answered


def _endpoint(text: str) -> str:
    found = re.search(r"API request to endpoint (\S+)", text)
    return f" ({found[1].removeprefix('/api/2.0/mlflow/')})" if found else ""


def _unreachable(error: BaseException) -> str:
    reason = _first(str(error).partition("\n")[0]) or type(error).__name__
    return f"the MLflow store {without_credentials(tracking_uri())} could not be reached: {reason}. {reach.ADVICE}"


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment `name`, created if there is none.

    Under the embedded SQLite store its artifacts go beside the database; a server decides for itself.

    Raises:
        UsageError: the experiment was deleted and not yet purged, so that its name is taken.
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
