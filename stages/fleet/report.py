"""What a fleet run came to: the verdict on every model, and where the time went."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from onward.registry.text import printable
from onward.stages.fleet.phases import Progress
from onward.stages.fleet.run import Result
from onward.stages.fleet.table import summary
from onward.stages.progress import duration
from onward.stages.verdict import COLUMNS, NARROW, print_table


def as_document(result: Result) -> dict[str, Any]:
    """The result as a JSON object."""
    models = result.models.values()
    return {
        "run": result.run,
        "commit": result.commit,
        "passed": all(one.state == "passed" for one in models),
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 1),
        "lock_written": result.merged,
        "models": [_facts(one, one.model in result.known) for one in models],
    }


def _facts(one: Progress, known: bool) -> dict[str, Any]:
    return {
        "model": one.model,
        "state": one.state,
        "reason": one.reason or None,
        "known_before": known,
        "attempts": one.attempts,
        "computed": one.computed,
        "stages": {stage: _stage(one, stage) for stage in one.done},
        "verdict": one.verdict,
    }


def _stage(one: Progress, stage: str) -> dict[str, Any]:
    return {
        "seconds": one.seconds[stage],
        "cpu_seconds": one.cpu_seconds[stage],
        "ended": one.ended[stage],
        "machine": one.nodes[stage],
    }


def printed(result: Result) -> Iterator[str]:
    """The result as lines for people."""
    models = list(result.models.values())
    rows = [one.cells or [one.model, one.state, *[""] * (len(COLUMNS) - 2)] for one in models]
    width = shutil.get_terminal_size((NARROW, 24)).columns
    text = io.StringIO()
    with redirect_stdout(text):
        dropped = print_table(rows, width)
    yield from text.getvalue().splitlines()
    if dropped:
        yield f"left out, because the table is limited to {width} columns: {', '.join(dropped)}; --json has them"
    for one in models:
        for fault in (one.verdict or {}).get("faults", []) if one.state == "failed" else []:
            yield printable(fault)
        if one.state == "stopped":
            for line in f"stopped: {one.model}: {one.reason}".splitlines():
                yield printable(line)
    known = f"; {len(result.known)} were known from an earlier run" if result.known else ""
    yield f"{summary(models)} in {duration(result.seconds)}{known}"
    if result.interrupted:
        yield "interrupted: run the same command again to go on"
    if result.merged:
        yield "wrote dvc.lock: commit it; `dvc checkout`, or `dvc pull` after a run on a cluster, brings the results"
    else:
        yield f"dvc.lock was not changed, because commit {result.commit[:12]} is not checked out"
