"""The files of versions: fetched, and kept as an environment's own copies.

An environment owns its bytes: promotion copies a version's files once per sha256 into the environment's experiment,
and entries point there. So deleting the candidate, its run or its whole experiment takes nothing down.
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


# The tag of a version that says how it was served when it was measured.
SERVED_AS = "serving"


class Deployed(Protocol):
    """What says which bytes are meant, and where they are: an entry of a log, or what names one."""

    @property
    def sha256(self) -> str: ...
    @property
    def manifest(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def evidence(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Found:
    """Files that were downloaded and checked: where from, the folder that they are in, and the model's own."""

    source: str
    folder: Path
    model: list[FileDigest]


class Files:
    """The files in the store. Every method raises StoreUnreachable where the store does not answer.

    Raises:
        UsageError: the embedded store was moved or copied (registry/store/relocate.py).
    """

    def __init__(self, client: MlflowClient) -> None:
        relocate.require_here(client.tracking_uri)
        self._client = client

    def prepare(self, environment: str) -> list[str]:
        """Make an environment's experiment, and return its name if it was not there."""
        name = experiment_name(environment)
        with reachable():
            there = self._client.get_experiment_by_name(name) is not None
        ensure_experiment(self._client, name)
        return [] if there else [name]

    def fetch(self, source: str, folder: Path) -> Path:
        """Download what `source` (a models:/ URI) points to into `folder`, and return the folder it is in.

        Raises:
            Refused: its files are gone from the store, or cannot be read.
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
        if not any(found.iterdir()):  # what a server answers about a folder that is not there
            raise gone
        return found

    def _download(self, location: str, folder: Path) -> Path:
        # Not mlflow.artifacts.download_artifacts: it looks a models:/ URI up in the store of this process, whichever
        # store it is told.
        if location.startswith(("file:", "/")):
            from mlflow.utils.file_utils import local_file_uri_to_path

            local = local_file_uri_to_path(location)  # type: ignore[no-untyped-call]
            return Path(shutil.copytree(local, folder, copy_function=shutil.copyfile, dirs_exist_ok=True))
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self._client.tracking_uri
        there = get_artifact_repository(location, tracking_uri=uri, registry_uri=uri)
        return Path(there.download_artifacts("", dst_path=str(folder)))  # type: ignore[no-untyped-call]

    def _location(self, source: str) -> str:
        """Where the files of a models:/ URI are, as the client's own store has it."""
        while source.startswith("models:/"):
            name, _, version = source.removeprefix("models:/").partition("/")
            if version:
                source = str(self._client.get_model_version_download_uri(name, version))
            else:
                source = str(self._client.get_logged_model(name).artifact_location)
        return source

    def experiment(self, environment: str) -> str | None:
        """Id of the experiment that holds an environment's own copies, None where it was not made yet."""
        with reachable():
            found = self._client.get_experiment_by_name(experiment_name(environment))
        return str(found.experiment_id) if found is not None else None

    def own_copies(self, environment: str, model: str, sha256: str) -> list[str]:
        """The sources of an environment's own copies of these bytes, the newest first. There is one, unless one was
        lost and another took its place."""
        from mlflow.entities import LoggedModelStatus

        experiment = self.experiment(environment)
        if experiment is None:
            return []
        with reachable():
            found = self._client.search_logged_models(
                [experiment], filter_string=f"name = '{model}' and tags.sha256 = '{sha256}'"
            )
        whole = [logged for logged in found if logged.status == LoggedModelStatus.READY]
        whole.sort(key=lambda logged: -int(logged.creation_timestamp))
        return [f"models:/{logged.model_id}" for logged in whole]

    def obtain(self, sources: Iterable[str], wanted: Deployed, folder: Path) -> Found:
        """Download the first of these sources that still has the files that `wanted` pins, to a folder below `folder`.
        Every file was checked.

        Raises:
            Refused: none of them has; the message says of each what is wrong with it.
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
        """The files of an entry, from the copy that it names, else from another own copy that its environment has. Of a
        version, which is in no environment (""), those that it names.

        Raises:
            Refused: as `obtain`.
        """
        return self.obtain(self._copies(environment, model, entry), entry, folder)

    def _copies(self, environment: str, model: str, entry: Deployed) -> Iterator[str]:
        yield entry.source
        if environment:
            yield from self.own_copies(environment, model, entry.sha256)

    def keep(self, environment: str, model: str, sha256: str, folder: Path, scratch: Path) -> str:
        """Make `folder` the environment's own copy, and return its source. Read back: what a consumer will load has
        to be what was uploaded, to the last file."""
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
        """Record what suites said of a promotion, as a run of the environment's experiment, and return the run's id."""
        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable(), tempfile.TemporaryDirectory(prefix="onward-") as temporary:
            _write_pages(Path(temporary), pages)
            run = self._client.create_run(experiment, run_name=f"{model}: gates", tags={"onward.model": model})
            self._client.log_artifacts(run.info.run_id, temporary, "gates")
            results = [gate.model_dump() for gate in gates]
            self._client.log_text(run.info.run_id, json.dumps(results, indent=2), "gates/results.json")
            self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)


def unique(sources: Iterable[str]) -> Iterator[str]:
    """Each source once, and the next one only when it is asked for."""
    seen = set()
    for source in sources:
        if source not in seen:
            seen.add(source)
            yield source


def served(folder: Path) -> str:
    """What tells how a version is served: the sha256 of its serving.json, empty where it has none."""
    file = folder / SERVING
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def require_served(folder: Path, evidence: Mapping[str, str]) -> None:
    """Make sure that a version's folder is served as it was when `evidence` was measured, where that says how.

    Raises:
        Refused: its session options, or the files for the providers, are others.
    """
    if SERVED_AS in evidence and served(folder) != evidence[SERVED_AS]:
        raise Refused(f"{SERVING} is another one than its evidence was measured with")


def experiment_name(environment: str) -> str:
    """The experiment that holds an environment's own copies."""
    return f"environments/{environment}"


def _write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write each suite's page to `folder`."""
    for name, page in pages.items():
        path = folder / f"{name.removesuffix('.json')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
