"""The names of served models in URLs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onward.registry.errors import UsageError


def names_of(targets: Sequence[str]) -> dict[str, str]:
    """The name in URLs of each target: the model's name, or all of the target if two have the same model.

    Args:
        targets: MODEL@ENVIRONMENT, MODEL/VERSION, or paths.

    Raises:
        UsageError: a target is given twice.
    """
    if len(set(targets)) != len(targets):
        raise UsageError(f"a target is given twice: {' '.join(targets)}")
    short = {target: model_name(target) for target in targets}
    return {
        target: name if list(short.values()).count(name) == 1 else target.replace("/", "@")
        for target, name in short.items()
    }


def model_name(target: str) -> str:
    """The name of the model of a target; for a file, its name without ending."""
    if target.endswith(".onnx") or target.startswith((".", "/")):
        path = Path(target)
        return path.stem if path.suffix else path.name
    return target.partition("@")[0].partition("/")[0]
