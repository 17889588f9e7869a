"""Onward's own requirements, judged by the evidence of a version.

The evidence is what the pipeline recorded with the version (registry/tracking/recorder.py). Only `replay` is measured
at promotion: it runs the recorded inputs on this host and compares the answers with the recorded ones. A requirement
without recorded evidence is not met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from onward.registry.artifact.replay import measure_again
from onward.registry.gates import shadow
from onward.registry.log.entries import GateResult

# Latency ratios of one interleaved benchmark run are reproducible to about 5 %. A smaller difference does not count.
LATENCY_NOISE = 0.05
# The tolerance for rounding: as floats, 0.98 - 0.975 is slightly more than 0.005.
_ROUNDING = 1e-9

NO_EVIDENCE = "no evidence recorded"

EvidenceTags = Mapping[str, str]


def judge(requirements: Iterable[str], evidence: EvidenceTags, folder: Path | None) -> tuple[GateResult, ...]:
    """Judge a version by Onward's own requirements.

    Args:
        requirements: Names in REQUIREMENTS. `shadow` is skipped.
        evidence: The version's tags.
        folder: The version's files; if None, `replay` is skipped.

    Returns:
        One result per requirement.
    """
    results = []
    for name in requirements:
        if name == shadow.REQUIREMENT:
            continue
        if name == "replay":
            if folder is None:
                continue
            met, detail = measure_again(folder, evidence)
        else:
            met, detail = _OVER_EVIDENCE[name](evidence)
        results.append(GateResult(requirement=name, met=met, detail=detail))
    return tuple(results)


def _parity(evidence: EvidenceTags) -> tuple[bool, str]:
    """The plain export is within the tolerances. `quality` judges versions of lower precision, made from it."""
    return _status(evidence, "parity")


def _data(evidence: EvidenceTags) -> tuple[bool, str]:
    return _status(evidence, "data")


def _status(evidence: EvidenceTags, name: str) -> tuple[bool, str]:
    status = evidence.get(name)
    return status == "passed", status or NO_EVIDENCE


def _quality(evidence: EvidenceTags) -> tuple[bool, str]:
    """The loss is within the budget.

    The pipeline registers nothing that exceeds the budget. So if no budget is recorded, `verdict` decides.
    """
    drop, budget = _number(evidence, "quality_drop"), _number(evidence, "quality_budget")
    passed = evidence.get("verdict") == "passed"
    if drop is None:
        # A model without a quality measure: float32 within the tolerances cannot be worse than its reference.
        exact = passed and evidence.get("precision") == "float32" and evidence.get("parity") == "passed"
        return exact, "no quality measure; float32 within the tolerances of parity" if exact else NO_EVIDENCE
    if budget is not None:
        measure = evidence.get("quality_measure", "quality")
        lost = f"drops by {drop:g}" if measure == "quality" else f"{measure} {drop:g}"
        if measure != "quality" and passed and drop > budget:
            # A share exceeds its limit only if its whole interval does. The pipeline has judged that.
            return True, f"{lost}, {budget:g} allowed; too few samples to show that it is exceeded"
        return drop <= budget + _ROUNDING, f"{lost}, {budget:g} allowed"
    return passed, f"drops by {drop:g}" + ("" if passed else "; no record that this is within the budget")


def _latency(evidence: EvidenceTags) -> tuple[bool, str]:
    """The version is not slower than the plain export by more than LATENCY_NOISE."""
    if evidence.get("variant") == "plain":
        return True, "is the plain export"
    ratio = _number(evidence, "latency_ratio")
    if ratio is None:
        return False, NO_EVIDENCE
    return ratio <= 1 + LATENCY_NOISE, f"{ratio:.3g} times the plain export's, {1 + LATENCY_NOISE:g} allowed"


def _number(evidence: EvidenceTags, name: str) -> float | None:
    try:
        return float(evidence[name])
    except (KeyError, ValueError):
        return None


_OVER_EVIDENCE: dict[str, Callable[[EvidenceTags], tuple[bool, str]]] = {
    "parity": _parity,
    "quality": _quality,
    "data": _data,
    "latency": _latency,
}

# `shadow` depends on what is live: registry/gates/shadow.py judges it.
REQUIREMENTS = (*_OVER_EVIDENCE, "replay", shadow.REQUIREMENT)
