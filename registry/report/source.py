"""Finds the evidence that a user names: the reports in the checkout, or those of a version.

find("cnn@production").evidence
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from onward.registry import checkout
from onward.registry.errors import Refused, UsageError
from onward.registry.evidence.reports import REPORTS
from onward.registry.names import valid_name
from onward.registry.report.material import SAMPLES, Deployment, Material, in_build, in_run, read_material
from onward.registry.text import suggestion


def find(target: str) -> Material:
    """Read the evidence of a model or of a version.

    Args:
        target: `MODEL` for the reports of the newest pipeline run in the checkout, `MODEL/VERSION`, or `MODEL@ENV` for
            the version that is live there.

    Raises:
        UsageError: There is no such model, version or environment.
        Refused: Nothing is live in the environment, or the evidence was deleted.
        StoreUnreachable: The store did not answer.
    """
    if "@" in target or "/" in target:
        return _of_version(target)
    return _of_checkout(target)


def _of_checkout(model: str) -> Material:
    valid_name(model, "a model")
    build = checkout.root() / "build"
    folder = build / model
    if not any(path.is_file() for path in in_build(folder).values()):
        known = sorted(_with_reports(build))
        there = f"; there are reports of {', '.join(known)}" if known else ""
        raise UsageError(
            f"there are no reports of {model!r} in {build}{suggestion(model, known)}{there}. `dvc repro` writes them; "
            f"for a registered version, give {model}/VERSION or {model}@ENVIRONMENT"
        )
    return read_material(model, in_build(folder), folder / "benchmark" / SAMPLES)


def _with_reports(build: Path) -> Iterator[str]:
    folders = [path for path in build.glob("*") if path.is_dir()]
    return (path.name for path in folders if any((path / stage / "report.json").is_file() for stage in REPORTS))


def _of_version(target: str) -> Material:
    from onward.registry.store.resolve import resolve
    from onward.registry.store.store import Store

    store = Store(create=False)
    found = resolve(target, store)
    deployment = None
    if found.environment:
        entry = store.entry(found.environment, found.model, found.entry)
        deployment = Deployment(found.environment, str(entry), tuple(entry.gates))
    with tempfile.TemporaryDirectory() as temporary:
        folder = store.reports(found.evidence.get("run_id", ""), Path(temporary))
        if folder is None:
            raise Refused(
                f"the MLflow run of {target} was deleted or has no reports, so its evidence is not known. "
                f"`onward diff` compares what the version itself says"
            )
        return read_material(found.model, in_run(folder), folder / SAMPLES, target, deployment)
