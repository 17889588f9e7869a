"""Keep MLflow's deprecated stages in agreement with the logs, for tools that still read them (`mirror_stages: true`).

Stages are a view of the log, like aliases, and are written after them. A version has only one stage. If it is live in
two environments, Production takes precedence over Staging.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onward.registry.gates.policy import STAGES, Policy

if TYPE_CHECKING:
    from onward.registry.log.entries import Entry
    from onward.registry.store.schema import RegisteredVersion
    from onward.registry.store.store import Store

ARCHIVED = "Archived"


@dataclass(frozen=True)
class StageDrift:
    """A version whose stage differs from what the log says.

    Attributes:
        model: the model's name.
        version: the version's number.
        wanted: the stage according to the log.
        found: the version's current stage.
    """

    model: str
    version: int
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"version {self.version} of {self.model} is in stage {self.found} and should be in {self.wanted}"


def find(live: Mapping[str, Entry | None], candidates: Iterable[RegisteredVersion]) -> list[StageDrift]:
    """Find the versions that are in the wrong stage.

    Args:
        live: the live entry of each mirrored environment, or None.
        candidates: the versions of the model.

    Returns:
        the versions to move into a mirrored stage, then those to archive. In this order, a stage with a live version
        is never left empty.
    """
    belongs = {entry.candidate_version: (entry.sha256, STAGES[name]) for name, entry in _ordered(live) if entry}
    placed, archived = [], []
    for candidate in candidates:
        sha256, stage = belongs.get(candidate.version, ("", ""))
        if sha256 == candidate.sha256 and sha256:
            placed.append(StageDrift(candidate.model, candidate.version, stage, candidate.stage))
        elif candidate.stage in {STAGES[name] for name in live}:
            archived.append(StageDrift(candidate.model, candidate.version, ARCHIVED, candidate.stage))
    return [drift for drift in placed + archived if drift.found != drift.wanted]


def mirror(store: Store, rules: Policy, model: str) -> list[StageDrift]:
    """Set the stages of a model's versions to what the logs of the mirrored environments say.

    Args:
        store: the store.
        rules: the environments' requirements.
        model: the model's name.

    Returns:
        the stages that were corrected.

    Raises:
        StoreUnreachable: the store did not answer.
    """
    mirrored = [name for name, environment in rules.items() if environment.mirror_stages]
    if not mirrored:
        return []
    live = {name: store.head(name, model).history.live for name in mirrored}
    drifts = find(live, store.candidates(model))
    for drift in drifts:
        store.set_stage(drift.model, drift.version, drift.wanted)
    return drifts


def _ordered(live: Mapping[str, Entry | None]) -> list[tuple[str, Entry | None]]:
    return sorted(live.items(), key=lambda item: list(STAGES).index(item[0]))
