"""Translate between MLflow's registered models and Onward's log and candidates: names, tags and aliases.

Each environment of each model has one registered model, such as `production.cnn`. Its versions are the entries of the
log. The aliases `live` (on `production.cnn`) and `production` (on the candidates' `cnn`), and the tag `lost`, are views
of the log: they can be written again from it. Nothing here sends a request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from onward.registry.errors import UsageError
from onward.registry.log.entries import DeploymentHistory, Draft, Entry, fold
from onward.registry.trust import chain
from onward.registry.trust.entry_signatures import Signers

LIVE = "live"
LOST = "lost"
# Every Onward reads schema 1. Schema 2 is a signed entry with links to earlier entries. An older Onward would treat
# such a signature as invalid and report the previous deployment as live.
SCHEMA = 2


class Version(Protocol):
    """A version of a registered model, with the attributes of MLflow's ModelVersion."""

    @property
    def name(self) -> str:
        """The name of the registered model."""

    @property
    def version(self) -> int | str:
        """The number of the version."""

    @property
    def creation_timestamp(self) -> int:
        """When the version was created, in ms since the epoch."""

    @property
    def current_stage(self) -> str | None:
        """The version's deprecated stage."""

    @property
    def source(self) -> str | None:
        """The URI of the version's files."""

    @property
    def run_link(self) -> str | None:
        """The digest of the entry, as `entry_signatures.link` writes it; MLflow never lets it change."""

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags of the version."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version that the pipeline registered.

    Attributes:
        model: the model's name.
        version: the version's number.
        evidence: the version's tags: what was measured (registry/tracking/recorder.py).
        created: when it was registered.
        logged_model: the id of the MLflow logged model that contains its files.
        stage: its stage in MLflow (deprecated there).
    """

    model: str
    version: int
    evidence: Mapping[str, str]
    created: datetime
    logged_model: str = ""
    stage: str = ""

    @property
    def sha256(self) -> str:
        """The digest of the model; "" if Onward did not publish the version, or its digests are malformed."""
        digests = (self.evidence.get("sha256", ""), self.manifest or "0" * 64)
        return digests[0] if all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests) else ""

    @property
    def manifest(self) -> str:
        """The digest of the manifest of all files; "" if an older Onward published the version."""
        return self.evidence.get("manifest", "")

    @property
    def source(self) -> str:
        """The models:/ URI of the version."""
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class Log:
    """An environment's log as it is stored, or its newest part.

    Attributes:
        history: the entries that count, and those that lost a race.
        marked: the numbers of the lost entries that have the tag `lost`.
        foreign: the numbers of rows that are not Onward's entries, such as versions registered by hand. They do not
            count.
        approvals: the approvals.
        unproven: in an environment with signers, the entries that no signer signed, and signed entries that may have
            lost a race because a row before them is missing. They do not count.
        newer: the numbers of rows that a newer Onward wrote, and that this one cannot read.
        newest: the highest number of all rows.
        alarm: a message for each foreign, newer or unproven row after the last entry that counts.
        damage: a message for each entry that was changed or deleted after a later entry had named it.
        open: whether older rows have to be read to judge the rows that were read.
        signed: whether the environment has signers.
    """

    history: DeploymentHistory
    marked: frozenset[int] = frozenset()
    foreign: tuple[int, ...] = ()
    approvals: tuple[Entry, ...] = ()
    unproven: tuple[Entry, ...] = ()
    newer: tuple[int, ...] = ()
    newest: int = 0
    alarm: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    open: bool = False
    signed: bool = False

    @property
    def settled(self) -> bool:
        """Whether enough rows were read to say what is live, so that older rows cannot change it."""
        return self.history.settled and not self.open

    def entries(self) -> list[Entry]:
        """All entries, including those that do not count, in the order of their numbers."""
        return sorted((*self.history.entries(), *self.approvals, *self.unproven), key=lambda entry: entry.number)

    def require_known(self, registered: str) -> None:
        """Check that no newer Onward wrote an entry after the live one.

        In a log with signers, such an entry is not proven, and raises an alarm instead.

        Args:
            registered: the name of the log's registered model, for the message.

        Raises:
            UsageError: a newer Onward wrote such an entry.
        """
        unknown = [number for number in self.newer if number > self.history.base]
        if unknown and not self.signed:
            raise UsageError(f"{registered}: entry {unknown[-1]} was written by a newer Onward: upgrade this one")


@dataclass(frozen=True)
class Overview:
    """A summary of a registered model.

    Attributes:
        newest: the newest version in each stage, the newest first.
        aliases: the version number of each alias.
        tags: the tags of the registered model.
    """

    newest: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """A view that disagrees with the log: an alias at the wrong version, or a missing tag `lost`.

    Attributes:
        registered: the name of the registered model.
        alias: the alias, or `lost` for the tag.
        wanted: the version that the alias should name (None: it should not exist), or the entry that lacks the tag.
        found: the version that the alias names, or None.
    """

    registered: str
    alias: str
    wanted: int | None
    found: int | None

    def __str__(self) -> str:
        if self.alias == LOST:
            return f"entry {self.wanted} of {self.registered} lost a race and is not marked"
        now = "is not set" if self.found is None else f"is set to version {self.found}"
        right = "should not be set" if self.wanted is None else f"should be set to version {self.wanted}"
        return f"the alias {self.alias} of {self.registered} {now} and {right}"


def registered_name(environment: str, model: str) -> str:
    """The name of the registered model that contains a log. Names contain no dot (valid_name), so it can be parsed."""
    return f"{environment}.{model}"


def approval_source(sha256: str) -> str:
    """The source of an approval. It names no files, because an approval has none and outlives the approved files."""
    return f"approval:{sha256}"


def to_tags(draft: Draft) -> dict[str, str]:
    """The tags of the model version that stores an entry."""
    tags = {  # MLflow's page shows tags in this order: first what people look for
        "kind": draft.kind,
        "candidate": str(draft.candidate_version),
        "actor": draft.actor,
        "reason": draft.reason,
        "at": draft.at,
        "sha256": draft.sha256,
        "base": str(draft.base),
        "key": draft.key,
        "schema": "2" if draft.signature and (draft.seen >= 0 or draft.manifest) else "1",
        "evidence": json.dumps(draft.evidence, sort_keys=True),
    }
    if draft.manifest:
        tags["manifest"] = draft.manifest
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
    if draft.seen >= 0:
        tags["seen"] = str(draft.seen)
        tags |= {name: value for name in ("seen_digest", "base_digest") if (value := getattr(draft, name))}
    return tags


def from_version(version: Version) -> Entry | None:
    """The entry that a model version stores; None if it stores none, or a malformed one."""
    tags = version.tags
    try:
        return Entry.model_validate(
            {
                "number": int(version.version),
                "link": version.run_link or "",
                "candidate_version": tags["candidate"],
                "source": version.source,
                "manifest": tags.get("manifest", ""),
                "restores": tags.get("restores", 0),
                "forced": tags.get("forced", "false"),
                "gates_run": tags.get("gates_run", ""),
                "signer": tags.get("signer", ""),
                "signature": tags.get("signature", ""),
                "seen": tags.get("seen", -1),
                "seen_digest": tags.get("seen_digest", ""),
                "base_digest": tags.get("base_digest", ""),
                "gates": json.loads(tags.get("gates", "[]")),
                "evidence": json.loads(tags.get("evidence", "{}")),
                **{name: tags[name] for name in ("kind", "key", "base", "sha256", "actor", "reason", "at")},
            }
        )
    except (KeyError, ValueError, RecursionError):  # pydantic's ValidationError is a ValueError
        return None


def is_newer(version: Version) -> bool:
    """Whether a newer Onward wrote this version, so that this one may misread it."""
    schema = version.tags.get("schema", "")
    return re.fullmatch(r"[0-9]{1,9}", schema) is not None and int(schema) > SCHEMA


def parse_log(registered: str, versions: Iterable[Version], signers: Signers, floor: int = 0) -> Log:
    """Build a log from the versions of its registered model.

    Args:
        registered: the name of the registered model.
        versions: its versions, in any order.
        signers: the signers of the environment; empty if it has none.
        floor: the highest number that was not read; 0 if all versions were read.
    """
    entries: dict[int, Entry] = {}
    marked: set[int] = set()
    foreign: list[int] = []
    newer: list[int] = []
    for version in versions:
        number = int(version.version)
        unknown = is_newer(version)
        entry = None if unknown else from_version(version)
        if entry is not None:
            entries[number] = entry
            if LOST in version.tags:
                marked.add(number)
        else:
            (newer if unknown else foreign).append(number)
    rows = {*entries, *foreign, *newer}
    judged = chain.Judged(frozenset(entries), frozenset(), ())
    if signers:
        judged = chain.judge(entries.values(), rows, registered, signers, floor)
    counting = judged.proven - judged.undecided
    deployments = (entry for number, entry in entries.items() if number in counting and entry.kind != "approve")
    history = fold(deployments, floor)
    unproven = [entry for number, entry in sorted(entries.items()) if number not in counting]
    return Log(
        history,
        frozenset(marked & {entry.number for entry in history.lost}),
        tuple(sorted(foreign)),
        tuple(entry for number, entry in sorted(entries.items()) if number in counting and entry.kind == "approve"),
        tuple(unproven),
        tuple(sorted(newer)),
        max(rows, default=0),
        tuple(_alarm(history.base, unproven, foreign, newer, judged)) if signers else (),
        judged.damage,
        judged.open,
        bool(signers),
    )


def _alarm(
    live: int, unproven: Iterable[Entry], foreign: Iterable[int], newer: Iterable[int], judged: chain.Judged
) -> Iterable[str]:
    """One message for each row that is not proven and comes after the last entry that counts."""
    faults = {entry.number: "is not signed by any of the signers, or was changed after that" for entry in unproven}
    uncertain = "is signed, but a row before it is missing or not proven, so it may have lost a race"
    faults |= dict.fromkeys(judged.undecided, uncertain)
    faults |= dict.fromkeys(foreign, "is not an entry of Onward's")
    faults |= dict.fromkeys(newer, "was written by a newer Onward")
    return (f"row {number} {faults[number]}" for number in sorted(faults) if number > live)


def find_drift(
    environment: str, model: str, log: Log, candidate: int | None, found: Mapping[str, int | None]
) -> list[Drift]:
    """Find the views that disagree with the log.

    Args:
        environment: the environment.
        model: the model's name.
        log: the environment's log.
        candidate: the number of the live version; None if nothing is live or the version was deleted.
        found: where the two aliases are now: the alias `live` under the name of the log's registered model, and the
            environment's alias under `model`.
    """
    registered = registered_name(environment, model)
    wanted = ((registered, LIVE, log.history.base or None), (model, environment, candidate))
    drifts = [Drift(name, alias, number, found[name]) for name, alias, number in wanted if found[name] != number]
    unmarked = [entry.number for entry in log.history.lost if entry.number not in log.marked]
    return drifts + [Drift(registered, LOST, number, None) for number in unmarked]


def to_registered_version(version: Version) -> RegisteredVersion:
    """Convert a version of MLflow's that the pipeline registered."""
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    _, named, logged_model = (version.source or "").partition("models:/m-")  # MLflow's REST API omits model_id
    return RegisteredVersion(
        version.name,
        int(version.version),
        dict(version.tags),
        created,
        f"m-{logged_model}" if named else "",
        version.current_stage or "",
    )
