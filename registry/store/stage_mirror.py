"""MLflow's deprecated stages, kept like the log says, for teams whose tools still read them: `mirror_stages: true`.

A view like the aliases, and written after them. A version has one stage only, and Production goes before Staging.
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
    """A version in another stage than the log says."""

    model: str
    version: int
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"version {self.version} of {self.model} is in stage {self.found} and belongs in {self.wanted}"


def find(live: Mapping[str, Entry | None], candidates: Iterable[RegisteredVersion]) -> list[StageDrift]:
    """What is in the wrong stage, given what is live in the environments that are mirrored.

    Versions that belong somewhere come first: written in this order, no stage is ever empty for long.
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
    """Make stages agree with the logs of the environments that ask for it, and return what had to be written.

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
