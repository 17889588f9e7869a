"""Read the rows of a registered model, newest first: what the log and the candidates are made of.

Two kinds of readers exist. registry/store/model_versions.py reads with MLflow's client. registry/store/direct_rows.py
reads the same rows without MLflow, for sessions and servers: importing MLflow takes seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onward.registry.errors import Refused
from onward.registry.store.connection import PAGE
from onward.registry.store.schema import Version

PROMPT = "mlflow.prompt.is_prompt"
# The newest entry usually says what is live. More entries are needed only if some of them lost a race.
_FIRST_PAGE = 3


@dataclass(frozen=True)
class Row:
    """A version of a registered model (schema.Version)."""

    name: str
    version: int
    creation_timestamp: int
    current_stage: str | None
    source: str | None
    run_link: str | None
    tags: Mapping[str, str]


class Rows(ABC):
    """Reads versions of registered models. Every method raises StoreUnreachable if the store does not answer."""

    @abstractmethod
    def page(self, registered: str, below: int, size: int) -> list[Version]:
        """Read the newest versions of a registered model, newest first.

        Args:
            registered: the name of the registered model.
            below: the number that all versions must be below; 0 for no limit.
            size: the largest number of versions.
        """

    @abstractmethod
    def get(self, registered: str, number: int) -> Version | None:
        """One version of a registered model; None if it does not exist."""

    @abstractmethod
    def prompt(self, registered: str) -> int | None:
        """The number of a version that marks the registered model as a prompt; None if there is none."""

    def newest_first(self, registered: str) -> Iterator[Version]:
        """The versions of a registered model, newest first, read page by page as they are needed."""
        for page, _ in self.pages(registered):
            yield from page

    def pages(self, registered: str) -> Iterator[tuple[list[Version], int]]:
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
            page = self.page(registered, below, size)
            if not page and not below:
                self._require_visible(registered)
            if len(page) < size:
                yield page, 0
                return
            below = int(page[-1].version)
            yield page, below - 1
            size = min(10 * size, PAGE)

    def _require_visible(self, registered: str) -> None:
        """Check that MLflow does not hide the versions of a registered model.

        If one version has a certain tag, MLflow treats the registered model as a prompt, and leaves all of its
        versions out of search results. EDIT permission is enough to set that tag.

        Raises:
            Refused: MLflow hides them.
        """
        hidden = self.prompt(registered)
        if hidden is not None:
            raise Refused(
                f"MLflow hides the versions of {registered}, because version {hidden} has the tag "
                f"{PROMPT}: delete that tag, and find out who set it"
            )
