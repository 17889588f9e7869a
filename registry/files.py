"""The files of versions: fetched, and kept as an environment's own copies.

An environment owns its bytes: promotion copies a version's files once per sha256 into the environment's experiment,
and entries point there. So deleting the candidate, its run or its whole experiment takes nothing down.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from registry import suites
from registry.connection import ensure_experiment, http_status, reachable
from registry.errors import Refused
from registry.integrity import check_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from registry.deployments import GateResult


class Files:
    """The files in the store. Every method raises StoreUnreachable where the store does not answer."""

    def __init__(self, client: MlflowClient) -> None:
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
            Refused: its files are gone from the store.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        gone = Refused(f"{source}: the store no longer has its files")
        with reachable():
            try:
                found = Path(download_artifacts(artifact_uri=source, dst_path=str(folder)))
            except FileNotFoundError:
                raise gone from None
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                    raise gone from None
                raise
            except OSError as error:
                if "No such file" in str(error) or http_status(error) == 404:
                    raise gone from None
                raise
        (found / "registered_model_meta").unlink(missing_ok=True)  # MLflow's note on where this download came from
        if not any(found.iterdir()):  # what a server answers about a folder that is not there
            raise gone
        return found

    def own_copy(self, environment: str, model: str, sha256: str, manifest: str = "") -> str | None:
        """The source of an environment's own copy of these bytes, or None where it has none yet. `manifest` pins all
        files of the version, where that is known."""
        from mlflow.entities import LoggedModelStatus

        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable():
            wanted = f"name = '{model}' and tags.sha256 = '{sha256}'"
            wanted += f" and tags.manifest = '{manifest}'" if manifest else ""
            found = self._client.search_logged_models([experiment], filter_string=wanted)
        whole = [logged for logged in found if logged.status == LoggedModelStatus.READY]
        return f"models:/{whole[0].model_id}" if whole else None

    def keep(self, environment: str, model: str, sha256: str, manifest: str, folder: Path, scratch: Path) -> str:
        """Make `folder` the environment's own copy, and return its source. Read back: what a consumer will load has
        to be what was uploaded."""
        from mlflow.entities import LoggedModelStatus

        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable():
            logged = self._client.create_logged_model(
                experiment,
                name=model,
                tags={"sha256": sha256, "manifest": manifest, "onward.environment": environment},
                model_type="onnx",
            )
            source = f"models:/{logged.model_id}"
            try:
                self._client.log_model_artifacts(logged.model_id, str(folder))
                check_folder(self.fetch(source, scratch), sha256, manifest)
            except BaseException:
                self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
                raise
            self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        return source

    def keep_gates(self, environment: str, model: str, gates: Iterable[GateResult], pages: Mapping[str, str]) -> str:
        """Record what suites said of a promotion, as a run of the environment's experiment, and return the run's id."""
        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable(), tempfile.TemporaryDirectory(prefix="onward-") as temporary:
            suites.write(Path(temporary), pages)
            run = self._client.create_run(experiment, run_name=f"{model}: gates", tags={"onward.model": model})
            self._client.log_artifacts(run.info.run_id, temporary, "gates")
            results = [gate.model_dump() for gate in gates]
            self._client.log_text(run.info.run_id, json.dumps(results, indent=2), "gates/results.json")
            self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)


def experiment_name(environment: str) -> str:
    """The experiment that holds an environment's own copies."""
    return f"environments/{environment}"
