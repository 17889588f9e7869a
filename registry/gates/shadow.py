"""The requirement `shadow`: a server has compared the version with the live one on real requests. Pure.

The evidence must be of the version that is promoted, against the version that is live in the target environment. The
same numbers against an earlier live version say nothing about the change that the promotion makes.
"""

from __future__ import annotations

from collections.abc import Mapping

from onward.registry.evidence import shadow
from onward.registry.log.entries import Entry, GateResult

REQUIREMENT = "shadow"


def judge(evidence: Mapping[str, str], live: Entry | None, minimum: int) -> GateResult:
    """Judge the comparison of a version with the live one.

    Args:
        evidence: The version's tags.
        live: The live entry of the target environment; None if nothing is live there.
        minimum: The number of requests that must have been compared.

    Returns:
        Whether the requirement is met, and why.
    """
    if live is None:
        return GateResult(requirement=REQUIREMENT, met=True, detail="nothing is live that it could be compared with")
    own = [
        one
        for one in shadow.read(evidence)
        if one.sha256 == evidence.get("sha256") and one.manifest in ("", evidence.get("manifest", one.manifest))
    ]
    found = [one for one in own if (one.live_sha256, one.live_manifest) == (live.sha256, live.manifest)]
    if not found:
        others = ", ".join(f"version {one.live_version}" for one in own)
        detail = f"it was compared with {others}, but version {live.candidate_version} is live" if own else (
            "no evidence recorded: `onward serve MODEL@ENVIRONMENT --shadow MODEL@CANDIDATES` compares it"
        )  # fmt: skip
        return GateResult(requirement=REQUIREMENT, met=False, detail=detail)
    best = max(found, key=lambda one: one.requests)
    words = (
        f"{best.requests} requests compared with version {best.live_version} until {best.ended[:16]}, agreement "
        f"{best.agreement:.3f}, {best.latency_ratio:.3g} times its latency"
    )
    faults = list(best.faults)
    if best.requests < minimum:
        faults.append(f"{minimum} requests are needed")
    return GateResult(requirement=REQUIREMENT, met=not faults, detail="; ".join((words, *faults)))
