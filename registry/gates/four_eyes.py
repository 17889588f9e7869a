"""The requirement `four_eyes`: at least two persons take part before a version goes live. Pure.

MLflow does not verify names, so without signers the rule is only advisory. With signers, promotions and approvals are
signed, but the publisher's name is still unverified. So the promoter and an approver must then be two different
signers; the publisher does not matter. Keys identify persons: two names with the same key count as one person.
"""

from __future__ import annotations

from collections.abc import Iterable

from onward.registry.log.entries import Entry, GateResult
from onward.registry.trust.entry_signatures import Signers

REQUIREMENT = "four_eyes"
ADVICE = "advice: without `signers`, names are not verified"


def judge(
    publisher: str, promoter: str, approvals: Iterable[Entry], signers: Signers, now: str, command: str
) -> GateResult:
    """Judge whether a second person takes part in a promotion.

    Args:
        publisher: The person who published the version; "" if unknown.
        promoter: The person who promotes it; with signers, the name of the key.
        approvals: The approvals of exactly these files for this environment; with signers, only the signed ones.
        signers: The environment's signers by name; empty if it has none.
        now: The present time in ISO 8601. Approvals of signers who have left do not count.
        command: The command that approves, for the message.

    Returns:
        Whether the requirement is met, and why.
    """
    if signers:
        approvers = [entry.signer for entry in approvals if entry.signer in signers]
        involved = {signers[name].identity for name in (publisher, promoter) if name in signers}
        others = [
            name for name in approvers if signers[name].identity not in involved and not signers[name].left_by(now)
        ]
    else:
        others = [entry.actor for entry in approvals if entry.actor not in (publisher, promoter)]
    if others:
        met, detail = True, f"approved by {', '.join(dict.fromkeys(others))}"
    elif not signers and publisher and promoter != publisher:
        met, detail = True, f"published by {publisher}, promoted by {promoter}"
    else:
        published = f"{publisher} published it and " if publisher else ""
        met, detail = False, f"{published}{promoter} promotes it: somebody else has to approve it first, `{command}`"
        if not signers and publisher:
            detail += ", or to promote it"
    return GateResult(requirement=REQUIREMENT, met=met, detail=detail if signers else f"{detail} ({ADVICE})")
