"""Record the evidence of a model in MLflow, and register a version for the chosen variant.

A model has one run. Each variant has a child run and a logged model. The chosen variant becomes a registered version.

Recording can be repeated and resumed. Every run, logged model and version is searched by a tag of its content before it
is created. If the process is killed, the next call completes the records. The parent run's status FINISHED is written
last, so a finished run is always complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.artifact.manifest import manifest_digest
from onward.registry.artifact.serving_plan import MODEL, Served, Serving, of_winners, version_digest
from onward.registry.errors import Refused
from onward.registry.evidence.records import FileDigest, TensorSpec
from onward.registry.evidence.reports import Evidence, PublishReport
from onward.registry.inference.servable import Servable, examine
from onward.registry.names import valid_name
from onward.registry.store import newest_run, relocate, sqlite_reader
from onward.registry.store.artifacts import SERVED_AS, Files, served
from onward.registry.store.connection import (
    as_default,
    connect,
    ensure_experiment,
    reachable,
    settle_process,
    tracking_uri,
)
from onward.registry.text import markdown
from onward.registry.tracking.metrics import (
    LONGEST_TAG,
    RunRecord,
    flatten,
    graph_params,
    label,
    run_records,
    sentence,
    version_tags,
)
from onward.registry.trust.identity import who
from onward.registry.uri import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

# MLflow's limits for one batch of metrics, params and tags, and for the length of a param.
_METRICS, _PARAMS, _TAGS = 1000, 100, 100
_LONGEST_PARAM = 6000


@dataclass(frozen=True)
class Publication:
    """The input of `publish`.

    Attributes:
        root: the folder that the evidence's file paths are relative to.
        experiment: the name of the MLflow experiment.
        evidence: the model's evidence.
        params: the model's effective settings.
        context: facts about this run rather than the model (commit, machine), which become tags.
        bundle: a folder with inputs.npz, outputs.npz and tolerance.json.
        reports: the folder with a `<stage>/report.json` for each stage.
        inputs: the inputs of the model.
        outputs: the outputs of the model.
        fault: why the chosen variant gave no answers to record; "" if it did.
    """

    root: Path
    experiment: str
    evidence: Evidence
    params: Mapping[str, Any]
    context: Mapping[str, str]
    bundle: Path | None
    reports: Path
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    fault: str = ""

    def libraries(self) -> list[Path]:
        """The native libraries with custom operators, which the export stage copied.

        Raises:
            Refused: a library has changed since.
        """
        folder = self.reports / "export"
        for library in self.evidence.export.custom_ops:
            if FileDigest.of(folder / library.path, folder) != library:
                raise Refused(f"{library.path} has changed since the export stage copied it: run `dvc repro`")
        return [folder / library.path for library in self.evidence.export.custom_ops]

    def content(self, fault: str = "") -> str:
        """The digest of the publication's content: its evidence and its settings, but not its context.

        Args:
            fault: why the version cannot be served, which is part of the content.
        """
        digest = hashlib.sha256(self.evidence.model_dump_json().encode())
        digest.update(json.dumps(self.params, sort_keys=True, default=str).encode())
        digest.update(fault.encode())
        return digest.hexdigest()


def store_identity(experiment: str) -> dict[str, str]:
    """Identify the store in use, so that a new or emptied store is noticed.

    Args:
        experiment: the name of the MLflow experiment, which is created if it does not exist.

    Returns:
        the store's URI without credentials, and the experiment's name, id and creation time.

    Raises:
        StoreUnreachable: the store did not answer.
    """
    settle_process()
    found = sqlite_reader.experiment(experiment)
    if found is None:
        relocate.require_here()
        client = connect()
        experiment_id = ensure_experiment(client, experiment)
        with reachable():
            found = experiment_id, str(client.get_experiment(experiment_id).creation_time)
    return {
        "store": without_credentials(tracking_uri()),
        "experiment": experiment,
        "experiment_id": found[0],
        "created": found[1],
    }


def publish(publication: Publication) -> PublishReport:
    """Record a model's evidence, and register a version if nothing failed and the version can be served.

    The version's folder is checked before anything is written (registry/inference/servable.py). A second call with the
    same evidence changes nothing. New measurements of the same files, with the same serving.json, add a run but no
    version.

    Args:
        publication: the evidence, and what belongs to it.

    Returns:
        the report of the publish stage.

    Raises:
        StoreUnreachable: the store did not answer. The next call completes the records.
        UsageError: the model's name is not valid for a registered model.
    """
    valid_name(publication.evidence.model, "a model")
    settle_process()
    relocate.require_here()
    client = connect()
    experiment = ensure_experiment(client, publication.experiment)
    with tempfile.TemporaryDirectory() as temporary:
        version = _prepare(publication, Path(temporary) / "model")
        with reachable():
            return _Recorder(client, experiment, publication, version).record()


def attach(run_id: str, texts: Mapping[str, str]) -> None:
    """Add files to a run, or replace them.

    Args:
        run_id: the run.
        texts: the content of each file, by its path among the run's artifacts.

    Raises:
        StoreUnreachable: the store did not answer.
    """
    client = connect()
    with reachable():
        for path, text in texts.items():
            client.log_text(run_id, text, path)


@dataclass(frozen=True)
class _Prepared:
    """The version as it will be uploaded: its folder, its sha256, and whether it can be served."""

    folder: Path
    sha256: str = ""
    servable: Servable = field(default_factory=Servable)


def _prepare(publication: Publication, folder: Path) -> _Prepared:
    """Build the folder of the chosen variant with all files of a version, and check it."""
    evidence, chosen = publication.evidence, publication.evidence.select
    if evidence.failures():
        return _Prepared(folder)
    if publication.fault:
        return _Prepared(folder, servable=Servable(fault=publication.fault))
    name = label(chosen.variant, chosen.runtime)
    run_record = next(
        run_record
        for run_record in run_records(evidence, publication.root, publication.params)
        if run_record.name == name
    )
    try:
        serving, others = of_winners(chosen.winners, publication.root, publication.libraries())
        _build(publication, run_record, folder, publication.bundle, serving, others)
    except Refused as error:
        return _Prepared(folder, servable=Servable(fault=str(error)))
    sha256 = version_digest(chosen.winners)
    return _Prepared(folder, sha256, examine(folder, sha256, run_record.provider))


def _build(
    publication: Publication,
    run_record: RunRecord,
    folder: Path,
    bundle: Path | None,
    serving: Serving,
    others: Mapping[str, Sequence[Path]],
) -> None:
    from onward.registry.artifact.mlflow_model import build_folder

    inputs, outputs = publication.inputs, publication.outputs
    libraries = publication.libraries()
    build_folder(folder, run_record.files, inputs, outputs, run_record.provider, bundle, serving, others, libraries)


class _Recorder:
    """Writes the runs, the logged models and the version of one publication."""

    def __init__(self, client: MlflowClient, experiment: str, publication: Publication, version: _Prepared) -> None:
        self.client = client
        self.experiment = experiment
        self.publication = publication
        self.evidence = publication.evidence
        self.version = version
        fault = version.servable.fault
        self.key = publication.content(fault)
        failures = [f"{failed.stage}: {failed.reason}" for failed in self.evidence.failures()]
        if fault:
            failures.append(f"publish: the version cannot be served: {fault}")
        self.failures = "; ".join(failures)

    def record(self) -> PublishReport:
        """Write everything that the store does not contain yet."""
        chosen = self.evidence.select
        servable = self.version.servable
        parent = self._run(self.evidence.model, {"onward.role": "model"})
        children = {}
        report = PublishReport(
            model=self.evidence.model, status="failed" if servable.fault else "passed", run_id=parent.info.run_id
        )
        finished = parent.info.status in ("FINISHED", "FAILED") and "onward.whole" in parent.data.tags
        models: dict[str, LoggedModel] = {}
        for run_record in run_records(self.evidence, self.publication.root, self.publication.params):
            child = self._run(
                f"{self.evidence.model} {run_record.name}",
                {"onward.role": "variant", "onward.variant": run_record.name, "mlflow.parentRunId": parent.info.run_id},
            )
            children[run_record.name] = child.info.run_id
            is_chosen = run_record.name == label(chosen.variant, chosen.runtime)
            if not finished:
                self._figures(child, run_record)
            if run_record.files and not (is_chosen and servable.fault):
                models[run_record.name] = self._logged_model(child, run_record, is_chosen and not self.failures)
            if not finished:
                self.client.set_terminated(child.info.run_id, "FAILED" if run_record.status == "failed" else "FINISHED")
        report.variants = children
        if self.failures:
            report.reason = f"{newest_run.NOTHING}{self.failures}"
        else:
            report.sha256 = self.version.sha256
            if servable.batches:
                report.findings = [f"predict_batches cannot be used: {servable.batches}"]
            model = models[label(chosen.variant, chosen.runtime)]
            report.version = self._version(parent.info.run_id, model, report.sha256)
        if not finished:
            self._parent(parent, report)
        newest_run.mark(self.client, self.evidence.model, report.run_id)
        return report

    def _run(self, name: str, tags: dict[str, str]) -> Run:
        """The run of this content with these tags, which is created if it does not exist."""
        wanted = {
            "onward.content": self.key,
            "onward.model": self.evidence.model,
            **tags,
        }
        found = self.client.search_runs(
            [self.experiment], " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items()), max_results=1
        )
        if found:
            return found[0]
        return self.client.create_run(self.experiment, run_name=name, tags={**wanted, **self.publication.context})

    def _figures(self, run: Run, run_record: RunRecord) -> None:
        tags = {"onward.status": run_record.status, "onward.reason": run_record.reason}
        self._log(run.info.run_id, run_record.metrics, run_record.params, tags)

    def _log(
        self, run_id: str, metrics: Mapping[str, float], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Log in batches, at a fixed time and step, so that a repeated call adds no second data point."""
        from mlflow.entities import Metric, Param, RunTag

        not_finite = sorted(key for key, value in metrics.items() if not math.isfinite(value))
        if not_finite:
            tags = {**tags, "onward.not_finite": ", ".join(not_finite)}
        points = [Metric(key, value, 0, 0) for key, value in metrics.items() if key not in not_finite]
        settings = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in params.items()]
        labels = [RunTag(key, str(value)[:LONGEST_TAG]) for key, value in tags.items() if value]
        for start in range(0, max(len(points), 1), _METRICS):
            self.client.log_batch(run_id, metrics=points[start : start + _METRICS])
        for start in range(0, max(len(settings), 1), _PARAMS):
            self.client.log_batch(run_id, params=settings[start : start + _PARAMS])
        for start in range(0, max(len(labels), 1), _TAGS):
            self.client.log_batch(run_id, tags=labels[start : start + _TAGS])

    def _logged_model(self, run: Run, run_record: RunRecord, chosen: bool) -> LoggedModel:
        """The variant's complete logged model. One that an interrupted upload left incomplete is deleted."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        for model in self.client.search_logged_models(
            [self.experiment], f"tags.`onward.content` = '{self.key}' and tags.`onward.variant` = '{run_record.name}'"
        ):
            if model.status == LoggedModelStatus.READY:
                return model
            self.client.delete_logged_model(model.model_id)
        model = self.client.create_logged_model(
            self.experiment,
            name=f"{self.evidence.model}-{run_record.name}",
            source_run_id=run.info.run_id,
            tags={
                "onward.content": self.key,
                "onward.model": self.evidence.model,
                "onward.variant": run_record.name,
                **({"manifest": manifest_digest(self.version.folder)} if chosen else {}),
            },
            params={key: value[:500] for key, value in run_record.params.items()},
            model_type="onnx",
        )
        if chosen:
            self.client.log_model_artifacts(model.model_id, str(self.version.folder))
        else:
            serving = Serving(
                {run_record.runtime: Served(file=MODEL, provider=run_record.provider, options=run_record.options)}
            )
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "model"
                _build(self.publication, run_record, folder, None, serving, {})
                self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        return self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def _version(self, run_id: str, model: LoggedModel, sha256: str) -> int:
        """The registered version with these files and this serving.json, which is created if it does not exist."""
        from mlflow.exceptions import MlflowException

        name = self.evidence.model
        try:
            self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(name)
        serving = served(self.version.folder)
        tags = {**version_tags(self.evidence), "sha256": sha256, "run_id": run_id, SERVED_AS: serving}
        if self.version.servable.batches:
            tags["batches"] = f"no: {self.version.servable.batches}"
        registered = self.client.search_model_versions(f"name = '{name}'")
        same_files = [version for version in registered if version.tags.get("sha256") == sha256]
        same = [version for version in same_files if self._served(version) == serving]
        if same:
            version = min(same, key=lambda found: int(found.version))
            if "instruction_sets" in tags:  # list every kind of host that these files were measured on
                before = version.tags.get("instruction_sets", "").split("; ")
                kinds = dict.fromkeys([*filter(None, before), tags["instruction_sets"]])
                tags["instruction_sets"] = "; ".join(kinds)
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    self.client.set_model_version_tag(name, version.version, key, value)
            return int(version.version)
        with as_default(self.client):
            made = self.client.create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=run_id,
                model_id=model.model_id,
                tags={**tags, "manifest": model.tags["manifest"], "published_by": who()},
                description=markdown(sentence(self.evidence)),
            )
        return int(made.version)

    def _served(self, version: ModelVersion) -> str | None:
        """The digest of a version's serving.json (artifacts.served), read from the files if the tag is missing."""
        if SERVED_AS in version.tags:
            return str(version.tags[SERVED_AS])
        with tempfile.TemporaryDirectory() as temporary:
            try:
                return served(Files(self.client).fetch(str(version.source), Path(temporary)))
            except Refused:  # its files are gone, so it cannot be served at all
                return None

    def _parent(self, parent: Run, report: PublishReport) -> None:
        from onward.registry.tracking.plots import draw_plots

        evidence, run_id = self.evidence, parent.info.run_id
        tried = list(run_records(evidence, self.publication.root, self.publication.params))
        chosen = label(evidence.select.variant, evidence.select.runtime)
        winner = next((run_record for run_record in tried if run_record.name == chosen), None)
        metrics = dict(winner.metrics) if winner else {}
        metrics["variants_tried"] = len(tried)
        metrics["variants_fit"] = sum(run_record.status == "passed" for run_record in tried)
        if evidence.train.quality is not None:
            metrics["trained_quality"] = evidence.train.quality
        params = {**graph_params(evidence), **flatten(self.publication.params)}
        if winner:
            params |= {**winner.params, "variant": evidence.select.variant}
        tags = {
            "onward.status": "failed" if self.failures else "passed",
            "onward.reason": report.reason,
            "onward.sha256": report.sha256,
            "onward.version": str(report.version or ""),
            "mlflow.note.content": markdown(report.reason if self.failures else sentence(evidence)),
        }
        self._log(run_id, metrics, params, tags)
        for path in sorted(self.publication.reports.glob("*/report.json")):
            if path.parent.name != "publish":
                self.client.log_text(run_id, path.read_text(), f"reports/{path.parent.name}.json")
        if self.publication.bundle is not None:
            self.client.log_artifacts(run_id, str(self.publication.bundle), "validation")
        samples = self.publication.reports / "benchmark" / "samples.parquet"
        if samples.is_file():
            self.client.log_artifact(run_id, str(samples), "reports")
        with tempfile.TemporaryDirectory() as temporary:
            for plot in draw_plots(evidence, Path(temporary)):
                self.client.log_artifact(run_id, str(plot), "plots")
        self.client.set_tag(run_id, "onward.whole", "true")
        self.client.set_terminated(run_id, "FAILED" if self.failures else "FINISHED")
