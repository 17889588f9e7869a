"""Whether two modules are the same one: weights, buffers, and whatever else they keep that answers may depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

# What every module keeps for torch's own use, and what says how it is used.
_TORCHS = {*nn.Module().__dict__, "_is_full_backward_hook", "_backward_pre_hooks", "_forward_hooks"}
_PLAIN = (bool, int, float, complex, str, type(None))


def differences(one: nn.Module, other: nn.Module, plain: bool = False) -> list[str]:
    """Where two modules that should be the same differ, in words.

    Compared are parameters, buffers (non-persistent ones included), and attributes that hold tensors or arrays, alone
    or in lists, tuples and dicts.

    Args:
        one: a module.
        other: another one, of the same code.
        plain: whether numbers and texts are compared, too. They may differ without consequence (a time of creation).

    Returns:
        a sentence each, the path of the attribute first: "norm.mean is 0.3 in one and 0.0 in the other".
    """
    first, second = (
        {name: value for name, value in _state(module) if plain or not isinstance(value, _PLAIN)}
        for module in (one, other)
    )
    found = [f"{name} is in one of the two alone" for name in sorted(first.keys() ^ second.keys())]
    for name in first:
        if name in second and not _same(first[name], second[name]):
            found.append(f"{name} {_words(first[name], second[name])}")
    return found


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every value that a module keeps, by its path."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if name not in _TORCHS:
                yield from _values(f"{prefix}.{name}" if prefix else name, value)


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic, *_PLAIN)):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _values(f"{name}[{key!r}]", entry)
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _values(f"{name}[{number}]", entry)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.detach(), other.detach()
        return one.dtype == other.dtype and one.shape == other.shape and bool(_equal(one, other).all())
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor) or type(one) is not type(other):
        return False
    if isinstance(one, (np.ndarray, np.generic)):
        floats = np.asarray(one).dtype.kind in "fc"
        return bool(np.array_equal(one, other, equal_nan=floats))
    return bool(one == other or (one != one and other != other))


def _equal(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    same = one == other
    return same | (one.isnan() & other.isnan()) if one.is_floating_point() or one.is_complex() else same


def _words(one: Any, other: Any) -> str:
    if isinstance(one, _PLAIN) and isinstance(other, _PLAIN):
        return f"is {one!r} in one and {other!r} in the other"
    shown = " and ".join(_short(value) for value in (one, other))
    return f"holds other values in one than in the other ({shown})"


def _short(value: Any) -> str:
    """The first few elements."""
    values = value.detach().flatten()[:3].tolist() if isinstance(value, torch.Tensor) else np.ravel(value)[:3].tolist()
    return ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in values) + ", ..."
