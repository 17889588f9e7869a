"""Of every model, the pipeline run that was published last, and which of these failed.

A model's runs are many, and one that is published again keeps its place among them. So the newest is marked with a tag,
and `onward status` asks for marked runs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from onward.registry.store.connection import reachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MARK = "onward.newest"
# What the reason of a failed run begins with, which a list of failed runs need not repeat.
NOTHING = "nothing registered: "
_PAGE = 1000


def mark(client: MlflowClient, model: str, run_id: str) -> None:
    """Make `run_id` the newest run of `model`. Its own mark comes first: a process that is killed in between leaves two
    marks, and the run that started last counts until the next call."""
    marked = [run.info.run_id for run in _marked(client, f"tags.`onward.model` = '{model}'")]
    if run_id not in marked:
        client.set_tag(run_id, MARK, "true")
    for other in marked:
        if other != run_id:
            client.set_tag(other, MARK, "false")


def failures(client: MlflowClient) -> dict[str, str]:
    """The models whose newest run failed, each with the reason."""
    with reachable():
        found = sorted(_marked(client, "tags.`onward.status` = 'failed'"), key=lambda run: run.info.start_time)
    return {run.data.tags["onward.model"]: to_reason(run.data.tags.get("onward.reason")) for run in found}


def to_reason(tag: str | None) -> str:
    """Why a run failed, from its tag."""
    return (tag or "").removeprefix(NOTHING)


def _marked(client: MlflowClient, condition: str) -> Iterator[Run]:
    """The marked runs of models that fulfil a condition, of all experiments: a team may change to another one."""
    wanted = f"tags.`onward.role` = 'model' and tags.`{MARK}` = 'true' and {condition}"
    experiments, token = [], None
    while True:
        page = client.search_experiments(max_results=_PAGE, page_token=token)
        experiments += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            break
    while True:
        runs = client.search_runs(experiments, wanted, max_results=_PAGE, page_token=token)
        yield from runs
        token = runs.token
        if not token:
            return
