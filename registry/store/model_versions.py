"""Registered models and their versions, as MLflow has them, read so that it costs the same however many there are.

MLflow's own `get_registered_model` is not used: to answer, it reads every version there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onward.registry.errors import Refused
from onward.registry.store.connection import reachable
from onward.registry.store.schema import Overview

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_PAGE = 1000
_PROMPT = "mlflow.prompt.is_prompt"
# What is live is told from the entries since the last that counted: one, where nobody raced for it.
_FIRST_PAGE = 3


class Versions:
    """The rows of the registry. Every method raises StoreUnreachable where the store does not answer."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def aliases(self, registered: str) -> dict[str, int]:
        """Alias to version number of a registered model; empty where there is no such model."""
        with reachable():
            # Not get_registered_model: to answer that, MLflow reads every version.
            page = self._client.search_registered_models(f"name = '{registered}'", max_results=1)
        return _aliases(page[0]) if page else {}

    def alias(self, registered: str, alias: str) -> int | None:
        """The version under one alias: a quarter of the time that all aliases take."""
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return int(self._client.get_model_version_by_alias(registered, alias).version)
            except MlflowException as error:
                # The model, or only the alias, is not there.
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def everything(self) -> dict[str, Overview]:
        """The newest versions and the aliases of all registered models, in as few requests as there are pages."""
        found: dict[str, Overview] = {}
        token: str | None = None
        while True:
            with reachable():
                page = self._client.search_registered_models(max_results=_PAGE, page_token=token)
            for registered in page:
                newest = sorted(registered.latest_versions, key=lambda version: -int(version.version))
                found[registered.name] = Overview(tuple(newest), _aliases(registered))
            token = page.token
            if not token:
                return found

    def get(self, registered: str, number: int) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return self._client.get_model_version(registered, str(number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def newest_first(self, registered: str) -> Iterator[ModelVersion]:
        for page, _ in self.pages(registered):
            yield from page

    def pages(self, registered: str) -> Iterator[tuple[list[ModelVersion], int]]:
        """The versions of a registered model, newest first, in pages that grow; with each, the number below which
        nothing was read yet, less one: 0 after the last.

        Pages go on below the number that the last one ended at: what others append or delete meanwhile moves nothing.
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
            size = min(10 * size, _PAGE)

    def _require_visible(self, registered: str) -> None:
        """Check that MLflow hides no versions. It takes a registered model for a prompt, and leaves all versions of it
        out of its answers, where one of them carries a certain tag; EDIT allows to set that.

        Raises:
            Refused: it hides them.
        """
        wanted = f"name = '{registered}' and tags.`{_PROMPT}` = 'true'"
        with reachable():
            hidden = self._client.search_model_versions(wanted, max_results=1)
        if hidden:
            raise Refused(
                f"MLflow hides the versions of {registered}, because version {hidden[0].version} carries the tag "
                f"{_PROMPT}: delete that tag, and ask who set it"
            )

    def tagged(self, registered: str, **tags: str) -> list[ModelVersion]:
        """The versions of a registered model that carry all these tags; a thousand at most."""
        wanted = " and ".join([f"name = '{registered}'", *(f"tags.{key} = '{value}'" for key, value in tags.items())])
        with reachable():
            return list(self._client.search_model_versions(wanted, max_results=_PAGE))

    def named(self, pattern: str) -> list[str]:
        """The names of registered models that are LIKE a pattern; a thousand at most."""
        with reachable():
            page = self._client.search_registered_models(f"name LIKE '{pattern}'", max_results=_PAGE)
        return [registered.name for registered in page]


def _aliases(registered: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in registered.aliases.items()}
