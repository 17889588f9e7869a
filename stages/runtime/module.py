"""A PyTorch module with its weights, ready to compute: the one way that stages get hold of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import UsageError
from stages.params import resolve

if TYPE_CHECKING:
    import torch


def load_module(build: str, weights: Path | None, key: str = "") -> torch.nn.Module:
    """Build the module, load the weights into it and set it to evaluation mode.

    Raises:
        UsageError: the weights do not fit the module, hold NaN or infinity, or are no weights file.
    """
    module: torch.nn.Module = resolve(build, key and f"{key}.build")()
    if weights is not None:
        fit(module, read_weights(weights, key), key)
    return module.eval()


def read_weights(path: Path, key: str = "") -> dict[str, torch.Tensor]:
    """A state dict from safetensors, or from torch.save's format with `weights_only=True`: code in it never runs."""
    import torch

    where = f"params.yaml: {key}.weights: {path.name}: " if key else f"{path.name}: "
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors; all mean that this is no weights file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{where}cannot be read as weights ({first}); wanted: safetensors, or a state_dict saved by torch.save"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"{where}holds no state dict of tensors; save module.state_dict()")
    return state


def fit(module: torch.nn.Module, state: dict[str, torch.Tensor], key: str = "") -> None:
    """Load `state` into `module`.

    Raises:
        UsageError: names or shapes differ, or a value is NaN or infinite.
    """
    import torch

    own = module.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - state.keys()]
    problems += [f"{name} is not in the module" for name in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            problems.append(f"{name} has shape {list(state[name].shape)}, the module wants {list(own[name].shape)}")
        elif state[name].is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(sorted(problems)[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        where = f"params.yaml: {key}.weights: " if key else ""
        raise UsageError(f"{where}the weights do not fit the module: {shown}")
    module.load_state_dict(state, strict=True)
