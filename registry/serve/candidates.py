"""Attaches shadows and canaries to the served models: which candidate belongs to which model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onward.registry.errors import UsageError
from onward.registry.gates import policy
from onward.registry.serve.canary import Canary
from onward.registry.serve.following import Follower
from onward.registry.serve.names import model_name
from onward.registry.serve.shadow import Shadow
from onward.registry.serve.shadow_record import ShadowRecord

if TYPE_CHECKING:
    from onward.registry.serve.metrics import Metrics
    from onward.registry.serve.served import ServedModel
    from onward.registry.serve.server import Options


def attach(models: Mapping[str, ServedModel], options: Options, metrics: Metrics) -> list[Follower]:
    """Attach the shadows and canaries of the options to the served models.

    A shadow and a canary of the same candidate share its session.

    Args:
        models: the served models by their names in URLs.
        options: names the candidates.
        metrics: where their requests are counted.

    Returns:
        the candidates. Each is loaded with its first `follow`.

    Raises:
        UsageError: a candidate's model is not served, or its environment does not exist.
    """
    followers: dict[str, Follower] = {}
    for target in (*options.shadows, *options.canaries):
        model = _served(target, models)
        followers.setdefault(target, Follower(target, model.name, model.events, metrics))
    for target in options.shadows:
        model = _served(target, models)
        if model.shadow is not None:
            raise UsageError(f"--shadow {target}: {model.target} has a shadow already: give one")
        model.shadow = Shadow(
            model.name,
            model.target.partition("@")[2],
            lambda model=model: model.session.loaded,  # type: ignore[misc]
            followers[target],
            options.shadow_share,
            metrics,
            model.events,
            ShadowRecord(model_name(target), target).keep,
        )
        model.observers.append(model.shadow)
        model.shadow.start()
    for target, percent in options.canaries.items():
        model = _served(target, models)
        if model.canary is not None:
            raise UsageError(f"--canary {target}: {model.target} has a canary already: give one")
        model.canary = Canary(
            model.name, followers[target], percent, metrics, model.observers, model.events, model.sizes
        )
    return list(followers.values())


def canaries(given: Sequence[str], shadows: Sequence[str]) -> dict[str, float]:
    """Read the values of --canary: TARGET:PERCENT, or PERCENT alone for the candidate of each --shadow.

    Args:
        given: the values.
        shadows: the values of --shadow.

    Returns:
        the percentage of each target.

    Raises:
        UsageError: a value has another form.
    """
    found: dict[str, float] = {}
    for text in given:
        target, _, number = text.rpartition(":")
        try:
            percent = float(number)
        except ValueError:
            percent = -1.0
        if not 0 < percent <= 100:
            raise UsageError(f"--canary {text}: give TARGET:PERCENT, such as cnn@staging:5, or the percentage alone")
        if not target and not shadows:
            raise UsageError(f"--canary {text}: name the candidate, such as cnn@staging:{number}, or give --shadow")
        for name in [target] if target else shadows:
            if name in found:
                raise UsageError(f"--canary: {name} is given twice")
            found[name] = percent
    return found


def _served(target: str, models: Mapping[str, ServedModel]) -> ServedModel:
    """The served model that a candidate belongs to."""
    _, at, environment = target.partition("@")
    if at:
        policy.environment(policy.read(), environment)
    found = [model for model in models.values() if model_name(model.target) == model_name(target)]
    if len(found) != 1 or found[0].target == target:
        served = ", ".join(model.target for model in models.values())
        raise UsageError(
            f"{target}: a candidate belongs to one served version of {model_name(target)}, and to another one than "
            f"itself; this server has {served}"
        )
    return found[0]
