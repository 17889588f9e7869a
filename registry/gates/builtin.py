"""What each requirement of an environment means, judged over the evidence that a version carries.

Evidence is what the pipeline recorded with the version (registry/tracking/recorder.py). `replay` alone is measured at
promotion: the recorded inputs are run on this host and compared with the recorded outputs. What was not recorded is
not met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from onward.registry.artifact.replay import measure_again
from onward.registry.log.entries import GateResult

# Latency ratios of one interleaved benchmark run repeat to about 5 %; within that, a version is not slower.
LATENCY_NOISE = 0.05
# A drop is a difference of decimal fractions: 0.98 - 0.975 is a hair more than 0.005.
_ROUNDING = 1e-9

NO_EVIDENCE = "no evidence recorded"

EvidenceTags = Mapping[str, str]


def judge(requirements: Iterable[str], evidence: EvidenceTags, folder: Path | None) -> tuple[GateResult, ...]:
    """Judge every requirement. `folder` holds the version's files; without it, only evidence is judged."""
    results = []
    for name in requirements:
        if name == "replay":
            if folder is None:
                continue
            met, detail = measure_again(folder, evidence)
        else:
            met, detail = _OVER_EVIDENCE[name](evidence)
        results.append(GateResult(requirement=name, met=met, detail=detail))
    return tuple(results)


def _parity(evidence: EvidenceTags) -> tuple[bool, str]:
    """The plain export holds the tolerances. A version of lower precision is made from it and held to `quality`."""
    return _status(evidence, "parity")


def _data(evidence: EvidenceTags) -> tuple[bool, str]:
    return _status(evidence, "data")


def _status(evidence: EvidenceTags, name: str) -> tuple[bool, str]:
    status = evidence.get(name)
    return status == "passed", status or NO_EVIDENCE


def _quality(evidence: EvidenceTags) -> tuple[bool, str]:
    """Within the budget. The pipeline registers nothing beyond it, so `verdict` answers where no budget is recorded."""
    drop, budget = _number(evidence, "quality_drop"), _number(evidence, "quality_budget")
    passed = evidence.get("verdict") == "passed"
    if drop is None:
        # A model without a measure of quality: float32 that holds parity cannot be worse than its reference.
        exact = passed and evidence.get("precision") == "float32" and evidence.get("parity") == "passed"
        return exact, "no measure of quality; float32 that holds parity" if exact else NO_EVIDENCE
    if budget is not None:
        measure = evidence.get("quality_measure", "quality")
        lost = f"drops by {drop:g}" if measure == "quality" else f"{measure} {drop:g}"
        if measure != "quality" and passed and drop > budget:
            # A share that few samples tell breaks its limit where its whole interval does: the pipeline judged that.
            return True, f"{lost}, {budget:g} allowed; the samples are too few to say that it is more"
        return drop <= budget + _ROUNDING, f"{lost}, {budget:g} allowed"
    return passed, f"drops by {drop:g}" + ("" if passed else "; nothing recorded says that this is within the budget")


def _latency(evidence: EvidenceTags) -> tuple[bool, str]:
    """No slower than the plain export, beyond what measuring twice differs by."""
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

REQUIREMENTS = (*_OVER_EVIDENCE, "replay")
