"""A PyTorch module with its weights, ready to compute: the one way that stages get hold of it."""

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

# Under these keys trainers save the state dict beside other things, the most explicit first.
_HOLDERS = ("state_dict", "model_state_dict", "model")
# Counts training steps; a module in evaluation mode does not read it. Files older than PyTorch 0.4.1 lack it.
_STEPS = "num_batches_tracked"
# Counters that thop's profile() leaves in a module.
_COUNTERS = ("total_ops", "total_params")


def load_module(build: str, weights: Path | None, key: str = "") -> torch.nn.Module:
    """Build the module, load the weights into it and set it to evaluation mode.

    Raises:
        UsageError: the weights do not fit the module, hold NaN or infinity, or are no weights file.
    """
    import torch

    module = resolve(build, key and f"{key}.build")()
    if not isinstance(module, torch.nn.Module):
        where = f"params.yaml: {key}.build: " if key else ""
        raise UsageError(f"{where}{build} returns {type(module).__name__}, wanted a torch.nn.Module")
    if weights is not None:
        state, _ = read_weights(weights)
        fit(module, state, f"{weights.name}: ")
    return module.eval()


def read_weights(path: Path, where: str = "") -> tuple[State, list[str]]:
    """A state dict from safetensors, or from torch.save's format with `weights_only=True`: code in it never runs.

    Args:
        path: the file.
        where: what an error message begins with.

    Returns:
        The state dict, and what is worth knowing about how it was found in the file.

    Raises:
        UsageError: it cannot be read, or holds no state dict.
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
            f"{where}holds Python objects{what}, which are never loaded; save the weights alone: "
            f"torch.save(module.state_dict(), {path.name!r})"
        ) from error
    except Exception as error:  # each format has its own errors; all mean that this is no weights file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{where}cannot be read as weights ({first}); wanted: safetensors, or a state_dict saved by torch.save"
        ) from error
    if _is_state(loaded):
        return dict(loaded), []
    if isinstance(loaded, Mapping):
        for holder in _HOLDERS:
            if _is_state(loaded.get(holder)):
                return dict(loaded[holder]), [f"{path.name}: the weights are those under its key {holder!r}"]
    held = f": it holds {', '.join(map(str, list(loaded)[:8]))}" if isinstance(loaded, Mapping) else ""
    raise UsageError(f"{where}holds no state dict of tensors{held}; save module.state_dict()")


def fit(module: torch.nn.Module, state: State, where: str = "") -> list[str]:
    """Load `state` into `module`.

    A prefix that all names share and the module's do not have is dropped, a missing count of training steps is left as
    build() made it, and counters of a profiler are left out.

    Args:
        module: the module that build() gave.
        state: its weights.
        where: what an error message begins with.

    Returns:
        What of this was done, in words.

    Raises:
        UsageError: names or shapes differ, a value is NaN, or a parameter is infinite. A buffer may hold infinity, as
            attention masks do.
    """
    own = module.state_dict()
    state, findings = _renamed(own, state)
    counters = [name for name in state if name not in own and name.rpartition(".")[2] in _COUNTERS]
    if counters:
        findings.append(f"left out {_some(counters)}: counters of a profiler, no weights")
    steps = [name for name in own if name not in state and name.rpartition(".")[2] == _STEPS]
    if steps:
        findings.append(f"the file lacks {_some(steps)}; they count training steps, and evaluation does not read them")
    given = {name: value for name, value in state.items() if name not in counters}
    given |= {name: own[name] for name in steps}
    problems = list(_misfits(module, own, given))
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        cause = _likely_cause(own, state)
        raise UsageError(f"{where}the weights do not fit the module: {'; '.join(problems[:4])}{more}{cause}")
    cast = [name for name in given if given[name].dtype != own[name].dtype]
    if cast:
        first = f"{given[cast[0]].dtype} in the file, {own[cast[0]].dtype} in build()".replace("torch.", "")
        findings.append(f"{_some(cast)}: {first}, which is released")
    module.load_state_dict(given, strict=True)
    return findings


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _renamed(own: State, state: State) -> tuple[State, list[str]]:
    """The state without a prefix that all its names share, where it fits the module only then."""
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
    """What does not fit, in the order in which it explains most: a missing name, a surplus one, then the others."""
    import torch

    missing = [f"{name} is missing" for name in own if name not in state]
    surplus = [f"{name} is not in the module" for name in state if name not in own]
    yield from (*missing[:1], *surplus[:1], *missing[1:], *surplus[1:])
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, value in state.items():
        if name not in own:
            continue
        if own[name].shape != value.shape:
            yield f"{name} has shape {list(value.shape)}, the module wants {list(own[name].shape)}"
        elif value.is_floating_point() and bool(torch.isnan(value).any()):
            yield f"{name} holds NaN"
        elif value.is_floating_point() and name in parameters and bool(torch.isinf(value).any()):
            yield f"{name} holds infinity"


def _likely_cause(own: State, state: State) -> str:
    """A prefix that the names of one side share and those of the other do not."""
    for whose, names, others in (("in the file", state, own), ("of the module", own, state)):
        heads = {name.partition(".")[0] for name in names}
        if len(heads) == 1 and all("." in name for name in names):
            head = f"{heads.pop()}."
            if not all(name.startswith(head) for name in others):
                return f"; all names {whose} begin with {head!r}"
    return ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
