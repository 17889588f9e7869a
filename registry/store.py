"""The deployment log, kept in MLflow: each environment of each model is a registered model, its versions the log.

Creating a version is the one MLflow operation that is atomic and gets a number from the server, increasing and never
used twice. Entries are never deleted. Aliases (`live` on the environment's model; the environments' names on the
candidates' model) are views, written after the entry and set right by `heal`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.connection import connect, ensure_experiment, reachable
from registry.deployments import Entry, Line, fold
from registry.errors import Refused, UsageError
from registry.integrity import check_folder
from registry.policy import Environment

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

LIVE = "live"

_PAGE = 1000


class Store:
    """The registry of one MLflow store.

    Raises, from every method: StoreUnreachable where the store does not answer.
    """

    def __init__(self) -> None:
        self.client = connect()

    def models(self) -> list[str]:
        """The candidates' models, by name: those that no environment owns."""
        with reachable():
            return sorted(m.name for m in self._pages(self.client.search_registered_models) if "." not in m.name)

    def candidates(self, model: str) -> list[ModelVersion]:
        """The registered versions of a model, oldest first; empty where there are none."""
        return self._versions(checked_name(model, "model"))

    def candidate(self, model: str, version: str) -> ModelVersion:
        """One registered version.

        Raises:
            UsageError: there is none.
        """
        found = self.candidates(model)
        for candidate in found:
            if str(candidate.version) == version:
                return candidate
        known = ", ".join(str(c.version) for c in found)
        if not known:
            raise UsageError(f"there is no registered model {model!r}; `onward status` lists what there is")
        raise UsageError(f"{model} has no version {version}; it has {known}")

    def line(self, model: str, environment: str) -> Line:
        """What the log of an environment says."""
        return fold(_entry(version) for version in self._versions(environment_model(model, environment)))

    def append(self, entry: Entry) -> Entry:
        """Append an entry and return it with its number; whether it counts, `line` says."""
        from mlflow.exceptions import MlflowException

        name = environment_model(entry.model, entry.environment)
        with reachable():
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = self.client.create_model_version(
                name,
                source=entry.source,
                model_id=entry.source.removeprefix("models:/"),
                tags=_tags(entry),
                description=str(entry),
            )
        return entry.model_copy(update={"number": int(made.version)})

    def mark_lost(self, entry: Entry) -> None:
        """Tag an entry that lost its race, for whoever reads the log in MLflow's UI."""
        with reachable():
            name = environment_model(entry.model, entry.environment)
            self.client.set_model_version_tag(name, str(entry.number), "lost", "true")

    def own_copy(self, model: str, environment: str, source: str, sha256: str) -> str:
        """The environment's own copy of the bytes, made once per sha256: `models:/<logged model>`.

        Raises:
            Refused: the bytes at `source` are not those that were published.
        """
        from mlflow.entities import LoggedModelStatus

        with reachable():
            experiment = ensure_experiment(self.client, f"onward-{checked_name(environment, 'environment')}")
            tags = {"onward.model": checked_name(model, "model"), "onward.sha256": _checked_digest(sha256)}
            wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
            for copy in self.client.search_logged_models([experiment], wanted):
                if copy.status == LoggedModelStatus.READY:
                    return f"models:/{copy.model_id}"
            with self.files(source) as folder:
                check_folder(folder, sha256)
                copy = self.client.create_logged_model(experiment, name=model, tags=tags, model_type="onnx")
                self.client.log_model_artifacts(copy.model_id, str(folder))
            self.client.finalize_logged_model(copy.model_id, LoggedModelStatus.READY)
            return f"models:/{copy.model_id}"

    @contextmanager
    def files(self, source: str) -> Iterator[Path]:
        """The files of a version (`models:/...`), downloaded to a temporary folder.

        Raises:
            Refused: they are not there.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
            try:
                with reachable():
                    folder = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=temporary)
            except MlflowException as error:
                raise Refused(f"the files of {source} cannot be had: {str(error).splitlines()[0]}") from error
            yield Path(folder)

    def drift(self, model: str, environments: dict[str, Environment]) -> dict[tuple[str, str], str | None]:
        """Aliases that do not say what the logs say: (registered model, alias) to what it should be, None for none."""
        wrong: dict[tuple[str, str], str | None] = {}
        existing = {str(c.version) for c in self.candidates(model)}
        aliases = self._aliases(model)
        for name in environments:
            live = self.line(model, name).live
            own = environment_model(model, name)
            wanted = str(live.number) if live else None
            if live and self._aliases(own).get(LIVE) != wanted:
                wrong[own, LIVE] = wanted
            candidate = live.candidate_version if live and live.candidate_version in existing else None
            if aliases.get(name) != candidate:
                wrong[model, name] = candidate
        return wrong

    def heal(self, model: str, environments: dict[str, Environment]) -> list[str]:
        """Set the aliases to what the logs say; returns what was changed, in words."""
        changed = []
        for (name, alias), version in self.drift(model, environments).items():
            with reachable():
                if version is None:
                    self.client.delete_registered_model_alias(name, alias)
                else:
                    self.client.set_registered_model_alias(name, alias, version)
            changed.append(f"{name}@{alias} -> {version or 'nothing'}")
        return changed

    def _aliases(self, name: str) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return {key: str(value) for key, value in self.client.get_registered_model(name).aliases.items()}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}

    def _versions(self, name: str) -> list[ModelVersion]:
        with reachable():
            found = self._pages(self.client.search_model_versions, f"name = '{name}'")
            return sorted(found, key=lambda version: int(version.version))

    def _pages(self, search: Any, *arguments: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = search(*arguments, max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def environment_model(model: str, environment: str) -> str:
    """`production.cnn`: the registered model whose versions are the environment's log."""
    return f"{checked_name(environment, 'environment')}.{checked_name(model, 'model')}"


def checked_name(name: str, what: str) -> str:
    """`name`, fit to be put into a path or a filter.

    Raises:
        UsageError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UsageError(f"{name!r} is no name for a {what}: letters, digits, - and _")
    return name


def _checked_digest(sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise Refused(f"{sha256!r} is no sha256; was this version registered by Onward?")
    return sha256


def _tags(entry: Entry) -> dict[str, str]:
    fields = entry.model_dump(mode="json", exclude={"number"}, exclude_none=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}


def _entry(version: ModelVersion) -> Entry:
    fields: dict[str, Any] = {key: value for key, value in version.tags.items() if key in Entry.model_fields}
    for key in ("base", "restores", "forced", "evidence"):
        if key in fields:
            fields[key] = json.loads(fields[key])
    return Entry(number=int(version.version), **fields)
