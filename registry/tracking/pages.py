"""Write the pages that summarise many runs: the descriptions of the experiment and of the registered model, and views.

They are views of what the store contains, so they are computed again after each publication, and written if they
differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onward.registry.names import is_name
from onward.registry.store import newest_run
from onward.registry.store.connection import PAGE
from onward.registry.store.model_versions import Versions
from onward.registry.tracking import descriptions, views

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from onward.registry.evidence.reports import PublishReport
    from onward.registry.tracking.publication import Publication

_NOTE = "mlflow.note.content"
# Without this tag, MLflow asks what the experiment is for, or opens it as one of language models.
_KIND = ("mlflow.experimentKind", "custom_model_development")


class Pages:
    """The pages of one experiment.

    Args:
        client: a client of the store.
        experiment: the experiment's id.
        publication: what was published just now.
    """

    def __init__(self, client: MlflowClient, experiment: str, publication: Publication) -> None:
        self._client = client
        self._experiment = experiment
        self._publication = publication

    def write(self, report: PublishReport) -> None:
        """Write the pages.

        Args:
            report: the report of the publication.
        """
        evidence = self._publication.evidence
        measured = [*evidence.benchmark.measurements]
        tags = dict(
            [
                _KIND,
                views.models_view(),
                views.variants_view(
                    evidence.model, report.run_id, has_quality=descriptions.has_quality(measured) or not measured
                ),
                (_NOTE, descriptions.experiment_page(self._experiment, self._rows())),
            ]
        )
        present = self._client.get_experiment(self._experiment).tags
        for key, value in tags.items():
            if present.get(key) != value:
                self._client.set_experiment_tag(self._experiment, key, value)
        if report.version is not None:
            self._registered_model(report.run_id, report.version)

    def _rows(self) -> list[descriptions.ModelRow]:
        wanted = f"tags.`onward.role` = 'model' and tags.`{newest_run.MARK}` = 'true'"
        rows = {}
        found = self._client.search_runs([self._experiment], wanted, max_results=PAGE, order_by=["start_time ASC"])
        for run in found:
            tags = run.data.tags
            rows[tags["onward.model"]] = descriptions.ModelRow(
                model=tags["onward.model"],
                run_id=run.info.run_id,
                status=tags.get("onward.status", ""),
                variant=tags.get("onward.variant", ""),
                version=tags.get("onward.version", ""),
                reason=newest_run.to_reason(tags.get("onward.reason")),
                metrics=run.data.metrics,
            )
        return list(rows.values())

    def _registered_model(self, run_id: str, version: int) -> None:
        evidence = self._publication.evidence
        about = self._publication.params.get("card") or {}
        logs = Versions(self._client).named(f"%.{evidence.model}")
        split = [name.partition(".") for name in logs]
        environments = sorted(name for name, _, model in split if model == evidence.model and is_name(name))
        text = descriptions.registered_model_page(
            evidence, self._experiment, about.get("description", ""), run_id, version, environments
        )
        page = self._client.search_registered_models(f"name = '{evidence.model}'", max_results=1)
        if page and page[0].description != text:
            self._client.update_registered_model(evidence.model, text)
