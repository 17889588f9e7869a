"""Read registered models and their versions from MLflow, at a cost that does not grow with their number.

MLflow's own `get_registered_model` is not used, because it reads every version of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onward.registry.errors import Refused
from onward.registry.store.connection import PAGE, all_items, reachable
from onward.registry.store.schema import Overview

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_PROMPT = "mlflow.prompt.is_prompt"
# The newest entry usually says what is live. More entries are needed only if some of them lost a race.
_FIRST_PAGE = 3


class Versions:
    """The registered models and versions of a store.

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

    def newest_first(self, registered: str) -> Iterator[ModelVersion]:
        """The versions of a registered model, newest first, read page by page as they are needed."""
        for page, _ in self.pages(registered):
            yield from page

    def pages(self, registered: str) -> Iterator[tuple[list[ModelVersion], int]]:
        """Read the versions of a registered model, newest first, in pages of growing size.

        Each page starts below the last number of the page before it, so versions that are added or deleted meanwhile
        do not shift the pages.

        Args:
            registered: the name of the registered model.

        Yields:
            a page, and the highest number that was not read yet; 0 after the last page.

        Raises:
            Refused: MLflow hides the versions.
        """
        below, size = 0, _FIRST_PAGE
        while True:
            wanted = f"name = '{registered}'" + (f" and version_number < {below}" if below else "")
            with reachable():
                page = self._client.search_model_versions(wanted, max_results=size, order_by=["version_number DESC"])
            if not page and not below:
                self._require_visible(registered)
            if len(page) < size:
                yield list(page), 0
                return
            below = int(page[-1].version)
            yield list(page), below - 1
            size = min(10 * size, PAGE)

    def _require_visible(self, registered: str) -> None:
        """Check that MLflow does not hide the versions of a registered model.

        If one version has a certain tag, MLflow treats the registered model as a prompt, and leaves all of its
        versions out of search results. EDIT permission is enough to set that tag.

        Raises:
            Refused: MLflow hides them.
        """
        wanted = f"name = '{registered}' and tags.`{_PROMPT}` = 'true'"
        with reachable():
            hidden = self._client.search_model_versions(wanted, max_results=1)
        if hidden:
            raise Refused(
                f"MLflow hides the versions of {registered}, because version {hidden[0].version} has the tag "
                f"{_PROMPT}: delete that tag, and find out who set it"
            )

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
