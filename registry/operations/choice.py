"""Choose the version to promote, and check it against an environment's requirements. Nothing is changed here.

chosen, order = choose(store, rules, "cnn", "staging", None, False, live)
results, pages = judge(store, rules["staging"], chosen.evidence, live, folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onward.registry.errors import Refused
from onward.registry.gates import builtin, expectations, four_eyes, policy, shadow
from onward.registry.gates.policy import CANDIDATE, Policy
from onward.registry.log.entries import Entry, GateResult
from onward.registry.store.artifacts import SERVED_AS
from onward.registry.store.resolve import find_candidate, no_version, require_model
from onward.registry.store.schema import Log, RegisteredVersion
from onward.registry.store.store import Store


@dataclass(frozen=True)
class Deployable:
    """A version that can be deployed.

    Attributes:
        version: the version's number.
        sha256: the digest of the model's files.
        manifest: the digest of all files; "" if an older Onward published the version.
        source: the models:/ URI of the files.
        evidence: what was measured of the version.
    """

    version: int
    sha256: str
    manifest: str
    source: str
    evidence: Mapping[str, str]

    def is_live_as(self, live: Entry) -> bool:
        """Whether `live` already deploys these files, with the same serving.json and the strongest available digest.

        Args:
            live: the live entry of the environment.
        """
        if live.sha256 != self.sha256:
            return False
        if self.manifest:
            return live.manifest == self.manifest
        serving = live.evidence.get(SERVED_AS), self.evidence.get(SERVED_AS)
        return serving[0] == serving[1] or (None in serving and live.candidate_version == self.version)


def choose(
    store: Store, rules: Policy, model: str, to: str, version: int | None, force: bool, replaced: Entry | None
) -> tuple[Deployable, tuple[GateResult, ...]]:
    """Choose the version to promote.

    Args:
        store: the store.
        rules: the environments' requirements.
        model: the model's name.
        to: the environment to deploy to.
        version: the version's number; None for the version that is live in the environment before `to`, or for the
            newest version that meets the requirements if `to` takes candidates.
        force: whether unmet requirements are ignored in the choice.
        replaced: the live entry of `to`, or None.

    Returns:
        the version, and whether the order of environments is kept (no result if `to` takes candidates).

    Raises:
        UsageError: there is no such model or version.
        Refused: no version meets the requirements, or nothing is live in the environment before `to`.
    """
    origin = rules[to].source
    if origin == CANDIDATE:
        found = _newest(store, model, to, rules[to], force, replaced) if version is None else None
        return _deployable(found or find_candidate(store, model, version or 0)), ()
    live = store.head(origin, model).history.live
    if live is not None and version in (None, live.candidate_version):
        # Deploy the same files as there. Take the candidate's current evidence, if the candidate still exists.
        candidate = store.candidate(model, live.candidate_version)
        fresh = candidate is not None and candidate.sha256 == live.sha256
        evidence = candidate.evidence if candidate is not None and fresh else live.evidence
        kept = GateResult(requirement="order", met=True, detail=f"live in {origin} since entry {live.number}")
        return Deployable(live.candidate_version, live.sha256, live.manifest, live.source, evidence), (kept,)
    found_live = f"version {live.candidate_version}" if live else "nothing"
    if version is None:
        require_model(store, model)
        raise Refused(
            f"{to} takes the version that is live in {origin}, and nothing is live there: run `onward promote {model} "
            f"--to {origin}` first"
        )
    detail = f"{to} takes the version that is live in {origin}, which is {found_live}"
    unkept = GateResult(requirement="order", met=False, detail=detail)
    return _deployable(find_candidate(store, model, version)), (unkept,)


def _newest(
    store: Store, model: str, to: str, wanted: policy.Environment, force: bool, live: Entry | None
) -> RegisteredVersion:
    """The newest version whose evidence meets the requirements; with `force`, the newest version."""
    newest = None
    for candidate in store.candidates(model):
        if not candidate.sha256:
            continue
        newest = newest or candidate
        if force or not _unmet(store, wanted, candidate, live):
            return candidate
    if newest is None:
        raise no_version(model)
    listed = "".join(f"\n  {result}" for result in _unmet(store, wanted, newest, live))
    raise Refused(
        f"no version of {model} meets the requirements of {to}; the newest, version {newest.version}, does not "
        f"meet:{listed}"
    )


def _unmet(
    store: Store, wanted: policy.Environment, candidate: RegisteredVersion, live: Entry | None
) -> list[GateResult]:
    results, _ = judge(store, wanted, candidate.evidence, live, None)
    return [result for result in results if not result.met]


def judge(
    store: Store, wanted: policy.Environment, evidence: Mapping[str, str], live: Entry | None, folder: Path | None
) -> tuple[tuple[GateResult, ...], dict[str, str]]:
    """Check a version's evidence against an environment's requirements.

    Args:
        store: the store, for the metrics that suites use.
        wanted: the environment.
        evidence: what was measured of the version.
        live: the live entry of the environment, or None.
        folder: the version's files; None to skip the gates that need them.

    Returns:
        the results of Onward's own gates and of the Great Expectations suites, and each suite's HTML page by its name.
    """
    results = builtin.judge(wanted.named, evidence, folder)
    if shadow.REQUIREMENT in wanted.named:
        results += (shadow.judge(evidence, live, wanted.shadow_requests),)
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
    """Check the `four_eyes` gate, if the environment has it.

    Args:
        store: the store.
        wanted: the environment.
        model: the model's name.
        to: the environment's name.
        chosen: the version to promote.
        manifest: the digest of the files to promote. Approvals of other files do not count.
        actor: who promotes.
        moment: when, in ISO 8601.

    Returns:
        one result, or none without the gate.
    """
    if not wanted.four_eyes:
        return ()
    approvals = store.approvals(to, model, chosen.sha256)
    command = f"onward approve {model} {chosen.version} --env {to}"
    publisher = chosen.evidence.get("published_by", "")
    same = [approval for approval in approvals if approval.manifest in ("", manifest)]
    return (four_eyes.judge(publisher, actor, same, wanted.signers, moment, command),)


def proof(log: Log, wanted: policy.Environment) -> tuple[GateResult, ...]:
    """Check the signatures of a log, if the environment has signers.

    A signed entry that is not proven stops the promotion: it was changed, or its signer was removed. Rows without a
    signature are only reported.

    Args:
        log: the environment's log.
        wanted: the environment.

    Returns:
        one result, or none without signers.
    """
    if not wanted.signers:
        return ()
    signed = [entry for entry in log.unproven if entry.signature and entry.kind != "approve"]
    broken = [entry for entry in signed if entry.number > log.history.base]
    detail = "; ".join(log.alarm) or "every entry that counts is proven"
    if broken:
        detail += ": look at `onward history`, then sign the correct entries with `onward sign ... --entry N`, or use "
        detail += "--force"
    return (GateResult(requirement="log", met=not broken, detail=detail),)
