"""Download the files of versions, and keep each environment's own copy of them.

Each environment keeps its own copy of deployed files. A promotion copies a version's files, once per sha256, into the
environment's experiment, and the log's entries name that copy. A deployment therefore survives the deletion of the
candidate, of its run, or of the candidate's whole experiment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from onward.registry.artifact.manifest import NOT_OURS, check_folder, manifest_digest
from onward.registry.artifact.serving_plan import SERVING
from onward.registry.errors import Refused
from onward.registry.evidence.records import FileDigest
from onward.registry.store import relocate
from onward.registry.store.connection import ensure_experiment, http_status, reachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from onward.registry.log.entries import GateResult


# This tag of a version holds the digest of the serving.json that the version was measured with.
SERVED_AS = "serving"


class Deployed(Protocol):
    """The digests and the location of deployed files, as a log entry or a resolved target has them."""

    @property
    def sha256(self) -> str:
        """The digest of the model's files."""

    @property
    def manifest(self) -> str:
        """The digest of the manifest of all files; "" if an older Onward pinned only the model's files."""

    @property
    def source(self) -> str:
        """The models:/ URI of the files."""

    @property
    def evidence(self) -> Mapping[str, str]:
        """What was measured of the version."""


@dataclass(frozen=True)
class Found:
    """Files that were downloaded and checked.

    Attributes:
        source: the models:/ URI that they were downloaded from.
        folder: the local folder that contains them.
        model: the digests of the files that make up the model itself.
    """

    source: str
    folder: Path
    model: list[FileDigest]


