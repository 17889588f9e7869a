"""`four_eyes`: a version goes live by the hands of more than one person. Pure.

Names are what people's machines say, and MLflow proves none of them: without signers the rule is advice, for people of
good will. With signers, a promotion and an approval are signed; who published is still only said. So then the promoter
and somebody who approved have to be two of them, whoever published. Their keys tell who they are: one key under two
names is one person.
"""

from __future__ import annotations

from collections.abc import Iterable

from onward.registry.log.entries import Entry, GateResult
from onward.registry.trust.entry_signatures import Signers

REQUIREMENT = "four_eyes"
ADVICE = "advice: without `signers`, names are not proved"


def judge(
    publisher: str, promoter: str, approvals: Iterable[Entry], signers: Signers, now: str, command: str
) -> GateResult:
    """Whether somebody else than who published stands behind a promotion.

    Args:
        publisher: who published the version, "" where that was not recorded.
        promoter: who promotes it: with signers, the name of the key.
        approvals: those of these very bytes for this environment; with signers, the signed ones.
        signers: the environment's, by name; empty where it has none.
        now: this moment, in ISO 8601. Signers who have left approve nothing any more.
        command: what approves, for the message.
    """
    if signers:
        known = [entry.signer for entry in approvals if entry.signer in signers]
        same = {name for name in (publisher, promoter) if name in signers}
        keys = {signers[name].identity for name in same}
        others = [name for name in known if signers[name].identity not in keys and not signers[name].left_by(now)]
    else:
        others = [entry.actor for entry in approvals if entry.actor not in (publisher, promoter)]
    if others:
        met, detail = True, f"approved by {', '.join(dict.fromkeys(others))}"
    elif not signers and publisher and promoter != publisher:
        met, detail = True, f"published by {publisher}, promoted by {promoter}"
    else:
        who = f"{publisher} published it and " if publisher else ""
        met, detail = False, f"{who}{promoter} promotes it: somebody else has to approve it first, `{command}`"
        if not signers and publisher:
            detail += ", or to promote it"
    return GateResult(requirement=REQUIREMENT, met=met, detail=detail if signers else f"{detail} ({ADVICE})")
