"""Record the evidence of a model in MLflow, and register a version for the chosen variant.

Each measurement of a model has one run. Each measured variant has a child run and a logged model. The chosen variant
becomes a registered version. Descriptions, shared views and the tags of versions are views of this: they are written
again when they differ.

Recording can be repeated and resumed. Every run, logged model and version is searched by a tag of its content before it
is created. If the process is killed, the next call completes the records. The parent run's status FINISHED is written
last, so a finished run is always complete.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onward.registry.artifact.manifest import manifest_digest
from onward.registry.artifact.serving_plan import MODEL, Served, Serving
from onward.registry.errors import Refused
from onward.registry.evidence.records import Machine
from onward.registry.evidence.reports import PublishReport
from onward.registry.evidence.unmeasured import as_table, unmeasured
from onward.registry.host import hardware
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
from onward.registry.store.logged_models import MODEL_VERSIONS, with_version
from onward.registry.tracking import card, descriptions, views
from onward.registry.tracking.figure_log import FigureLog
from onward.registry.tracking.metrics import (
    RunRecord,
    flatten,
    graph_params,
    host_metrics,
    label,
    run_records,
    version_tags,
)
from onward.registry.tracking.pages import Pages
from onward.registry.tracking.publication import Publication
from onward.registry.tracking.times import moment, to_ms
from onward.registry.tracking.version_folder import Prepared, build, prepare
from onward.registry.trust.identity import who
from onward.registry.uri import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["NOT_MEASURED", "Publication", "publish", "store_identity"]

# A finding of the publish stage.
NOT_REGISTERED = "no version: {} is a DVC experiment; set tracking.register_experiments, or run `dvc repro`"
# The table of the variants that were not measured, as an artifact of the parent run.
NOT_MEASURED = "not_measured.json"
# The params of a variant that become tags, so that MLflow's page can filter by them beside Onward's other tags.
_FILTERS = ("runtime", "precision", "optimizer", "quantizer")


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
        version = prepare(publication, Path(temporary) / "model")
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


class _Recorder:
    """Writes the runs, the logged models and the version of one publication."""

    def __init__(self, client: MlflowClient, experiment: str, publication: Publication, version: Prepared) -> None:
        self.client = client
        self.experiment = experiment
        self.publication = publication
        self.evidence = publication.evidence
        self.version = version
        fault = version.servable.fault
        benchmark = self.evidence.benchmark
        self.measured = moment(benchmark.started)
        self.ended = moment(benchmark.ended)
        self.figures = FigureLog(client, publication)
        self.key = publication.content(fault)
        failures = [f"{failed.stage}: {failed.reason}" for failed in self.evidence.failures()]
        if fault:
            failures.append(f"publish: the version cannot be served: {fault}")
        self.failures = "; ".join(failures)

    def record(self) -> PublishReport:
        """Write everything that the store does not contain yet."""
        chosen = self.evidence.select
        servable = self.version.servable
        parent = self._parent_run()
        children = {}
        report = PublishReport(
            model=self.evidence.model, status="failed" if servable.fault else "passed", run_id=parent.info.run_id
        )
        finished = parent.info.status in ("FINISHED", "FAILED") and "onward.whole" in parent.data.tags
        models: dict[str, LoggedModel] = {}
        records = list(run_records(self.evidence, self.publication.root, self.publication.params))
        for run_record in records:
            child = self._run(
                f"{self.evidence.model} · {run_record.name}",
                {"onward.role": "variant", "onward.variant": run_record.name, "mlflow.parentRunId": parent.info.run_id},
            )
            children[run_record.name] = child.info.run_id
            is_chosen = run_record.name == label(chosen.variant, chosen.runtime)
            model, created = None, False
            if run_record.files and not (is_chosen and servable.fault):
                model, created = self._logged_model(child, run_record, is_chosen and not self.failures)
                models[run_record.name] = model
            if not finished or created:
                self._figures(child, run_record, parent.info.run_id, model)
            if not finished:
                self._end(child.info.run_id, "FAILED" if run_record.status == "failed" else "FINISHED")
        report.variants = children
        if self.failures:
            report.reason = f"{newest_run.NOTHING}{self.failures}"
        else:
            report.sha256 = self.version.sha256
            if servable.batches:
                report.findings = [f"predict_batches cannot be used: {servable.batches}"]
            if self.publication.registers:
                model = models[label(chosen.variant, chosen.runtime)]
                report.version = self._version(parent.info.run_id, model, report.sha256)
            else:
                report.findings.append(NOT_REGISTERED.format(self.publication.dvc_experiment))
        self._describe_models(models, records, children, report.version)
        if not finished:
            self._parent(parent, report, records, children)
        if self.publication.registers:  # an experiment does not decide what `onward status` says about a model
            newest_run.mark(self.client, self.evidence.model, report.run_id)
            Pages(self.client, self.experiment, self.publication).write(report)
        return report

    def _parent_run(self) -> Run:
        """The parent run of this content, which is created under a name that tells it from other measurements."""
        measured = self.measured or datetime.now(UTC)
        machine = self.evidence.benchmark.machine
        sets = self.publication.context.get("host_instruction_sets", "").split()
        described = Machine(cpu="", instruction_sets=sets, cores=1, memory_gb=1, system=platform.machine())
        kind = hardware.short_kind(machine or described)
        name = f"{self.evidence.model} · {measured:%Y-%m-%d %H:%M} · {kind}"
        return self._run(name, {"onward.role": "model"}, unique=True)

    def _run(self, name: str, tags: dict[str, str], unique: bool = False) -> Run:
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
        if unique:  # the same measurement, judged by other settings
            same = f"tags.`onward.role` = 'model' and attributes.run_name LIKE '{name}%'"
            others = len(self.client.search_runs([self.experiment], same, max_results=100))
            name += f" · {others + 1}" if others else ""
        return self.client.create_run(
            self.experiment,
            start_time=to_ms(self.measured) if self.measured else None,
            run_name=name,
            tags={**wanted, **self._origin(), **self.publication.context},
        )

    def _origin(self) -> dict[str, str]:
        """The tags that MLflow's columns User, Source and Version show."""
        commit = self.publication.context.get("git_commit", "none")
        return {
            "mlflow.user": who(),
            "mlflow.source.name": "dvc.yaml",
            "mlflow.source.type": "LOCAL",
            **({"mlflow.source.git.commit": commit} if commit != "none" else {}),
        }

    def _end(self, run_id: str, status: str) -> None:
        """Set a run's final status, and the time at which its measurement ended."""
        self.client.set_terminated(run_id, status, end_time=to_ms(self.ended) if self.ended else None)

    def _figures(self, run: Run, run_record: RunRecord, parent: str, model: LoggedModel | None) -> None:
        """Log a variant's figures, to its run and to its logged model, with the data that they were measured on."""
        tags = {
            "onward.status": run_record.status,
            "onward.reason": run_record.reason,
            "onward.chosen": str(run_record.chosen).lower(),
            **{f"onward.{name}": run_record.params.get(name, "") for name in _FILTERS},
            "mlflow.note.content": descriptions.variant_page(
                run_record, self.experiment, parent, self.evidence.model, run_record.reason
            ),
        }
        self.figures.datasets(run.info.run_id)
        self.figures.log(run.info.run_id, run_record.metrics, run_record.params, tags, run_record.series, model)

    def _logged_model(self, run: Run, run_record: RunRecord, chosen: bool) -> tuple[LoggedModel, bool]:
        """The variant's complete logged model, and whether it was created now.

        One that an interrupted upload left incomplete is deleted.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        for model in self.client.search_logged_models(
            [self.experiment], f"tags.`onward.content` = '{self.key}' and tags.`onward.variant` = '{run_record.name}'"
        ):
            if model.status == LoggedModelStatus.READY:
                return model, False
            self.client.delete_logged_model(model.model_id)
        model = self.client.create_logged_model(
            self.experiment,
            name=f"{self.evidence.model}-{run_record.name}",
            source_run_id=run.info.run_id,
            tags={
                "onward.content": self.key,
                "onward.model": self.evidence.model,
                "onward.variant": run_record.name,
                "mlflow.user": who(),
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
                build(self.publication, run_record, folder, None, serving, {})
                self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        return self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY), True

    def _describe_models(
        self,
        models: Mapping[str, LoggedModel],
        records: Sequence[RunRecord],
        children: Mapping[str, str],
        version: int | None,
    ) -> None:
        """Link each logged model to its run, and the chosen one to its version."""
        by_name = {run_record.name: run_record for run_record in records}
        for name, model in models.items():
            of = version if by_name[name].chosen else None
            tags = {
                "mlflow.note.content": descriptions.logged_model_page(
                    by_name[name], self.experiment, children[name], self.evidence.model, of
                )
            }
            if of is not None:
                tags["onward.version"] = str(of)
                tags[MODEL_VERSIONS] = with_version(model.tags.get(MODEL_VERSIONS), self.evidence.model, of)
            changed = {key: value for key, value in tags.items() if model.tags.get(key) != value}
            if changed:
                self.client.set_logged_model_tags(model.model_id, changed)

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
        publication = self.publication
        text = card.card_text(self.evidence, publication.params, publication.inputs, publication.outputs)
        description = card.description(self._linked(text, run_id))
        registered = self.client.search_model_versions(f"name = '{name}'")
        same_files = [version for version in registered if version.tags.get("sha256") == sha256]
        same = [version for version in same_files if self._served(version) == serving]
        if same:
            version = min(same, key=lambda found: int(found.version))
            if "instruction_sets" in tags:  # list every kind of host that these files were measured on
                before = version.tags.get("instruction_sets", "").split("; ")
                kinds = dict.fromkeys([*filter(None, before), *tags["instruction_sets"].split("; ")])
                tags["instruction_sets"] = "; ".join(kinds)
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    self.client.set_model_version_tag(name, version.version, key, value)
            if version.description != description:
                self.client.update_model_version(name, version.version, description=description)
            return int(version.version)
        with as_default(self.client):
            made = self.client.create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=run_id,
                model_id=model.model_id,
                tags={**tags, "manifest": model.tags["manifest"], "published_by": who()},
                description=description,
            )
        return int(made.version)

    def _linked(self, text: str, run_id: str) -> str:
        """A card with links to the run and to the comparison after its first paragraph."""
        first, rest, more = text.partition("\n\n")
        run = descriptions.run_link(self.experiment, run_id)
        comparison = views.link(self.experiment, views.key(self.evidence.model))
        return f"{first}\n\n[Run]({run}) · [compare the variants]({comparison}){rest}{more}"

    def _served(self, version: ModelVersion) -> str | None:
        """The digest of a version's serving.json (artifacts.served), read from the files if the tag is missing."""
        if SERVED_AS in version.tags:
            return str(version.tags[SERVED_AS])
        with tempfile.TemporaryDirectory() as temporary:
            try:
                return served(Files(self.client).fetch(str(version.source), Path(temporary)))
            except Refused:  # its files are gone, so it cannot be served at all
                return None

    def _parent(
        self, parent: Run, report: PublishReport, records: Sequence[RunRecord], children: Mapping[str, str]
    ) -> None:
        evidence, run_id = self.evidence, parent.info.run_id
        lost = unmeasured(evidence)
        winner = next((run_record for run_record in records if run_record.chosen), None)
        metrics = {**winner.metrics, **host_metrics(evidence)} if winner else {}
        metrics["search/variants_tried"] = len(records) + len(lost)
        metrics["search/variants_measured"] = len(records)
        metrics["search/variants_fit"] = sum(run_record.status == "passed" for run_record in records)
        if evidence.benchmark.search_seconds:
            metrics["search/seconds"] = evidence.benchmark.search_seconds
        if evidence.train.quality is not None:
            metrics["train/quality"] = evidence.train.quality
        params = {**graph_params(evidence), **flatten(self.publication.params)}
        if winner:
            params |= {**winner.params, "variant": evidence.select.variant}
        machine = evidence.benchmark.machine
        tags = {
            "onward.status": "failed" if self.failures else "passed",
            "onward.reason": report.reason,
            "onward.sha256": report.sha256,
            "onward.version": str(report.version or ""),
            "onward.variant": winner.name if winner else "",
            **({f"onward.{name}": winner.params.get(name, "") for name in _FILTERS} if winner else {}),
            "onward.host": hardware.short_kind(machine) if machine else "",
            "onward.measured": evidence.benchmark.started,
            "mlflow.note.content": descriptions.parent_page(
                evidence, self.experiment, report.reason, records, children, report.version, lost
            ),
        }
        self.figures.datasets(run_id)
        self.figures.log(run_id, metrics, params, tags, winner.series if winner else {})
        self.figures.system_metrics(run_id)
        if lost:
            # As mlflow.log_table writes it, which appends rows when it is called again.
            columns = as_table(lost)
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            self.client.log_dict(run_id, {"columns": list(columns), "data": rows}, NOT_MEASURED)
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": NOT_MEASURED, "type": "table"}]))
        for path in sorted(self.publication.reports.glob("*/report.json")):
            if path.parent.name != "publish":
                self.client.log_text(run_id, path.read_text(), f"reports/{path.parent.name}.json")
        if self.publication.bundle is not None:
            self.client.log_artifacts(run_id, str(self.publication.bundle), "validation")
        if report.version is not None:
            self.client.log_text(run_id, self.publication.card(), card.FILE)
        for name in ("samples.parquet", "system.json"):
            file = self.publication.reports / "benchmark" / name
            if file.is_file():
                self.client.log_artifact(run_id, str(file), "reports")
        self.client.set_tag(run_id, "onward.whole", "true")
        self._end(run_id, "FAILED" if self.failures else "FINISHED")