class Files:
    """The files in the store.

    Every method raises StoreUnreachable if the store does not answer.

    Args:
        client: a client of the store.

    Raises:
        UsageError: the embedded store was moved or copied (registry/store/relocate.py).
    """

    def __init__(self, client: MlflowClient) -> None:
        relocate.require_here(client.tracking_uri)
        self._client = client

    def prepare(self, environment: str) -> list[str]:
        """Create an environment's experiment.

        Returns:
            the experiment's name if it was created now, else an empty list.
        """
        name = experiment_name(environment)
        with reachable():
            exists = self._client.get_experiment_by_name(name) is not None
        ensure_experiment(self._client, name)
        return [] if exists else [name]

    def fetch(self, source: str, folder: Path) -> Path:
        """Download the files of a models:/ URI.

        Args:
            source: the models:/ URI.
            folder: where to download to; it is created if it does not exist.

        Returns:
            the folder that contains the files.

        Raises:
            Refused: the files are gone from the store, or cannot be read.
        """
        from mlflow.exceptions import MlflowException

        gone = Refused(f"{source}: the store no longer has its files")
        folder.mkdir(parents=True, exist_ok=True)
        with reachable():
            try:
                found = self._download(self._location(source), folder)
            except FileNotFoundError:
                raise gone from None
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                    raise gone from None
                raise
            except (PermissionError, NotADirectoryError, shutil.Error) as error:
                raise Refused(f"{source}: its files cannot be read: {error}") from error
            except OSError as error:
                if "No such file" in str(error) or http_status(error) == 404:
                    raise gone from None
                raise
        (found / NOT_OURS).unlink(missing_ok=True)
        if not any(found.iterdir()):  # for a missing folder, a server answers with an empty one
            raise gone
        return found

    def _download(self, location: str, folder: Path) -> Path:
        # mlflow.artifacts.download_artifacts is not used: it always looks up models:/ URIs in the store of this
        # process, even if it receives the URI of another one.
        if location.startswith(("file:", "/")):
            from mlflow.utils.file_utils import local_file_uri_to_path

            local = local_file_uri_to_path(location)  # type: ignore[no-untyped-call]
            return Path(shutil.copytree(local, folder, copy_function=shutil.copyfile, dirs_exist_ok=True))
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self._client.tracking_uri
        repository = get_artifact_repository(location, tracking_uri=uri, registry_uri=uri)
        return Path(repository.download_artifacts("", dst_path=str(folder)))  # type: ignore[no-untyped-call]

    def _location(self, source: str) -> str:
        """The location of the files of a models:/ URI, according to the client's own store."""
        while source.startswith("models:/"):
            name, _, version = source.removeprefix("models:/").partition("/")
            if version:
                source = str(self._client.get_model_version_download_uri(name, version))
            else:
                source = str(self._client.get_logged_model(name).artifact_location)
        return source

    def experiment(self, environment: str) -> str | None:
        """Id of the experiment that contains an environment's own copies; None if it does not exist yet."""
        with reachable():
            found = self._client.get_experiment_by_name(experiment_name(environment))
        return str(found.experiment_id) if found is not None else None

    def own_copies(self, environment: str, model: str, sha256: str) -> list[str]:
        """The models:/ URIs of an environment's own copies of a model, the newest first.

        There is more than one only if a copy lost its files and was replaced.
        """
        from mlflow.entities import LoggedModelStatus

        experiment = self.experiment(environment)
        if experiment is None:
            return []
        with reachable():
            found = self._client.search_logged_models(
                [experiment], filter_string=f"name = '{model}' and tags.sha256 = '{sha256}'"
            )
        complete = [logged for logged in found if logged.status == LoggedModelStatus.READY]
        complete.sort(key=lambda logged: -int(logged.creation_timestamp))
        return [f"models:/{logged.model_id}" for logged in complete]

    def obtain(self, sources: Iterable[str], wanted: Deployed, folder: Path) -> Found:
        """Download from the first source that still has the wanted files, and check every file.

        Args:
            sources: models:/ URIs, in order of preference.
            wanted: the digests that the files must have.
            folder: the files go to a subfolder of this folder.

        Raises:
            Refused: no source has the files. The message says what is wrong with each source.
        """
        problems = []
        for number, source in enumerate(unique(sources)):
            try:
                found = self.fetch(source, folder / str(number))
                model = check_folder(found, wanted.sha256, wanted.manifest)
                require_served(found, wanted.evidence)
                return Found(source, found, model)
            except Refused as refused:
                problems.append(str(refused) if source in str(refused) else f"{source}: {refused}")
        raise Refused("; ".join(problems) or "the store no longer has its files")

    def copy_of(self, environment: str, model: str, entry: Deployed, folder: Path) -> Found:
        """Download the files of an entry, or of a version, and check every file.

        The copy that the entry names comes first, then the environment's other copies of the same model.

        Args:
            environment: the entry's environment; "" for a version, which has no copies besides its own files.
            model: the model's name.
            entry: the entry or version.
            folder: the files go to a subfolder of this folder.

        Raises:
            Refused: no copy has the files, as in `obtain`.
        """
        return self.obtain(self._copies(environment, model, entry), entry, folder)

    def _copies(self, environment: str, model: str, entry: Deployed) -> Iterator[str]:
        yield entry.source
        if environment:
            yield from self.own_copies(environment, model, entry.sha256)

    def keep(self, environment: str, model: str, sha256: str, folder: Path, scratch: Path) -> str:
        """Upload a folder as the environment's own copy.

        The copy is downloaded again and checked, because consumers must be able to load every file as it was uploaded.

        Args:
            environment: the environment.
            model: the model's name.
            sha256: the digest of the model's files.
            folder: the files to upload.
            scratch: a folder for the check's download.

        Returns:
            the models:/ URI of the copy.

        Raises:
            Refused: the uploaded files differ from the local ones.
        """
        from mlflow.entities import LoggedModelStatus

        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable():
            logged = self._client.create_logged_model(
                experiment, name=model, tags={"sha256": sha256, "onward.environment": environment}, model_type="onnx"
            )
            source = f"models:/{logged.model_id}"
            try:
                self._client.log_model_artifacts(logged.model_id, str(folder))
                check_folder(self.fetch(source, scratch), sha256, manifest_digest(folder))
            except BaseException:
                self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
                raise
            self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        return source

    def keep_gates(self, environment: str, model: str, gates: Iterable[GateResult], pages: Mapping[str, str]) -> str:
        """Record the gate results of a promotion as a run of the environment's experiment.

        Args:
            environment: the environment.
            model: the model's name.
            gates: the results.
            pages: the HTML page of each Great Expectations suite, by the suite's name.

        Returns:
            the id of the run.
        """
        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable(), tempfile.TemporaryDirectory(prefix="onward-") as temporary:
            _write_pages(Path(temporary), pages)
            run = self._client.create_run(experiment, run_name=f"{model}: gates", tags={"onward.model": model})
            self._client.log_artifacts(run.info.run_id, temporary, "gates")
            results = [gate.model_dump() for gate in gates]
            self._client.log_text(run.info.run_id, json.dumps(results, indent=2), "gates/results.json")
            # Not `set_terminated`, which prints to the standard output of a process that imports Onward.
            self._client.update_run(run.info.run_id, status="FINISHED")
        return str(run.info.run_id)


def unique(sources: Iterable[str]) -> Iterator[str]:
    """Yield each source once. Later sources are computed only when they are needed."""
    seen = set()
    for source in sources:
        if source not in seen:
            seen.add(source)
            yield source


def served(folder: Path) -> str:
    """The sha256 of a version's serving.json, which says how it is served; "" if it has none."""
    file = folder / SERVING
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def require_served(folder: Path, evidence: Mapping[str, str]) -> None:
    """Check that a version's serving.json is the one that its evidence was measured with.

    Evidence of an older Onward does not name a serving.json; then nothing is checked.

    Args:
        folder: the version's files.
        evidence: the version's evidence.

    Raises:
        Refused: the session options, or the files for the providers, differ.
    """
    if SERVED_AS in evidence and served(folder) != evidence[SERVED_AS]:
        raise Refused(f"{SERVING} differs from the one that the version was measured with")


def experiment_name(environment: str) -> str:
    """The name of the experiment that contains an environment's own copies."""
    return f"environments/{environment}"


def _write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write each suite's HTML page to `folder`."""
    for name, page in pages.items():
        path = folder / f"{name.removesuffix('.json')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
