"""Mark the newest pipeline run of each model, and list the models whose newest run failed.

A model has many runs, and a run that is published again keeps its start time. So the start time does not say which run
is the newest. A tag marks it instead, and `onward status` searches for marked runs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onward.registry.store.connection import PAGE, all_items, reachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MARK = "onward.newest"
# The prefix of a failed run's reason. A list of failed runs leaves it out.
NOTHING = "nothing registered: "


def mark(client: MlflowClient, model: str, run_id: str) -> None:
    """Mark a run as the newest run of a model, and remove the mark from older runs.

    The new mark is set first. If the process is killed before the old marks are removed, two runs are marked, and the
    one that started last counts until the next call.

    Args:
        client: a client of the store.
        model: the model's name.
        run_id: the id of the run.
    """
    marked = [run.info.run_id for run in _marked(client, f"tags.`onward.model` = '{model}'")]
    if run_id not in marked:
        client.set_tag(run_id, MARK, "true")
    for other in marked:
        if other != run_id:
            client.set_tag(other, MARK, "false")


def failures(client: MlflowClient) -> dict[str, str]:
    """The models whose newest run failed, and the reason for each."""
    with reachable():
        found = sorted(_marked(client, "tags.`onward.status` = 'failed'"), key=lambda run: run.info.start_time)
    return {run.data.tags["onward.model"]: to_reason(run.data.tags.get("onward.reason")) for run in found}


def to_reason(tag: str | None) -> str:
    """The reason of a failed run, from its `onward.reason` tag."""
    return (tag or "").removeprefix(NOTHING)


def _marked(client: MlflowClient, condition: str) -> Iterator[Run]:
    """The marked runs that fulfil a condition, in all experiments, because a team may change `tracking.experiment`."""
    wanted = f"tags.`onward.role` = 'model' and tags.`{MARK}` = 'true' and {condition}"
    found = all_items(lambda token: client.search_experiments(max_results=PAGE, page_token=token))
    experiments = [experiment.experiment_id for experiment in found]
    return all_items(lambda token: client.search_runs(experiments, wanted, max_results=PAGE, page_token=token))
