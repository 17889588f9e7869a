"""Answers alarms as the environment's policy says (`on_decay` in params.yaml): shows them, or rolls back.

A rollback is an entry of the environment's log by the actor `monitor`. The log itself says when the last one was and
which versions it replaced, so several monitors of one environment agree without any other state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from onward.registry.errors import OnwardError, Refused
from onward.registry.gates import policy
from onward.registry.gates.policy import Environment
from onward.registry.log.entries import DeploymentHistory, Entry, deployment, plan_rollback
from onward.registry.monitoring.watch import Alarm
from onward.registry.operations import promotion
from onward.registry.store.schema import registered_name
from onward.registry.store.store import Store
from onward.registry.switches import is_on
from onward.registry.text import one_line
from onward.registry.trust import entry_signatures

ACTOR = "monitor"
# Set this variable to 1 to switch automatic rollbacks off on a host.
OFF = "ONWARD_NO_ROLLBACK"
_LONGEST_REASON = 900


@dataclass(frozen=True)
class Response:
    """What was done about some alarms.

    Attributes:
        text: what was done, or why nothing was; "" if the policy wants no rollback.
        rolled_back: whether a rollback was appended.
    """

    text: str = ""
    rolled_back: bool = False


def wanted(alarms: Sequence[Alarm], environment: str) -> list[Alarm]:
    """The alarms that the policy of an environment does not ignore.

    Args:
        alarms: the alarms.
        environment: the environment.
    """
    known = policy.read().get(environment)
    return [alarm for alarm in alarms if known is None or getattr(known.on_decay, alarm.kind) != "ignore"]


def respond(store: Store, model: str, environment: str, entry: int, alarms: Sequence[Alarm]) -> Response:
    """Roll back if an alarm asks for it, and nothing speaks against it.

    Args:
        store: the store.
        model: the model's name.
        environment: the environment.
        entry: the number of the entry whose version has the alarms. Nothing happens if another one is live.
        alarms: the alarms.
    """
    known = policy.read().get(environment)
    serious = [alarm for alarm in alarms if known and getattr(known.on_decay, alarm.kind) == "rollback"]
    if known is None or not serious:
        return Response()
    try:
        target = _target(store, known, model, environment, entry)
        reason = one_line(f"automatic rollback: {'; '.join(map(str, serious))}")
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}…"
        done = promotion.rollback(
            model, environment, reason=reason, to=target.number, actor=ACTOR, expected=entry, store=store
        )
    except OnwardError as error:
        return Response(f"no automatic rollback: {error}")
    note = f" ({done.note})" if done.note else ""
    return Response(f"rolled back to version {done.version}, entry {done.entry and done.entry.number}{note}", True)


def _target(store: Store, known: Environment, model: str, environment: str, entry: int) -> Entry:
    """The promotion to restore.

    Raises:
        OnwardError: there must be no rollback now; the message says why.
    """
    if is_on(OFF):
        raise Refused(f"{OFF} is set on this host")
    if known.on_decay.paused:
        raise Refused(f"environments.{environment}.on_decay.paused is true in params.yaml")
    log = store.log(environment, model)
    log.require_known(registered_name(environment, model))
    live = log.history.live
    if live is None or live.number != entry:
        raise Refused(f"entry {entry} is no longer live")
    if log.alarm:
        raise Refused(f"the signed log raises an alarm ({'; '.join(log.alarm)}): look at `onward history {model}`")
    if known.signers and (key := entry_signatures.own_key(known.signers, environment)).name != ACTOR:
        raise Refused(
            f"the key of this host is that of {key.name}; add a signer named {ACTOR} to environments.{environment}."
            "signers, and give this host its key (docs/monitoring.md)"
        )
    check_cooldown(log.history, known.on_decay.cooldown_hours, datetime.fromisoformat(promotion.now()))
    return earlier(log.history, partial(store.entry, environment, model))


def by_monitor(history: DeploymentHistory) -> list[Entry]:
    """The monitor's rollbacks that counted, in the order of the log."""
    return [entry for entry in history.counted if entry.kind == "rollback" and entry.actor == ACTOR]


def check_cooldown(history: DeploymentHistory, hours: float, now: datetime) -> None:
    """Check that the last automatic rollback is long enough ago.

    Args:
        history: the environment's history.
        hours: how long there must be none.
        now: the time.

    Raises:
        Refused: it is not.
    """
    done = by_monitor(history)
    if not done:
        return
    until = datetime.fromisoformat(done[-1].at) + timedelta(hours=min(hours, 1e6))
    if now < until:
        raise Refused(
            f"entry {done[-1].number} was an automatic rollback, and the next one is possible at "
            f"{until.isoformat(timespec='seconds')} (on_decay.cooldown_hours)"
        )


def earlier(history: DeploymentHistory, find: partial[Entry]) -> Entry:
    """The newest earlier deployment of a version that the monitor never rolled back.

    Args:
        history: the environment's history, all of it.
        find: returns the entry with a number.

    Raises:
        Refused: there is none.
    """
    live = history.live
    assert live is not None
    failed = {live.sha256}
    for entry in by_monitor(history):
        failed.add(deployment(find(entry.base), find).sha256)
    target = plan_rollback(live, find)
    while target.sha256 in failed:
        try:
            target = plan_rollback(target, find)
        except Refused:
            raise Refused("every earlier version was itself replaced by an automatic rollback") from None
    return target
