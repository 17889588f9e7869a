"""Compares two modules: weights, buffers, and other attributes that their results may depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

# Attributes that PyTorch itself keeps in every module.
_TORCH_ATTRIBUTES = {*nn.Module().__dict__, "_is_full_backward_hook", "_backward_pre_hooks", "_forward_hooks"}
_PLAIN = (bool, int, float, complex, str, type(None))


def differences(one: nn.Module, other: nn.Module, plain: bool = False) -> list[str]:
    """Describe how two modules differ that should be equal.

    It compares parameters, buffers (including non-persistent ones), and attributes that contain tensors or arrays,
    directly or in lists, tuples and dicts.

    Args:
        one: A module.
        other: Another module, built by the same code.
        plain: Whether to compare numbers and texts, too. They may differ without effect, such as a creation time.

    Returns:
        One phrase per difference, such as "norm.mean is 0.3 in one and 0.0 in the other".
    """
    first, second = (
        {name: value for name, value in _state(module) if plain or not isinstance(value, _PLAIN)}
        for module in (one, other)
    )
    found = [f"{name} is in only one of the two" for name in sorted(first.keys() ^ second.keys())]
    for name in first:
        if name in second and not _same(first[name], second[name]):
            found.append(f"{name} {_words(first[name], second[name])}")
    return found


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, value) of each value that a module keeps."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if name not in _TORCH_ATTRIBUTES:
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
        equal_nan = np.asarray(one).dtype.kind in "fc"
        return bool(np.array_equal(one, other, equal_nan=equal_nan))
    return bool(one == other or (one != one and other != other))


def _equal(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    same = one == other
    return same | (one.isnan() & other.isnan()) if one.is_floating_point() or one.is_complex() else same


def _words(one: Any, other: Any) -> str:
    if isinstance(one, _PLAIN) and isinstance(other, _PLAIN):
        return f"is {one!r} in one and {other!r} in the other"
    shown = " and ".join(_short(value) for value in (one, other))
    return f"has different values in the two ({shown})"


def _short(value: Any) -> str:
    """The first three elements, as text."""
    values = value.detach().flatten()[:3].tolist() if isinstance(value, torch.Tensor) else np.ravel(value)[:3].tolist()
    return ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in values) + ", ..."
