"""Describe the splits of a model's data as MLflow datasets, which runs and logged models name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onward.registry.evidence.records import Split, TensorSpec
from onward.registry.evidence.reports import Evidence

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

EVALUATION = "evaluation"
# MLflow allows 36 characters, and shows all of them. The profile contains the whole sha256.
_DIGEST = 16


def dataset_name(model: str, split: Split) -> str:
    """The name of a split's dataset, such as `cnn-evaluation`."""
    return f"{model}-{split.name}"


def dataset_digest(split: Split) -> str:
    """The beginning of the sha256 of the split's file."""
    return split.file.sha256[:_DIGEST]


def evaluation(evidence: Evidence) -> tuple[str, str] | None:
    """The name and digest of the dataset that quality is measured on; None if there is none.

    Args:
        evidence: the model's evidence.
    """
    split = next((split for split in evidence.data.splits if split.name == EVALUATION), None)
    return (dataset_name(evidence.model, split), dataset_digest(split)) if split else None


def dataset_inputs(evidence: Evidence, inputs: Sequence[TensorSpec]) -> list[DatasetInput]:
    """MLflow's description of each split: name, digest, file, number of samples, and the inputs as schema.

    Args:
        evidence: the model's evidence.
        inputs: the inputs of the model.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    features = [
        {
            "name": spec.name,
            "type": "tensor",
            "tensor-spec": {
                "dtype": spec.dtype,
                "shape": [-1 if isinstance(size, str) else size for size in spec.shape],
            },
        }
        for spec in inputs
    ]
    schema = json.dumps({"mlflow_tensorspec": {"features": json.dumps(features), "targets": None}})
    found = []
    for split in evidence.data.splits:
        profile = {"num_rows": split.samples, "size_bytes": split.file.size_bytes, "sha256": split.file.sha256}
        dataset = Dataset(
            name=dataset_name(evidence.model, split),
            digest=dataset_digest(split),
            source_type="local",
            source=json.dumps({"uri": split.file.path}),
            schema=schema,
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split.name)]))
    return found
