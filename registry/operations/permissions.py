"""Who may deploy to an environment, on an MLflow server with users (basic auth): what docs/team-setup.md describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onward.registry.errors import Refused, UsageError, saying
from onward.registry.gates import policy
from onward.registry.names import is_name
from onward.registry.store.artifacts import experiment_name
from onward.registry.store.connection import http_status, reachable
from onward.registry.store.reach import is_server
from onward.registry.store.store import Store
from onward.registry.uri import without_credentials

if TYPE_CHECKING:
    from mlflow.server.auth.client import AuthServiceClient

EDIT = "EDIT"
_ENOUGH = (EDIT, "MANAGE")


@dataclass(frozen=True)
class Grant:
    """That a user may edit a registered model or an experiment; `changed`: since now."""

    kind: str
    name: str
    changed: bool


def grant(environment: str, user: str, store: Store | None = None) -> list[Grant]:
    """Let a user deploy to an environment: EDIT on its logs, on the experiment with its files, and on the candidates of
    its models. What the user may do already stays as it is, so that a second call changes nothing.

    Raises:
        UsageError: there is no such environment or user, it was not made yet, or the store has no users.
        Refused: who asks is no administrator of the server, or the user is denied something explicitly.
        StoreUnreachable: the server did not answer.
    """
    policy.environment(policy.read(), environment)
    store = store or Store()
    uri = store.uri
    if not is_server(uri):
        raise UsageError(f"{without_credentials(uri)} has no users: only an MLflow server with basic auth has")
    from mlflow.server.auth.client import AuthServiceClient

    server = AuthServiceClient(uri)
    granted: list[Grant] = []
    with saying(lambda: f"Granted before that: {', '.join(g.name for g in granted if g.changed) or 'nothing'}"):
        for kind, name, number in _resources(store, environment):
            granted.append(Grant(kind, name, _granted(server, user, kind, name, number, uri)))
    return granted


def _resources(store: Store, environment: str) -> list[tuple[str, str, str]]:
    """Of all that somebody who deploys there writes to: what it is, its name, and what the server knows it by."""
    experiment = store.files.experiment(environment)
    # LIKE takes an underscore for any character.
    logs = [
        name
        for name in store.versions.named(f"{environment}.%")
        if name.startswith(f"{environment}.") and is_name(name.removeprefix(f"{environment}."))
    ]
    if experiment is None or not logs:
        raise UsageError(
            f"{environment} was not made yet: `onward environments create MODEL...`, for each of its models"
        )
    candidates = [name.removeprefix(f"{environment}.") for name in logs]
    registered = logs + [name for name in candidates if name in store.versions.named(name)]
    models = [("registered_model", name, name) for name in registered]
    return [("experiment", experiment_name(environment), experiment), *models]


def _granted(server: AuthServiceClient, user: str, kind: str, name: str, number: str, uri: str) -> bool:
    """Whether a grant was needed."""
    if (found := _permission(server, user, kind, number, uri)) in _ENOUGH:
        return False
    if found != "DENY":
        with reachable():
            _give(server, user, kind, number)
        found = _permission(server, user, kind, number, uri)
    if found not in _ENOUGH:
        raise Refused(
            f"{user} has {found} on the {kind.replace('_', ' ')} {name}, by a rule that stands above a grant: take "
            "that rule away first (docs/team-setup.md)"
        )
    return True


def _give(server: AuthServiceClient, user: str, kind: str, number: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        server.grant_user_permission(user, kind, number, EDIT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # A grant of less, which MLflow does not raise.
        server.revoke_user_permission(user, kind, number)
        server.grant_user_permission(user, kind, number, EDIT)


def _permission(server: AuthServiceClient, user: str, kind: str, number: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    with reachable():
        try:
            return str(server.get_user_permission(user, kind, number).permission)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise UsageError(f"{without_credentials(uri)} has no user {user!r}") from error
            if http_status(error) == 404:
                raise UsageError(
                    f"{without_credentials(uri)} has no users: it runs without MLflow's basic auth, or with one older "
                    "than 3.17"
                ) from error
            raise
