"""Write the figures of a run to MLflow: metrics, params, tags, datasets and the load of the machine.

Everything has a fixed time and step, so that a repeated call adds no second data point.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from onward.registry.tracking import datasets
from onward.registry.tracking.metrics import LONGEST_TAG
from onward.registry.tracking.publication import Publication
from onward.registry.tracking.times import moment, to_ms

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

# MLflow's limits for one batch of metrics, params and tags, and for the length of a param.
_METRICS, _PARAMS, _TAGS = 1000, 100, 100
_LONGEST_PARAM = 6000
# The metrics that were measured on the evaluation samples.
_ON_SAMPLES = ("quality", "fidelity")


class FigureLog:
    """Writes the figures of the runs of one publication.

    Args:
        client: a client of the store.
        publication: the publication.
    """

    def __init__(self, client: MlflowClient, publication: Publication) -> None:
        self.client = client
        self.publication = publication
        self.evidence = publication.evidence
        self.ended: datetime | None = moment(self.evidence.benchmark.ended)

    def datasets(self, run_id: str) -> None:
        """Name the data that a run used."""
        inputs = datasets.dataset_inputs(self.evidence, self.publication.inputs)
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)

    def log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, str],
        tags: Mapping[str, str],
        series: Mapping[str, Sequence[tuple[int, float]]],
        model: LoggedModel | None = None,
    ) -> None:
        """Log in batches.

        Args:
            run_id: the run.
            metrics: the figures. A tag names those that are not finite.
            params: the settings.
            tags: the tags; empty ones are left out.
            series: figures over a size, which becomes the step.
            model: the logged model that the figures are also logged to, if any.
        """
        from mlflow.entities import Metric, Param, RunTag

        not_finite = sorted(key for key, value in metrics.items() if not math.isfinite(value))
        if not_finite:
            tags = {**tags, "onward.not_finite": ", ".join(not_finite)}
        at = to_ms(self.ended) if self.ended else 0
        judged_on = datasets.evaluation(self.evidence)
        figures = [(key, 0, value) for key, value in metrics.items() if key not in not_finite]
        figures += [(key, size, value) for key, values in series.items() for size, value in values]
        points = []
        for key, step, value in figures:
            name, digest = judged_on if judged_on and key.startswith(_ON_SAMPLES) else (None, None)
            points.append(
                Metric(
                    key,
                    value,
                    at,
                    step,
                    model_id=model.model_id if model else None,
                    dataset_name=name if model else None,
                    dataset_digest=digest if model else None,
                    run_id=run_id,
                )
            )
        settings = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in params.items()]
        labels = [RunTag(key, str(value)[:LONGEST_TAG]) for key, value in tags.items() if value]
        for start in range(0, max(len(points), 1), _METRICS):
            self.client.log_batch(run_id, metrics=points[start : start + _METRICS])
        for start in range(0, max(len(settings), 1), _PARAMS):
            self.client.log_batch(run_id, params=settings[start : start + _PARAMS])
        for start in range(0, max(len(labels), 1), _TAGS):
            self.client.log_batch(run_id, tags=labels[start : start + _TAGS])

    def system_metrics(self, run_id: str) -> None:
        """Log the machine's load during the benchmark, which MLflow shows in the tab "System metrics"."""
        from mlflow.entities import Metric

        file = self.publication.reports / "benchmark" / "system.json"
        if not file.is_file():
            return
        points = [
            Metric(f"system/{name}", float(value), int(sample["timestamp"] * 1000), step)
            for step, sample in enumerate(json.loads(file.read_text())["samples"])
            for name, value in sample.items()
            if name != "timestamp"
        ]
        for start in range(0, len(points), _METRICS):
            self.client.log_batch(run_id, metrics=points[start : start + _METRICS])
