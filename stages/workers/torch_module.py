"""Builds a PyTorch module and loads its weights. All stages load modules through these functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onward.registry.errors import UsageError
from onward.stages.config.load import resolve
from onward.stages.config.values import Weights
from onward.stages.workers import checkpoint

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

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


def read_weights(path: Path, where: str = "", given: Weights | None = None) -> tuple[State, list[str]]:
    """Read a state dict from a safetensors file or a file of torch.save.

    torch.load is called with `weights_only=True`, so that code in the file never runs.

    Args:
        path: The file.
        where: Beginning of error messages; by default the file's name.
        given: The settings of `weights` in params.yaml: where the state dict is in the file, and a prefix to strip.

    Returns:
        The state dict, and findings about where it was in the file.

    Raises:
        UsageError: The file cannot be read, or contains no state dict.
    """
    where = where or f"{path.name}: "
    findings: list[str] = []
    key, prefix = (None, "") if given is None else (given.key, given.strip)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if key is not None:
            raise UsageError(f"{where}a safetensors file has names only, no keys: remove key: {key}")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{where}cannot be read as weights ({' '.join(str(error).split())})") from error
    else:
        state, findings = checkpoint.state_in(checkpoint.load(path, where), path, where, key)
    if prefix:
        state, stripped = checkpoint.stripped(state, prefix, path, where)
        findings = findings + stripped
    return state, findings


def fit(module: torch.nn.Module, state: State, where: str = "", given: Weights | None = None) -> list[str]:
    """Load `state` into `module`, with a few repairs.

    A prefix that all names share, and the module's names lack, is dropped. A missing count of training steps keeps
    build()'s value. A profiler's counters are left out.

    Args:
        module: The module that build() returned.
        state: Its weights.
        where: Beginning of error messages.
        given: The settings of `weights` in params.yaml. With `strict: false`, missing names keep the values of build(),
            and unexpected names are left out; findings list both.

    Returns:
        One finding per repair, and about weights whose dtype changes.

    Raises:
        UsageError: Names or shapes differ, a value is NaN, or a parameter is infinite. A buffer may contain infinity,
            as attention masks do. With `strict: false`, names may differ, but one parameter at least must match.
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
    if given is not None and not given.strict:
        loaded, left = _lenient(module, own, loaded, where)
        findings += left
    problems = list(_misfits(module, own, loaded))
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        words = f"{where}the weights do not fit the module: {'; '.join(problems[:4])}{more}"
        settings = _counts(own, loaded) + _strip(own, state) if given is not None else ""
        raise UsageError(f"{words}{_likely_cause(own, state)}{settings}")
    cast = [name for name in loaded if loaded[name].dtype != own[name].dtype]
    if cast:
        dtypes = f"{loaded[cast[0]].dtype} in the file, {own[cast[0]].dtype} in build()".replace("torch.", "")
        findings.append(f"{_some(cast)}: {dtypes}; the release has the dtype of build()")
    module.load_state_dict(loaded, strict=True)
    return findings


def _lenient(module: torch.nn.Module, own: State, state: State, where: str) -> tuple[State, list[str]]:
    """The weights of both sides: those of build() where the file has none, and findings about the differences."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    if not (parameters or own.keys()) & state.keys():
        example = next((f"{name!r}" for name in surplus), "nothing")
        raise UsageError(
            f"{where}none of the module's {len(own)} names is in the file: the module has {next(iter(own), '')!r}, the "
            f"file {example}{_likely_cause(own, state)}{_strip(own, state)}"
        )
    untrained = [name for name in missing if name in parameters]
    findings = [
        f"strict: false: the parameter {name} is not in the file and keeps the values of build(), which nothing trained"
        for name in untrained
    ]
    buffers = [name for name in missing if name not in parameters]
    if buffers:
        findings.append(f"strict: false: the file lacks the buffers {_some(buffers)}, which keep the values of build()")
    if surplus:
        findings.append(f"strict: false: left out {_some(surplus)}, which the module does not have")
    kept = {name: value for name, value in state.items() if name in own}
    return kept | {name: own[name] for name in missing}, findings


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


def _counts(own: State, state: State) -> str:
    """How many names differ, and the setting that allows it; empty if the names are equal."""
    missing, surplus = len(own.keys() - state.keys()), len(state.keys() - own.keys())
    if not missing and not surplus:
        return ""
    words = f"; {missing} of the module's {len(own)} names are missing, {surplus} of the file's {len(state)} names are"
    words += " not in the module"
    if own.keys() & state.keys():
        words += "; weights: {file: ..., strict: false} allows this, and lists each parameter that stays untrained"
    return words


def _likely_cause(own: State, state: State) -> str:
    """Name a prefix that all names of one side share and those of the other side lack."""
    for side, names, others in (("in the file", state, own), ("of the module", own, state)):
        heads = {name.partition(".")[0] for name in names}
        if len(heads) == 1 and all("." in name for name in names):
            head = f"{heads.pop()}."
            if not all(name.startswith(head) for name in others):
                return f"; all names {side} begin with {head!r}"
    return ""


def _strip(own: State, state: State) -> str:
    """The setting that removes a prefix, if that makes more names fit; empty if there is none."""
    heads = Counter(name[: -len(inner)] for name in state for inner in _tails(name) if inner in own)
    prefix, after = heads.most_common(1)[0] if heads else ("", 0)
    if after <= len(own.keys() & state.keys()):
        return ""
    return f'; weights: {{file: ..., strip: "{prefix}"}} makes {after} of the {len(own)} names fit'


def _tails(name: str) -> Iterator[str]:
    """A name without its first part, without its first two, and so on."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
