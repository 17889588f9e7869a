"""What is to be promoted, and what an environment's requirements say of it. Nothing is changed here.

chosen, order = choose(store, rules, "cnn", "staging", None, False, live)
results, pages = judge(store, rules["staging"], chosen.evidence, live, folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onward.registry.errors import Refused, UsageError
from onward.registry.gates import builtin, expectations, four_eyes, policy
from onward.registry.gates.policy import CANDIDATE, Policy
from onward.registry.log.entries import Entry, GateResult
from onward.registry.store.artifacts import SERVED_AS
from onward.registry.store.resolve import find_candidate, require_model
from onward.registry.store.schema import Log, RegisteredVersion
from onward.registry.store.store import Store


@dataclass(frozen=True)
class Deployable:
    """Bytes that can be deployed, where they are now, and what is known of them."""

    version: int
    sha256: str
    manifest: str
    source: str
    evidence: Mapping[str, str]

    def is_live_as(self, live: Entry) -> bool:
        """Whether `live` deployed these bytes, served in the same way, and pins as much of them as can be pinned."""
        if live.sha256 != self.sha256:
            return False
        if self.manifest:
            return live.manifest == self.manifest
        ways = live.evidence.get(SERVED_AS), self.evidence.get(SERVED_AS)
        return ways[0] == ways[1] or (None in ways and live.candidate_version == self.version)


def choose(
    store: Store, rules: Policy, model: str, to: str, version: int | None, force: bool, replaced: Entry | None
) -> tuple[Deployable, tuple[GateResult, ...]]:
    """What to promote, and whether the order of environments is kept."""
    origin = rules[to].source
    if origin == CANDIDATE:
        found = _newest(store, model, to, rules[to], force, replaced) if version is None else None
        return _deployable(found or find_candidate(store, model, version or 0)), ()
    live = store.head(origin, model).history.live
    if live is not None and version in (None, live.candidate_version):
        # The very bytes that were tried there; their evidence as it is now, where the candidate still exists.
        candidate = store.candidate(model, live.candidate_version)
        fresh = candidate is not None and candidate.sha256 == live.sha256
        evidence = candidate.evidence if candidate is not None and fresh else live.evidence
        kept = GateResult(requirement="order", met=True, detail=f"live in {origin} since entry {live.number}")
        return Deployable(live.candidate_version, live.sha256, live.manifest, live.source, evidence), (kept,)
    there = f"version {live.candidate_version}" if live else "nothing"
    if version is None:
        require_model(store, model)
        raise Refused(
            f"{to} takes what is live in {origin}, and nothing is: `onward promote {model} --to {origin}` first"
        )
    unkept = GateResult(requirement="order", met=False, detail=f"{to} takes what is live in {origin}, which is {there}")
    return _deployable(find_candidate(store, model, version)), (unkept,)


def _newest(
    store: Store, model: str, to: str, wanted: policy.Environment, force: bool, live: Entry | None
) -> RegisteredVersion:
    """The newest version whose evidence meets what is wanted; by force, the newest."""
    newest = None
    for candidate in store.candidates(model):
        if not candidate.sha256:
            continue
        newest = newest or candidate
        if force or not _unmet(store, wanted, candidate, live):
            return candidate
    if newest is None:
        raise UsageError(
            f"there is no version of {model}: `dvc repro` registers one, `onward status` shows what there is"
        )
    listed = "".join(f"\n  {result}" for result in _unmet(store, wanted, newest, live))
    raise Refused(f"no version of {model} is fit for {to}; the newest, {newest.version}, does not meet:{listed}")


def _unmet(
    store: Store, wanted: policy.Environment, candidate: RegisteredVersion, live: Entry | None
) -> list[GateResult]:
    results, _ = judge(store, wanted, candidate.evidence, live, None)
    return [result for result in results if not result.met]


def judge(
    store: Store, wanted: policy.Environment, evidence: Mapping[str, str], live: Entry | None, folder: Path | None
) -> tuple[tuple[GateResult, ...], dict[str, str]]:
    """What Onward's own gates say, and the suites, of which it hands over the pages too."""
    results = builtin.judge(wanted.named, evidence, folder)
    pages = {}
    if wanted.suites:
        row = expectations.facts(evidence, live.evidence if live else None, store.metrics)
        for name in wanted.suites:
            judgement = expectations.judge(name, row)
            results += judgement.results
            pages[name] = judgement.page
    return results, pages


def _deployable(candidate: RegisteredVersion) -> Deployable:
    return Deployable(candidate.version, candidate.sha256, candidate.manifest, candidate.source, candidate.evidence)


def second_person(
    store: Store,
    wanted: policy.Environment,
    model: str,
    to: str,
    chosen: Deployable,
    manifest: str,
    actor: str,
    moment: str,
) -> tuple[GateResult, ...]:
    """What `four_eyes` says of a promotion by `actor` at `moment` (ISO 8601), where the environment asks for it.
    `manifest` is the digest of the files that are promoted: an approval of others is none."""
    if not wanted.four_eyes:
        return ()
    approvals = store.approvals(to, model, chosen.sha256)
    command = f"onward approve {model} {chosen.version} --env {to}"
    publisher = chosen.evidence.get("published_by", "")
    same = [approval for approval in approvals if approval.manifest in ("", manifest)]
    return (four_eyes.judge(publisher, actor, same, wanted.signers, moment, command),)


def proof(log: Log, wanted: policy.Environment) -> tuple[GateResult, ...]:
    """What the signatures of the log say, where the environment has signers. An entry that was signed and is not proven
    is a reason to stop: somebody changed it, or its signer has left. Rows without a signature are told alone."""
    if not wanted.signers:
        return ()
    signed = [entry for entry in log.unproven if entry.signature and entry.kind != "approve"]
    broken = [entry for entry in signed if entry.number > log.history.base]
    detail = "; ".join(log.alarm) or "every entry that counts is proven"
    if broken:
        detail += ": look at `onward history`, then `onward sign ... --entry N` what is right, or use --force"
    return (GateResult(requirement="log", met=not broken, detail=detail),)
