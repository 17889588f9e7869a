"""Finds the state dict in a file of torch.save. Code in the file never runs (`weights_only=True`)."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.errors import UsageError
from onward.registry.text import suggestion

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

# Keys under which trainers save the state dict in a larger dict, the most explicit first.
HOLDERS = ("state_dict", "model_state_dict", "model")
# State dicts are searched down to this depth. Optimizers keep their state in dicts of tensors, too.
_DEPTH = 3
_OTHERS = ("optimizer", "optim", "scheduler", "scaler")


def load(path: Path, where: str) -> Any:
    """Load a file of torch.save.

    Tensors, containers, NumPy numbers and argparse.Namespace are loaded. Other Python objects are refused.

    Args:
        path: The file.
        where: Beginning of error messages.

    Raises:
        UsageError: The file cannot be read, or contains Python objects.
    """
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_numbers()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise UsageError(
            f"{where}contains Python objects{what}, which are not loaded, because they could run code; save the "
            f"weights only: torch.save(module.state_dict(), {path.name!r})"
        ) from error
    except Exception as error:  # torch raises errors without a common base
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{where}cannot be read as weights ({first}); expected safetensors, or a state_dict saved by torch.save"
        ) from error


def state_in(loaded: Any, path: Path, where: str, key: str | Sequence[str] | None) -> tuple[State, list[str]]:
    """Find the state dict in what `load` returned.

    Args:
        loaded: The content of the file.
        path: The file, for messages.
        where: Beginning of error messages.
        key: As `weights.key` in params.yaml. None: the content itself, or the only state dict under a usual key.

    Returns:
        The state dict, and findings about where it was.

    Raises:
        UsageError: There is no state dict, or more than one.
    """
    if key is not None:
        return _at(loaded, path, where, [key] if isinstance(key, str) else list(key)), []
    if is_state(loaded):
        return dict(loaded), []
    found = dict(_states(loaded))
    usual = [keys for keys in found if keys[-1] in HOLDERS]
    if len(found) == 1 and usual:
        written = _written(usual[0])
        return dict(found[usual[0]]), [f"{path.name}: the weights are those under its key {written!r}"]
    if found:
        likely = (usual or sorted(found, key=lambda keys: -len(found[keys])))[0]
        raise UsageError(
            f"{where}contains {_listed(found)}; name the right one in params.yaml, for example "
            f"weights: {{file: {path.name}, key: {_yaml(likely)}}}"
        )
    keys = f" (its keys: {', '.join(map(str, list(loaded)[:8]))})" if isinstance(loaded, Mapping) else ""
    raise UsageError(f"{where}contains no state dict of tensors{keys}; save module.state_dict()")


def stripped(state: State, prefix: str, path: Path, where: str) -> tuple[State, list[str]]:
    """Remove a prefix from the names that begin with it.

    Args:
        state: The state dict.
        prefix: As `weights.strip` in params.yaml.
        path: The file, for messages.
        where: Beginning of error messages.

    Returns:
        The state dict with the new names, and findings.

    Raises:
        UsageError: No name begins with the prefix, or two names become equal.
    """
    begin = [name for name in state if name.startswith(prefix)]
    if not begin:
        raise UsageError(f"{where}no name begins with strip: {prefix!r}; the first name is {next(iter(state))!r}")
    renamed = {name.removeprefix(prefix): value for name, value in state.items()}
    if len(renamed) < len(state):
        twice = next(name for name in begin if name.removeprefix(prefix) in state)
        raise UsageError(f"{where}without strip: {prefix!r}, {twice!r} has the name of another tensor in the file")
    return renamed, [f"{path.name}: {prefix!r} was dropped from {len(begin)} of {len(state)} names"]


def is_state(value: Any) -> bool:
    """Whether a value is a dict of named tensors."""
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(item, torch.Tensor) for name, item in value.items())
    )


def _at(loaded: Any, path: Path, where: str, keys: list[str]) -> State:
    """The state dict under these keys. A key may contain dots itself, or join several keys with dots."""
    value = loaded
    for key in keys:
        inner = _under(value, key)
        if inner is None:
            has = [str(name) for name in value] if isinstance(value, Mapping) else []
            raise UsageError(
                f"{where}has no key {key!r}{suggestion(key, has)}"
                + (f"; its keys are {', '.join(has[:8])}" if has else "")
                + "".join(f"; it contains {_listed(found)}" for found in [dict(_states(loaded))] if found)
            )
        value = inner
    if not is_state(value):
        raise UsageError(
            f"{where}{_written(tuple(keys))!r} is {type(value).__name__}, not a state dict of tensors"
            + "".join(f"; the file contains {_listed(found)}" for found in [dict(_states(loaded))] if found)
        )
    return dict(value)


def _under(value: Any, key: str) -> Any:
    """The value under a key, or under the keys that it joins with dots; None if there is none."""
    for part in (key, *_heads(key)):
        if isinstance(value, Mapping) and part in value:
            inner = value[part]
            return inner if part == key else _under(inner, key[len(part) + 1 :])
    return None


def _heads(key: str) -> Iterator[str]:
    """The parts of a key before each of its dots, the longest first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _states(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every state dict inside of a container, with its keys. States of optimizers are left out."""
    if not isinstance(value, Mapping) or len(above) == _DEPTH:
        return
    for key, item in value.items():
        if not isinstance(key, str) or any(key.lower().startswith(other) for other in _OTHERS):
            continue
        if is_state(item):
            yield (*above, key), item
        else:
            yield from _states(item, (*above, key))


def _listed(found: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    """Describe state dicts by their keys and numbers of tensors."""
    shown = [f"{_written(keys)!r} ({len(state)} tensors)" for keys, state in list(found.items())[:6]]
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return f"the state dict{'s' if len(found) > 1 else ''} {', '.join(shown)}{more}"


def _written(keys: Sequence[str]) -> str:
    return ".".join(keys)


def _yaml(keys: Sequence[str]) -> str:
    return _written(keys) if not any("." in key for key in keys) else f"[{', '.join(keys)}]"


def _numpy_numbers() -> list[Any]:
    """What pickled NumPy numbers consist of, such as the best accuracy that a trainer saves."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    old = (scalar, "numpy.core.multiarray.scalar")  # the name in files of NumPy 1
    dtypes = [np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}]
    return [scalar, old, *dtypes]
