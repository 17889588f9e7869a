"""Everything that the report of one model is made of, read from the reports of its stages.

The stages write `build/MODEL/STAGE/report.json`. MLflow's run of a model has the same files as `reports/STAGE.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onward.registry.errors import NotReady
from onward.registry.evidence.reports import REPORTS, Evidence, PublishReport, load
from onward.registry.log.entries import GateResult
from onward.registry.report.distributions import Distribution, read_distributions

SAMPLES = "samples.parquet"
# The reason of a stage without a report.
NOT_RUN = "the stage has not run: run `dvc repro`"


@dataclass(frozen=True)
class Deployment:
    """Where a version is live, and what its environment required.

    Attributes:
        environment: The environment.
        sentence: The log entry in words.
        gates: The results of the requirements when the version was deployed.
    """

    environment: str
    sentence: str
    gates: tuple[GateResult, ...] = ()


@dataclass(frozen=True)
class Material:
    """The content of one model's report.

    Attributes:
        title: What is reported on, as the user named it: `cnn`, `cnn/3`, `cnn@production`.
        evidence: The reports of the stages.
        published: The report of the last stage; None if it did not run.
        missing: The stages without a report that could be read, each with the reason.
        distributions: The latencies of single calls.
        deployment: Where the version is live; None if the report is not about an environment.
    """

    title: str
    evidence: Evidence
    published: PublishReport | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    distributions: tuple[Distribution, ...] = ()
    deployment: Deployment | None = None


def read_material(
    model: str, paths: Mapping[str, Path], samples: Path | None, title: str = "", deployment: Deployment | None = None
) -> Material:
    """Read the reports of a model. A stage without a report counts as not attempted.

    Args:
        model: The model's name.
        paths: The file of each stage's report; files may be missing.
        samples: The file with the latencies of single calls; it may be missing.
        title: What is reported on; "" for the model's name.
        deployment: Where the version is live.
    """
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for stage, kind in REPORTS.items():
        try:
            found[stage] = load(kind, paths[stage])
        except (KeyError, NotReady) as error:
            there = stage in paths and paths[stage].is_file()
            missing[stage] = f"the report cannot be read: {error}" if there else NOT_RUN
            found[stage] = kind(stage=stage, model=model, status="not attempted", reason=missing[stage])
    published = found.pop("publish")
    return Material(
        title=title or model,
        evidence=Evidence(model=model, **found),
        published=None if "publish" in missing else published,
        missing=missing,
        distributions=read_distributions(samples) if samples is not None else (),
        deployment=deployment,
    )


def in_build(folder: Path) -> dict[str, Path]:
    """The files of the reports below `build/MODEL/`."""
    return {stage: folder / stage / "report.json" for stage in REPORTS}


def in_run(folder: Path) -> dict[str, Path]:
    """The files of the reports among the artifacts of a run."""
    return {stage: folder / f"{stage}.json" for stage in REPORTS}
