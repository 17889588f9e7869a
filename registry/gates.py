"""Judges a version's recorded evidence against what an environment asks for. Missing evidence is a no."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from registry.policy import Requirement
from registry.replay import replay

Evidence = Mapping[str, str]

# A chosen variant was measured not to be slower than the plain export; 2 % allow for the rounding of the record.
SLOWEST_RATIO = 1.02


def judge(require: list[Requirement], evidence: Evidence, folder: Path) -> dict[str, str]:
    """What each requirement says: an empty text where it is met, else why not.

    `evidence` is what the version's tags record; `folder` holds the files of the version.
    """
    return {name: _GATES[name](evidence, folder) for name in require}


def summary(verdicts: Mapping[str, str]) -> str:
    """`parity ok, replay FAILED (why)`: what history shows."""
    return (
        ", ".join(f"{name} FAILED ({why})" if why else f"{name} ok" for name, why in verdicts.items()) or "none asked"
    )


def _parity(evidence: Evidence, _: Path) -> str:
    return _passed(evidence, "parity")


def _data(evidence: Evidence, _: Path) -> str:
    return _passed(evidence, "data")


def _passed(evidence: Evidence, name: str) -> str:
    found = evidence.get(name)
    if found is None:
        return "no evidence recorded"
    return "" if found == "passed" else f"recorded as {found}"


def _quality(evidence: Evidence, _: Path) -> str:
    drop, budget = _number(evidence, "quality_drop"), _number(evidence, "quality_budget")
    if drop is None or budget is None:
        return "no evidence recorded"
    return "" if drop <= budget + 1e-6 else f"drops by {drop:g}, more than the {budget:g} of budget.quality_drop"


def _latency(evidence: Evidence, _: Path) -> str:
    ratio = _number(evidence, "latency_ratio")
    if ratio is None:
        return "no evidence recorded"
    return "" if ratio <= SLOWEST_RATIO else f"{ratio:.2f} times the plain export's latency"


def _replay(evidence: Evidence, folder: Path) -> str:
    return replay(folder, evidence.get("provider", "CPUExecutionProvider"))


def _number(evidence: Evidence, name: str) -> float | None:
    try:
        return float(evidence[name])
    except (KeyError, ValueError):
        return None


_GATES: dict[Requirement, Callable[[Evidence, Path], str]] = {
    "parity": _parity,
    "quality": _quality,
    "data": _data,
    "latency": _latency,
    "replay": _replay,
}
