"""How the deployment log and the candidates lie in MLflow: names, tags and aliases. Pure: no client, no request.

Each environment of each model is one registered model, `production.cnn`, and its versions are the log. The aliases
`live` (on `production.cnn`) and `production` (on the candidates' `cnn`), and the tag `lost`, are views of the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from pydantic import ValidationError

from registry.deployments import Draft, Entry, Line, fold
from registry.errors import UsageError
from registry.signatures import proven

LIVE = "live"
LOST = "lost"
SCHEMA = 1


class Version(Protocol):
    """A version of a registered model, as MLflow's own entity has it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int | str: ...
    @property
    def creation_timestamp(self) -> int: ...
    @property
    def current_stage(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Candidate:
    """A version that the pipeline registered. `evidence` is its tags: what was measured, as registry/record.py says.
    `logged_model` is the id of the one that holds its files, `stage` MLflow's own deprecated one."""

    model: str
    version: int
    evidence: Mapping[str, str]
    created: datetime
    logged_model: str = ""
    stage: str = ""

    @property
    def sha256(self) -> str:
        return self.evidence.get("sha256", "")

    @property
    def source(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class Log:
    """An environment's log as it is stored, or its newest part: the line, which lost entries carry their mark, and
    which versions are no entries at all (somebody registered them by hand) and count for nothing. Where an environment
    has signers, entries that none of them signed are `unproven`, and count for nothing either."""

    line: Line
    marked: frozenset[int] = frozenset()
    foreign: tuple[int, ...] = ()
    approvals: tuple[Entry, ...] = ()
    unproven: tuple[Entry, ...] = ()

    def entries(self) -> list[Entry]:
        """All of them, whether they count or not, in the order of the log."""
        return sorted((*self.line.entries(), *self.approvals, *self.unproven), key=lambda entry: entry.number)


@dataclass(frozen=True)
class Overview:
    """What MLflow tells of a registered model at a glance: the newest version in each stage, newest first; aliases."""

    newest: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """A view that disagrees with the log: an alias that should be at `wanted` (None: nowhere), or a mark missing."""

    registered: str
    alias: str
    wanted: int | None
    found: int | None

    def __str__(self) -> str:
        if self.alias == LOST:
            return f"entry {self.wanted} of {self.registered} lost a race and is not marked"
        where = "nowhere" if self.found is None else f"at {self.found}"
        right = "nowhere" if self.wanted is None else f"at {self.wanted}"
        return f"the alias {self.alias} of {self.registered} is {where} and belongs {right}"


def registered_name(environment: str, model: str) -> str:
    """The registered model that holds the log. Neither name holds a dot (policy.valid_name), so it reads back."""
    return f"{environment}.{model}"


def approval_source(sha256: str) -> str:
    """What stands for the files of an approval: it has none of its own, and outlives those that it is about."""
    return f"approval:{sha256}"


def to_tags(draft: Draft) -> dict[str, str]:
    """An entry as the tags of a model version."""
    tags = {
        "schema": str(SCHEMA),
        "kind": draft.kind,
        "key": draft.key,
        "base": str(draft.base),
        "sha256": draft.sha256,
        "candidate": str(draft.candidate_version),
        "actor": draft.actor,
        "reason": draft.reason,
        "at": draft.at,
        "evidence": json.dumps(draft.evidence, sort_keys=True),
    }
    if draft.kind == "rollback":
        tags["restores"] = str(draft.restores)
    if draft.gates:
        tags["gates"] = json.dumps([gate.model_dump() for gate in draft.gates])
    if draft.gates_run:
        tags["gates_run"] = draft.gates_run
    if draft.forced:
        tags["forced"] = "true"
    if draft.signature:
        tags |= {"signer": draft.signer, "signature": draft.signature}
    return tags


def from_version(version: Version) -> Entry | None:
    """The entry that a model version holds, or None where it holds none.

    Raises:
        UsageError: a newer Onward wrote it, so that this one might misread it.
    """
    tags = version.tags
    schema = tags.get("schema", "")
    if schema.isdigit() and int(schema) > SCHEMA:
        raise UsageError(f"{version.name}: entry {version.version} was written by a newer Onward: upgrade this one")
    try:
        return Entry.model_validate(
            {
                "number": int(version.version),
                "candidate_version": tags["candidate"],
                "source": version.source,
                "restores": tags.get("restores", 0),
                "forced": tags.get("forced", "false"),
                "gates_run": tags.get("gates_run", ""),
                "signer": tags.get("signer", ""),
                "signature": tags.get("signature", ""),
                "gates": json.loads(tags.get("gates", "[]")),
                "evidence": json.loads(tags.get("evidence", "{}")),
                **{name: tags[name] for name in ("kind", "key", "base", "sha256", "actor", "reason", "at")},
            }
        )
    except (KeyError, ValueError, ValidationError):
        return None


def parse_log(registered: str, versions: Iterable[Version], signers: Mapping[str, str], floor: int = 0) -> Log:
    """A log from the versions of its registered model; of those above `floor`, where only these were read."""
    deployments, approvals, unproven, marked, foreign = [], [], [], [], []
    for version in versions:
        entry = from_version(version)
        if entry is None:
            foreign.append(int(version.version))
        elif not proven(entry, registered, signers):
            unproven.append(entry)
        elif entry.kind == "approve":
            approvals.append(entry)
        else:
            deployments.append(entry)
            if LOST in version.tags:
                marked.append(entry.number)
    return Log(
        fold(deployments, floor),
        frozenset(marked),
        tuple(sorted(foreign)),
        tuple(sorted(approvals, key=lambda entry: entry.number)),
        tuple(sorted(unproven, key=lambda entry: entry.number)),
    )


def find_drift(
    environment: str, model: str, log: Log, candidate: int | None, found: Mapping[str, int | None]
) -> list[Drift]:
    """The views that disagree with the log. `candidate` is the version that is live, if it still exists; `found` is
    where the aliases are: `live` by the name of the log's registered model, and the environment's by `model`."""
    registered = registered_name(environment, model)
    wanted = ((registered, LIVE, log.line.base or None), (model, environment, candidate))
    drifts = [Drift(name, alias, number, found[name]) for name, alias, number in wanted if found[name] != number]
    unmarked = [entry.number for entry in log.line.lost if entry.number not in log.marked]
    return drifts + [Drift(registered, LOST, number, None) for number in unmarked]


def to_candidate(version: Version) -> Candidate:
    """A candidate from the version that the pipeline registered."""
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    _, named, logged_model = (version.source or "").partition("models:/m-")  # over REST, model_id is not told
    return Candidate(
        version.name,
        int(version.version),
        dict(version.tags),
        created,
        f"m-{logged_model}" if named else "",
        version.current_stage or "",
    )
