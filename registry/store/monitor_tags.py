"""The tags of the monitor's runs (registry/store/monitor_runs.py), from which `onward status` reads alarms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ROLE, MODEL, ENVIRONMENT, ALARM = "onward.role", "onward.model", "onward.environment", "onward.alarm"
MONITOR = "monitor"
_LONGEST_ALARM = 4000


@dataclass(frozen=True)
class Recorded:
    """The alarms that a monitor recorded.

    Attributes:
        entry: the number of the entry that they are about.
        at: when they were recorded, in ISO 8601.
        alarms: the alarms as sentences; empty if there is none.
    """

    entry: int
    at: str
    alarms: tuple[str, ...]


def to_tag(recorded: Recorded) -> str:
    """The value of the tag ALARM; "" without an alarm, so that a search finds the others."""
    if not recorded.alarms:
        return ""
    texts: list[str] = []
    for alarm in recorded.alarms:
        if sum(map(len, texts)) + len(alarm) > _LONGEST_ALARM:
            texts.append("further alarms: see the run")
            break
        texts.append(alarm)
    return json.dumps({"entry": recorded.entry, "at": recorded.at, "alarms": texts})


def from_tag(value: str) -> Recorded | None:
    """Read the tag ALARM; None if it has none or is malformed."""
    try:
        found = json.loads(value)
        return Recorded(int(found["entry"]), str(found["at"]), tuple(map(str, found["alarms"])))
    except (ValueError, KeyError, TypeError):
        return None


def by_environment(tags: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], Recorded]:
    """The alarms in the tags of runs, by environment and model; of two runs, the later one counts."""
    found = {(one.get(ENVIRONMENT, ""), one.get(MODEL, "")): from_tag(one.get(ALARM, "")) for one in tags}
    return {key: recorded for key, recorded in found.items() if recorded is not None}
