"""The MLflow run that shows what the monitor found in an environment of a model, and the alarm for `onward status`.

There is one run for each environment of each model, in the environment's experiment. Its metrics have the time as step,
so MLflow draws them as charts over time. Each monitor has a tag with the alarms of the deployment that it judged last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onward.registry.names import tag_of
from onward.registry.store.artifacts import experiment_name
from onward.registry.store.connection import PAGE, all_items, ensure_experiment, reachable
from onward.registry.store.monitor_tags import (
    ALARM,
    ENVIRONMENT,
    MODEL,
    MONITOR,
    ROLE,
    Recorded,
    by_environment,
    to_tag,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE_FILE = "monitoring.html"
_METRICS = 1000


def alarms(client: MlflowClient) -> dict[tuple[str, str], tuple[Recorded, ...]]:
    """The recorded alarms by environment and model."""
    wanted = f"tags.`{ROLE}` = '{MONITOR}'"
    with reachable():
        found = all_items(lambda token: client.search_experiments(max_results=PAGE, page_token=token))
        names = experiment_name("")
        experiments = [one.experiment_id for one in found if one.name.startswith(names)]
        if not experiments:
            return {}
        runs = list(
            all_items(lambda token: client.search_runs(experiments, wanted, max_results=PAGE, page_token=token))
        )
    return by_environment(run.data.tags for run in sorted(runs, key=lambda run: run.info.start_time))


def record(
    client: MlflowClient,
    environment: str,
    model: str,
    points: Sequence[tuple[str, float, float]],
    recorded: Recorded,
    monitor: str,
    page: str = "",
) -> str:
    """Write figures, alarms and the report to the run.

    Args:
        client: a client of the store.
        environment: the environment.
        model: the model's name.
        points: metrics: name, value, and the time that the value is of, in seconds since 1970.
        recorded: the alarms.
        monitor: the monitor that found them.
        page: the HTML report; "" for none.

    Returns:
        the id of the run.
    """
    from mlflow.entities import Metric

    with reachable():
        run_id = _run(client, environment, model)
        metrics = [Metric(name, value, int(at * 1000), int(at)) for name, value, at in points if math.isfinite(value)]
        for start in range(0, len(metrics), _METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
        client.set_tag(run_id, tag_of(ALARM, monitor), to_tag(recorded))
        if page:
            client.log_text(run_id, page, PAGE_FILE)
    return run_id


def _run(client: MlflowClient, environment: str, model: str) -> str:
    experiment = ensure_experiment(client, experiment_name(environment))
    wanted = f"tags.`{ROLE}` = '{MONITOR}' and tags.`{MODEL}` = '{model}'"
    found: Any = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    if found:
        return str(found[0].info.run_id)
    tags = {ROLE: MONITOR, MODEL: model, ENVIRONMENT: environment}
    run = client.create_run(experiment, run_name=f"{model}: monitoring", tags=tags, start_time=int(time.time() * 1000))
    client.update_run(run.info.run_id, status="FINISHED")
    return str(run.info.run_id)
