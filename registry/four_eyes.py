"""`four_eyes`: a version goes live by the hands of more than one person. Pure.

Names are what people's machines say, and MLflow proves none of them: without signers the rule is advice, for people of
good will. With signers, a promotion and an approval are signed; who published is still only said. So then the promoter
and somebody who approved have to be two of them, whoever published.
"""

from __future__ import annotations

from collections.abc import Iterable

from registry.deployments import Entry, GateResult

REQUIREMENT = "four_eyes"
ADVICE = "advice: without `signers`, names are not proved"


def judge(publisher: str, promoter: str, approvals: Iterable[Entry], signed: bool, command: str) -> GateResult:
    """Whether somebody else than who published stands behind a promotion.

    Args:
        publisher: who published the version, "" where that was not recorded.
        promoter: who promotes it: with signers, the name of the key.
        approvals: those of these very bytes for this environment; with signers, the signed ones.
        signed: whether the environment has signers.
        command: what approves, for the message.
    """
    names = [approval.signer if signed else approval.actor for approval in approvals]
    others = [name for name in names if name not in (publisher, promoter)]
    if others:
        met, detail = True, f"approved by {', '.join(dict.fromkeys(others))}"
    elif not signed and publisher and promoter != publisher:
        met, detail = True, f"published by {publisher}, promoted by {promoter}"
    else:
        who = f"{publisher} published it and " if publisher else ""
        met, detail = False, f"{who}{promoter} promotes it: somebody else has to approve it first, `{command}`"
        if not signed and publisher:
            detail += ", or to promote it"
    return GateResult(requirement=REQUIREMENT, met=met, detail=detail if signed else f"{detail} ({ADVICE})")
