"""Grant users the permission to deploy to an environment, on an MLflow server with basic auth (docs/team-setup.md)."""

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
    """A user's permission to edit a registered model or an experiment.

    Attributes:
        kind: `registered_model` or `experiment`, as MLflow names them.
        name: its name.
        changed: whether the permission was granted now.
    """

    kind: str
    name: str
    changed: bool


def grant(environment: str, user: str, store: Store | None = None) -> list[Grant]:
    """Grant a user the permissions to deploy to an environment.

    These are EDIT on its logs, on the experiment that contains its files, and on the candidates of its models. Existing
    permissions stay unchanged.

    Args:
        environment: the environment.
        user: the name of the user on the server.
        store: the store; None for the store in use.

    Returns:
        all permissions that the user needs, and whether each was granted now.

    Raises:
        UsageError: there is no such environment or user, the environment was not created yet, or the store has no
            users.
        Refused: the caller is not an administrator of the server, or a rule denies the user access.
        StoreUnreachable: the server did not answer.
    """
    policy.environment(policy.read(), environment)
    store = store or Store()
    uri = store.uri
    if not is_server(uri):
        raise UsageError(f"{without_credentials(uri)} has no users: only an MLflow server with basic auth has them")
    try:
        from mlflow.server.auth.client import AuthServiceClient
    except ImportError as error:
        raise UsageError(f"granting permissions needs all of MLflow: install onward[store] ({error})") from None

    server = AuthServiceClient(uri)
    granted: list[Grant] = []
    with saying(lambda: f"Granted before that: {', '.join(one.name for one in granted if one.changed) or 'nothing'}"):
        for kind, name, identifier in _resources(store, environment):
            granted.append(Grant(kind, name, _ensure_edit(server, user, kind, name, identifier, uri)))
    return granted


def _resources(store: Store, environment: str) -> list[tuple[str, str, str]]:
    """The kind, the name and the server's identifier of everything that a deployment writes to."""
    experiment = store.files.experiment(environment)
    # In SQL's LIKE, an underscore matches any character.
    logs = [
        name
        for name in store.versions.named(f"{environment}.%")
        if name.startswith(f"{environment}.") and is_name(name.removeprefix(f"{environment}."))
    ]
    if experiment is None or not logs:
        raise UsageError(
            f"the environment {environment} does not exist on the server yet: create it with `onward environments "
            "create MODEL...`, and name each of its models"
        )
    candidates = [name.removeprefix(f"{environment}.") for name in logs]
    registered = logs + [name for name in candidates if name in store.versions.named(name)]
    models = [("registered_model", name, name) for name in registered]
    return [("experiment", experiment_name(environment), experiment), *models]


def _ensure_edit(server: AuthServiceClient, user: str, kind: str, name: str, identifier: str, uri: str) -> bool:
    """Grant EDIT if the user lacks it, and return whether it was granted now."""
    if (found := _permission(server, user, kind, identifier, uri)) in _ENOUGH:
        return False
    if found != "DENY":
        with reachable():
            _give(server, user, kind, identifier)
        found = _permission(server, user, kind, identifier, uri)
    if found not in _ENOUGH:
        raise Refused(
            f"{user} has {found} on the {kind.replace('_', ' ')} {name}, by a rule that overrides grants: remove that "
            "rule first (docs/team-setup.md)"
        )
    return True


def _give(server: AuthServiceClient, user: str, kind: str, identifier: str) -> None:
    """Grant EDIT, in place of a lower permission."""
    from mlflow.exceptions import MlflowException

    try:
        server.grant_user_permission(user, kind, identifier, EDIT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # The user has a lower permission, which MLflow does not replace.
        server.revoke_user_permission(user, kind, identifier)
        server.grant_user_permission(user, kind, identifier, EDIT)


def _permission(server: AuthServiceClient, user: str, kind: str, identifier: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    with reachable():
        try:
            return str(server.get_user_permission(user, kind, identifier).permission)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise UsageError(f"{without_credentials(uri)} has no user {user!r}") from error
            if http_status(error) == 404:
                raise UsageError(
                    f"{without_credentials(uri)} has no users: start it with MLflow's basic auth, and with MLflow 3.17 "
                    "or newer"
                ) from error
            raise
