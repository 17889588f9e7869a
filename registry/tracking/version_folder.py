"""Builds the folder of a version, or of a variant's logged model, as it will be uploaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onward.registry.artifact.serving_plan import Serving, of_winners, version_digest
from onward.registry.errors import Refused
from onward.registry.inference.servable import Servable, examine
from onward.registry.monitoring.reference import PATH
from onward.registry.tracking import card
from onward.registry.tracking.metrics import RunRecord, label, run_records
from onward.registry.tracking.publication import Publication


@dataclass(frozen=True)
class Prepared:
    """The version as it will be uploaded.

    Attributes:
        folder: its files.
        sha256: the digest of the model; "" if nothing was chosen.
        servable: whether it can be served.
    """

    folder: Path
    sha256: str = ""
    servable: Servable = field(default_factory=Servable)


def prepare(publication: Publication, folder: Path) -> Prepared:
    """Build the folder of the chosen variant with all files of a version, and check it.

    Args:
        publication: the evidence, and what belongs to it.
        folder: the folder to create.
    """
    evidence, chosen = publication.evidence, publication.evidence.select
    if evidence.failures():
        return Prepared(folder)
    if publication.fault:
        return Prepared(folder, servable=Servable(fault=publication.fault))
    name = label(chosen.variant, chosen.runtime)
    run_record = next(
        run_record
        for run_record in run_records(evidence, publication.root, publication.params)
        if run_record.name == name
    )
    try:
        hosts = {one.name: one.host for one in chosen.elsewhere}
        serving, others = of_winners(chosen.all_winners, publication.root, publication.libraries(), hosts)
        build(publication, run_record, folder, publication.bundle, serving, others)
    except Refused as error:
        return Prepared(folder, servable=Servable(fault=str(error)))
    sha256 = version_digest(chosen.all_winners)
    return Prepared(folder, sha256, examine(folder, sha256, run_record.provider))


def build(
    publication: Publication,
    run_record: RunRecord,
    folder: Path,
    bundle: Path | None,
    serving: Serving,
    others: Mapping[str, Sequence[Path]],
) -> None:
    """Build the folder of a logged model.

    Args:
        publication: the evidence, and what belongs to it.
        run_record: the variant.
        folder: the folder to create.
        bundle: the recorded inputs and answers; None for a variant that was not chosen.
        serving: the file and options for each runtime.
        others: files of runtimes that differ from the main one's.
    """
    from onward.registry.artifact.mlflow_model import build_folder

    build_folder(
        folder,
        run_record.files,
        publication.inputs,
        publication.outputs,
        run_record.provider,
        bundle,
        serving,
        others,
        publication.libraries(),
        example=publication.example,
        texts=_texts(publication) if bundle is not None else {},
    )


def _texts(publication: Publication) -> dict[str, str]:
    """The text files of a version, by path."""
    found = {card.FILE: publication.card()}
    if publication.reference is not None:
        found[PATH] = publication.reference.to_json()
    return found
