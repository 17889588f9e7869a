"""How the deployment log and the candidates lie in MLflow: names, tags and aliases. Pure: no client, no request.

Each environment of each model is one registered model, `production.cnn`, and its versions are the log. The aliases
`live` (on `production.cnn`) and `production` (on the candidates' `cnn`), and the tag `lost`, are views of the log.
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
# 1 is what every Onward reads. 2 is a signed entry with links to those before it: an older Onward would take its
# signature for a false one, and show what was live before as live.
SCHEMA = 2


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
    def run_link(self) -> str | None: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class RegisteredVersion:
    """A version that the pipeline registered. `evidence` is its tags: what was measured, as
    registry/tracking/recorder.py says. `logged_model` is the id of the one that holds its files, `stage` MLflow's own
    deprecated one."""

    model: str
    version: int
    evidence: Mapping[str, str]
    created: datetime
    logged_model: str = ""
    stage: str = ""

    @property
    def sha256(self) -> str:
        """The digest of the model; "" where Onward did not publish it, or its digests are none."""
        said = (self.evidence.get("sha256", ""), self.manifest or "0" * 64)
        return said[0] if all(re.fullmatch("[0-9a-f]{64}", digest) for digest in said) else ""

    @property
    def manifest(self) -> str:
        """The digest of the manifest of all its files; "" where an older Onward published it."""
        return self.evidence.get("manifest", "")

    @property
    def source(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class Log:
    """An environment's log as it is stored, or its newest part.

    history: the entries that count and those that lost a race. marked: which lost entries carry their mark.
    foreign: rows that are no entries (somebody registered them by hand); they count for nothing.
    newer: rows that a newer Onward wrote, which this one cannot read. newest: the highest number of all rows.
    unproven: where an environment has signers, entries that none of them signed, and signed ones of which nobody can
    say any more whether they lost a race. They count for nothing. alarm: what of all that stands after the last entry
    that counts, in words. damage: entries that were changed or deleted after a later one had named them, in words.
    open: whether older rows have to be read to judge these. signed: whether the environment has signers.
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
        """Whether enough was read to say what is live: no older row could change it."""
        return self.history.settled and not self.open

    def entries(self) -> list[Entry]:
        """All of them, whether they count or not, in the order of the log."""
        return sorted((*self.history.entries(), *self.approvals, *self.unproven), key=lambda entry: entry.number)

    def require_known(self, registered: str) -> None:
        """Check that this Onward can read what is newest in the log. In a log with signers, what it cannot read is not
        proven, and raises an alarm instead.

        Raises:
            UsageError: a newer Onward wrote an entry after the one that seems to be live.
        """
        unknown = [number for number in self.newer if number > self.history.base]
        if unknown and not self.signed:
            raise UsageError(f"{registered}: entry {unknown[-1]} was written by a newer Onward: upgrade this one")


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
    """The registered model that holds the log. Neither name holds a dot (valid_name), so it reads back."""
    return f"{environment}.{model}"


def approval_source(sha256: str) -> str:
    """What stands for the files of an approval: it has none of its own, and outlives those that it is about."""
    return f"approval:{sha256}"


def to_tags(draft: Draft) -> dict[str, str]:
    """An entry as the tags of a model version."""
    tags = {
        "schema": "2" if draft.signature and (draft.seen >= 0 or draft.manifest) else "1",
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
    """The entry that a model version holds, or None where it holds none, or one that cannot be right."""
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
    """Whether a newer Onward wrote this row, so that this one might misread it."""
    schema = version.tags.get("schema", "")
    return re.fullmatch(r"[0-9]{1,9}", schema) is not None and int(schema) > SCHEMA


def parse_log(registered: str, versions: Iterable[Version], signers: Signers, floor: int = 0) -> Log:
    """A log from the versions of its registered model; of those above `floor`, where only these were read."""
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
    history = fold((e for n, e in entries.items() if n in counting and e.kind != "approve"), floor)
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
    """What is not proven and stands after the last entry that counts, a sentence a row."""
    said = {entry.number: "is not signed by any of the signers, or was changed after that" for entry in unproven}
    uncertain = "is signed, but a row before it is gone or not proven: it may have lost a race"
    said |= dict.fromkeys(judged.undecided, uncertain)
    said |= dict.fromkeys(foreign, "is no entry of Onward's") | dict.fromkeys(newer, "is of a newer Onward")
    return (f"row {number} {said[number]}" for number in sorted(said) if number > live)


def find_drift(
    environment: str, model: str, log: Log, candidate: int | None, found: Mapping[str, int | None]
) -> list[Drift]:
    """The views that disagree with the log. `candidate` is the version that is live, if it still exists; `found` is
    where the aliases are: `live` by the name of the log's registered model, and the environment's by `model`."""
    registered = registered_name(environment, model)
    wanted = ((registered, LIVE, log.history.base or None), (model, environment, candidate))
    drifts = [Drift(name, alias, number, found[name]) for name, alias, number in wanted if found[name] != number]
    unmarked = [entry.number for entry in log.history.lost if entry.number not in log.marked]
    return drifts + [Drift(registered, LOST, number, None) for number in unmarked]


def to_registered_version(version: Version) -> RegisteredVersion:
    """A candidate from the version that the pipeline registered."""
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    _, named, logged_model = (version.source or "").partition("models:/m-")  # over REST, model_id is not told
    return RegisteredVersion(
        version.name,
        int(version.version),
        dict(version.tags),
        created,
        f"m-{logged_model}" if named else "",
        version.current_stage or "",
    )
