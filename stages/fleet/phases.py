"""The phases of a model's pipeline, and what is known about each of its stages.

A phase is what one machine runs in one go. Between phases, a model may move to another machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from onward.stages.fleet.locks import Entries

PREPARE, MEASURE, FINISH = "prepare", "measure", "finish"
# The stages of each phase, in the pipeline's order.
STAGES = {
    PREPARE: ("train", "data", "export", "verify", "optimize", "quantize"),
    MEASURE: ("benchmark",),
    FINISH: ("select", "publish"),
}
# The folder of a clone with the measurements on other classes of machines, before they join the main one. It is below
# build/, which git ignores: an untracked file elsewhere would be published as an uncommitted change.
JOINED = "build/.joined"


class Job(BaseModel):
    """What the process in a clone does (stages/fleet/pipeline.py).

    Attributes:
        model: The model's name.
        phase: The phase.
        cache: The folder that DVC keeps results in, shared by all clones of this machine.
        remote: Whether results go to the team's DVC remote after every stage, and are looked for there.
        run: The fleet run's name. A machine reads the remote's run cache once per run.
        code: The digest of the Onward that the run was started with.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    phase: str
    cache: str
    remote: bool
    run: str
    code: str


class Event(BaseModel):
    """One line from the process in a clone.

    Attributes:
        stage: The stage that it is about; empty for the model's verdict.
        state: "running", "done", or "stopped" by a fault of the machine or of params.yaml that is no verdict.
        seconds: The time that the stage took.
        cpu_seconds: The CPU time of its process and all that it started.
        ended: When it ended, in seconds since 1970.
        computed: Whether the stage ran. Otherwise its results were known.
        reason: Why the stage stopped.
        lock: The stage's entry in dvc.lock.
        verdict: What came of the model, as `verdict --json` prints it.
        cells: The model's row in the table of `verdict`.
    """

    model_config = ConfigDict(extra="forbid")

    stage: str = ""
    state: str = "done"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    ended: float = 0.0
    computed: bool = False
    reason: str = ""
    lock: Entries = {}
    verdict: dict[str, Any] | None = None
    cells: list[str] = []


@dataclass
class Progress:
    """What is known about one model while the fleet runs.

    Attributes:
        model: Its name.
        state: "waiting", "running", "passed", "failed", "stopped" or "cancelled".
        phase: The phase that runs or waits.
        stage: The stage that runs.
        node: The machine that it runs on.
        attempts: How often a task of this model was started.
        reason: Why it was stopped.
        done: The stages that are up to date, in order.
        computed: Those of them that ran, rather than being restored; one that ran twice is named twice.
        seconds: The time that each stage took when it was last brought up to date.
        cpu_seconds: The CPU time that it took.
        ended: When that was, in seconds since 1970.
        nodes: The machine on which that was.
        lock: The entries of dvc.lock, as far as the pipeline is done.
        elsewhere: The entries of measurements on other classes of machines than the main one, by class.
        verdict: As in Event.
        cells: As in Event.
    """

    model: str
    state: str = "waiting"
    phase: str = PREPARE
    stage: str = ""
    node: str = ""
    attempts: int = 0
    reason: str = ""
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    lock: Entries = field(default_factory=dict)
    elsewhere: dict[str, Entries] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    cells: list[str] = field(default_factory=list)
