"""The tags of the monitor's runs (registry/store/monitor_runs.py), from which `onward status` reads alarms."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

ROLE, MODEL, ENVIRONMENT = "onward.role", "onward.model", "onward.environment"
# Each monitor has a tag of its own, so that a server without an alarm does not remove that of another one.
ALARM = "onward.alarm."
MONITOR = "monitor"
# Alarms that no monitor has written again for so long do not count: that monitor may not exist any more.
_OLD = timedelta(days=2)
# MLflow allows 8,000 characters.
_LONGEST_TAG, _LONGEST_ALARM = 6000, 900


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
    """The value of a monitor's tag; "" without an alarm."""
    texts: list[str] = []
    for alarm in recorded.alarms:
        short = alarm if len(alarm) <= _LONGEST_ALARM else f"{alarm[:_LONGEST_ALARM]}…"
        if len(json.dumps([*texts, short])) > _LONGEST_TAG:
            texts.append("further alarms: see the run")
            break
        texts.append(short)
    return json.dumps({"entry": recorded.entry, "at": recorded.at, "alarms": texts}) if texts else ""


def from_tag(value: str) -> Recorded | None:
    """Read the value of a monitor's tag; None if it has no alarm or is malformed."""
    try:
        found = json.loads(value)
        datetime.fromisoformat(found["at"])
        return Recorded(int(found["entry"]), str(found["at"]), tuple(map(str, found["alarms"])))
    except (ValueError, KeyError, TypeError):
        return None


def by_environment(tags: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], tuple[Recorded, ...]]:
    """The alarms in the tags of runs, by environment and model, in the order of the runs and of the tags' names."""
    found: defaultdict[tuple[str, str], list[Recorded]] = defaultdict(list)
    for one in tags:
        for name in sorted(one):
            recorded = from_tag(one[name]) if name.startswith(ALARM) else None
            if recorded is not None:
                found[one.get(ENVIRONMENT, ""), one.get(MODEL, "")].append(recorded)
    return {key: tuple(alarms) for key, alarms in found.items()}


def about(recorded: Iterable[Recorded], entry: int, now: datetime) -> Recorded | None:
    """The alarms about one entry, of all monitors together; None if there is none.

    Args:
        recorded: what monitors recorded.
        entry: the number of the entry.
        now: the time.
    """
    found = [one for one in recorded if one.entry == entry and now - datetime.fromisoformat(one.at) < _OLD]
    if not found:
        return None
    texts = dict.fromkeys(text for one in found for text in one.alarms)
    return Recorded(entry, max(one.at for one in found), tuple(texts))
