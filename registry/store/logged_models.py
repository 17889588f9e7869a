"""Link logged models to the registered versions of their files, and give them metrics.

MLflow's pages of logged models read the registered versions from a tag. A server sets the tag when a version is
created. With an embedded store nothing does, and the page says "Not registered".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from onward.registry.log.entries import Entry
from onward.registry.store.entry_pages import copy_page, figures
from onward.registry.store.schema import registered_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_VERSIONS = "mlflow.modelVersions"


def with_version(tag: str | None, registered: str, version: int) -> str:
    """The tag's value with one more version.

    Args:
        tag: the present value; None if there is none.
        registered: the name of the registered model.
        version: the number of the version.
    """
    known = json.loads(tag) if tag else []
    if not any(one.get("name") == registered and str(one.get("version")) == str(version) for one in known):
        known.append({"name": registered, "version": version})
    return json.dumps(known)


def describe_copy(client: MlflowClient, model_id: str, environment: str, model: str, entry: Entry) -> None:
    """Give an environment's own copy of a version's files the version's metrics, and links to entry and version.

    MLflow's metrics of logged models belong to a run, so the copy gets one in the environment's experiment.

    Args:
        client: a client of the store.
        model_id: the id of the copy.
        environment: the environment.
        model: the model's name.
        entry: the entry that deployed the copy.
    """
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.exceptions import MlflowException

    registered = registered_name(environment, model)
    try:
        copy = client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # someone deleted the copy that the entry names
            return
        raise
    tags = {
        MODEL_VERSIONS: with_version(copy.tags.get(MODEL_VERSIONS), registered, entry.number),
        "mlflow.note.content": copy_page(entry, model, registered),
        "onward.model": model,
        "onward.version": str(entry.candidate_version),
    }
    if changed := {key: value for key, value in tags.items() if copy.tags.get(key) != value}:
        client.set_logged_model_tags(model_id, changed)
    values = figures(entry.evidence)
    if not values or copy.metrics:
        return
    run = client.create_run(
        copy.experiment_id,
        run_name=f"{model} version {entry.candidate_version}",
        tags={
            "onward.model": model,
            "onward.role": "copy",
            "onward.version": str(entry.candidate_version),
            "mlflow.user": entry.actor,
            "mlflow.note.content": tags["mlflow.note.content"],
        },
    )
    number = run.info.run_id
    client.log_batch(number, [Metric(name, value, 0, 0, model_id=model_id) for name, value in values.items()])
    client.log_outputs(number, [LoggedModelOutput(model_id, 0)])
    # Not `set_terminated`, which prints to the standard output of a process that imports Onward.
    client.update_run(number, status="FINISHED")
