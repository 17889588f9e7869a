"""Read registered models and their versions from MLflow, at a cost that does not grow with their number.

MLflow's own `get_registered_model` is not used, because it reads every version of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onward.registry.store.connection import PAGE, all_items, reachable
from onward.registry.store.rows import PROMPT, Rows
from onward.registry.store.schema import Overview, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


class Versions(Rows):
    """The registered models and versions of a store, read with MLflow's client.

    Every method raises StoreUnreachable if the store does not answer.

    Args:
        client: a client of the store.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def aliases(self, registered: str) -> dict[str, int]:
        """The version number of each alias of a registered model; empty if there is no such model."""
        with reachable():
            page = self._client.search_registered_models(f"name = '{registered}'", max_results=1)
        return _aliases(page[0]) if page else {}

    def alias(self, registered: str, alias: str) -> int | None:
        """The version number of one alias, or None. This takes a quarter of the time of reading all aliases."""
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return int(self._client.get_model_version_by_alias(registered, alias).version)
            except MlflowException as error:
                # Neither error means a fault: the model, or the alias, does not exist.
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def everything(self) -> dict[str, Overview]:
        """The newest versions, aliases and tags of all registered models, with one request per page of 1000 models."""
        found: dict[str, Overview] = {}
        with reachable():
            models = all_items(lambda token: self._client.search_registered_models(max_results=PAGE, page_token=token))
            for registered in models:
                newest = sorted(registered.latest_versions, key=lambda version: -int(version.version))
                found[registered.name] = Overview(tuple(newest), _aliases(registered), dict(registered.tags))
        return found

    def get(self, registered: str, number: int) -> ModelVersion | None:
        """One version of a registered model; None if it does not exist."""
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return self._client.get_model_version(registered, str(number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def page(self, registered: str, below: int, size: int) -> list[Version]:
        """See Rows.page."""
        wanted = f"name = '{registered}'" + (f" and version_number < {below}" if below else "")
        with reachable():
            return list(self._client.search_model_versions(wanted, max_results=size, order_by=["version_number DESC"]))

    def prompt(self, registered: str) -> int | None:
        """See Rows.prompt."""
        wanted = f"name = '{registered}' and tags.`{PROMPT}` = 'true'"
        with reachable():
            hidden = self._client.search_model_versions(wanted, max_results=1)
        return int(hidden[0].version) if hidden else None

    def tagged(self, registered: str, **tags: str) -> list[ModelVersion]:
        """The versions of a registered model that have all of these tags; at most 1000."""
        wanted = " and ".join([f"name = '{registered}'", *(f"tags.{key} = '{value}'" for key, value in tags.items())])
        with reachable():
            return list(self._client.search_model_versions(wanted, max_results=PAGE))

    def named(self, pattern: str) -> list[str]:
        """The names of the registered models that match an SQL LIKE pattern; at most 1000."""
        with reachable():
            page = self._client.search_registered_models(f"name LIKE '{pattern}'", max_results=PAGE)
        return [registered.name for registered in page]


def _aliases(registered: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in registered.aliases.items()}
