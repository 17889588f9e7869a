"""Builds a PyTorch module and loads its weights. All stages load modules through these functions."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.errors import UsageError
from onward.stages.config.load import resolve

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

# Keys under which trainers save the state dict in a larger dict, the most explicit first.
_HOLDERS = ("state_dict", "model_state_dict", "model")
# BatchNorm's count of training steps, which is not used in evaluation mode. Files older than PyTorch 0.4.1 lack it.
_STEPS = "num_batches_tracked"
# Buffers that thop's profile() leaves in a module.
_COUNTERS = ("total_ops", "total_params")


def load_module(build: str, weights: Path | None, key: str = "") -> torch.nn.Module:
    """Build the module, load the weights into it and set it to evaluation mode.

    Args:
        build: `package.module:function` that returns the module.
        weights: File with the weights; None to keep those of `build`.
        key: The model's path in params.yaml, for messages.

    Raises:
        UsageError: `build` returns no module, or the weights cannot be read, do not fit the module, or contain NaN or
            infinity.
        NotReady: `build` cannot be imported.
    """
    import torch

    module = resolve(build, key and f"{key}.build")()
    if not isinstance(module, torch.nn.Module):
        where = f"params.yaml: {key}.build: " if key else ""
        raise UsageError(f"{where}{build} returns {type(module).__name__}, expected a torch.nn.Module")
    if weights is not None:
        state, _ = read_weights(weights)
        fit(module, state, f"{weights.name}: ")
    return module.eval()


def read_weights(path: Path, where: str = "") -> tuple[State, list[str]]:
    """Read a state dict from a safetensors file or a file of torch.save.

    torch.load is called with `weights_only=True`, so that code in the file never runs.

    Args:
        path: The file.
        where: Beginning of error messages; by default the file's name.

    Returns:
        The state dict, and findings about where it was in the file.

    Raises:
        UsageError: The file cannot be read, or contains no state dict.
    """
    import torch

    where = where or f"{path.name}: "
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path), []
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise UsageError(
            f"{where}contains Python objects{what}, which are not loaded, because they could run code; save the "
            f"weights only: torch.save(module.state_dict(), {path.name!r})"
        ) from error
    except Exception as error:  # each format raises its own errors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{where}cannot be read as weights ({first}); expected safetensors, or a state_dict saved by torch.save"
        ) from error
    if _is_state(loaded):
        return dict(loaded), []
    if isinstance(loaded, Mapping):
        for holder in _HOLDERS:
            if _is_state(loaded.get(holder)):
                return dict(loaded[holder]), [f"{path.name}: the weights are those under its key {holder!r}"]
    keys = f" (its keys: {', '.join(map(str, list(loaded)[:8]))})" if isinstance(loaded, Mapping) else ""
    raise UsageError(f"{where}contains no state dict of tensors{keys}; save module.state_dict()")


def fit(module: torch.nn.Module, state: State, where: str = "") -> list[str]:
    """Load `state` into `module`, with a few repairs.

    A prefix that all names share, and the module's names lack, is dropped. A missing count of training steps keeps
    build()'s value. A profiler's counters are left out.

    Args:
        module: The module that build() returned.
        state: Its weights.
        where: Beginning of error messages.

    Returns:
        One finding per repair, and about weights whose dtype changes.

    Raises:
        UsageError: Names or shapes differ, a value is NaN, or a parameter is infinite. A buffer may contain infinity,
            as attention masks do.
    """
    own = module.state_dict()
    state, findings = _renamed(own, state)
    counters = [name for name in state if name not in own and name.rpartition(".")[2] in _COUNTERS]
    if counters:
        findings.append(f"left out {_some(counters)}: these are a profiler's counters, not weights")
    steps = [name for name in own if name not in state and name.rpartition(".")[2] == _STEPS]
    if steps:
        findings.append(f"the file lacks {_some(steps)}; they count training steps, which evaluation does not need")
    loaded = {name: value for name, value in state.items() if name not in counters}
    loaded |= {name: own[name] for name in steps}
    problems = list(_misfits(module, own, loaded))
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        cause = _likely_cause(own, state)
        raise UsageError(f"{where}the weights do not fit the module: {'; '.join(problems[:4])}{more}{cause}")
    cast = [name for name in loaded if loaded[name].dtype != own[name].dtype]
    if cast:
        dtypes = f"{loaded[cast[0]].dtype} in the file, {own[cast[0]].dtype} in build()".replace("torch.", "")
        findings.append(f"{_some(cast)}: {dtypes}; the release has the dtype of build()")
    module.load_state_dict(loaded, strict=True)
    return findings


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _renamed(own: State, state: State) -> tuple[State, list[str]]:
    """Drop a prefix that all names share, if that makes the names fit the module."""
    prefix, stripped = "", state
    while not _names_fit(own, stripped):
        heads = {name.partition(".")[0] if "." in name else "" for name in stripped}
        if len(heads) != 1 or heads == {""}:
            return state, []
        (head,) = heads
        prefix += f"{head}."
        stripped = {name.partition(".")[2]: value for name, value in stripped.items()}
    return stripped, [f"all names in the file begin with {prefix!r}, which was dropped"] if prefix else []


def _names_fit(own: State, state: State) -> bool:
    missing = [name for name in own if name not in state and name.rpartition(".")[2] != _STEPS]
    surplus = [name for name in state if name not in own and name.rpartition(".")[2] not in _COUNTERS]
    return not missing and not surplus


def _misfits(module: torch.nn.Module, own: State, state: State) -> Iterator[str]:
    """What does not fit, the most informative first: one missing name, one surplus name, then the others."""
    import torch

    missing = [f"{name} is missing" for name in own if name not in state]
    surplus = [f"{name} is not in the module" for name in state if name not in own]
    yield from (*missing[:1], *surplus[:1], *missing[1:], *surplus[1:])
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, value in state.items():
        if name not in own:
            continue
        if own[name].shape != value.shape:
            yield f"{name} has shape {list(value.shape)}, the module expects {list(own[name].shape)}"
        elif value.is_floating_point() and bool(torch.isnan(value).any()):
            yield f"{name} contains NaN"
        elif value.is_floating_point() and name in parameters and bool(torch.isinf(value).any()):
            yield f"{name} contains infinity"


def _likely_cause(own: State, state: State) -> str:
    """Name a prefix that all names of one side share and those of the other side lack."""
    for side, names, others in (("in the file", state, own), ("of the module", own, state)):
        heads = {name.partition(".")[0] for name in names}
        if len(heads) == 1 and all("." in name for name in names):
            head = f"{heads.pop()}."
            if not all(name.startswith(head) for name in others):
                return f"; all names {side} begin with {head!r}"
    return ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
