"""Loads a model by environment, version or file, checks what it is fed, and predicts.

    session = InferenceSession("cnn@production")       # what is live there
    session = InferenceSession("cnn/3")                # version 3
    session = InferenceSession("./build/model.onnx")   # a file, or a folder that holds one

    logits = session.predict(image)                    # NumPy, torch or lists; by position, by name, or one dict
    logits = session.predict_batches(images, batch_size=64)
    session.metadata.inputs
    session.refresh()                                  # what is live there by now

Needs ONNX Runtime in any of its builds, MLflow where the target is not a file, and never torch.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.artifact.manifest import MANIFEST, check_folder, content_digest
from onward.registry.artifact.serving_plan import MODEL, Serving
from onward.registry.errors import Refused, UsageError
from onward.registry.inference.inputs import Validate
from onward.registry.inference.model import Loaded, Metadata, ProviderFallback
from onward.registry.names import PATTERN
from onward.registry.store import connection
from onward.registry.store.download import cache, download

if TYPE_CHECKING:
    from onward.registry.store.resolve import Target

_REGISTERED = re.compile(rf"{PATTERN}(@{PATTERN}|/\d+)")
# Set to 1 on a host that is to load nothing from a registry but what a signer deployed.
REQUIRE_SIGNED = "ONWARD_REQUIRE_SIGNED"
__all__ = ["InferenceSession", "Metadata", "ProviderFallback", "UnprovenLog", "cache", "download", "locate"]


class UnprovenLog(RuntimeWarning):
    """An environment with signers holds rows that none of them signed after what is live: somebody may have tried to
    change what is live, or changed the entry that was."""


class InferenceSession:
    """A loaded model.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or the path of an .onnx file or of a folder that holds one. A path
            that looks like one of the first two has to be written `./cnn/3`.
        providers: execution providers in order of preference, as onnxruntime.InferenceSession takes them; the CPU
            comes last in any case. None: of those that the version was measured on, the fastest that can be used
            here; for a file, the CPU. What won on the provider in use is loaded (registry/artifact/serving_plan.py).
        strict_providers: whether a provider that cannot be used is an error instead of a ProviderFallback warning.
        session_options: an onnxruntime.SessionOptions. None: those that the version was tuned to on the provider in
            use, but for what this host lacks (processors).
        require_signed: whether only what a signer deployed is loaded: `target` has to be MODEL@ENVIRONMENT, the
            environment has to have signers (ONWARD_PARAMS names the file that says so, where there is no checkout), and
            its log has to be proven to its end. Without it, rows that are not proven are an UnprovenLog warning. The
            environment variable ONWARD_REQUIRE_SIGNED=1 asks for the same of everything that comes from a registry.
        validate: what is checked of inputs before each run. "strict": names, dtypes, shapes, the documented ranges of
            values (NaN is in none) and sizes of dimensions. "shape": all of this but the documented ranges and sizes.
            "off": names alone; an array goes to ONNX Runtime as it is, and what that refuses is a UsageError. Whatever
            is chosen, no value becomes another one but by rounding: see predict. "strict" is the default because a
            model answers what it was never verified on as readily as the rest, and looking costs some microseconds
            (benchmarks/predict.md).

    Raises:
        UsageError: there is no such model, version, environment or file, ONNX Runtime is not installed or cannot
            load the file, or (strict) lacks a provider.
        Refused: nothing is live there, the files are not those that were published, or (require_signed) nothing proves
            that a signer deployed them.
        StoreUnreachable: the MLflow store did not answer.
    """

    def __init__(
        self,
        target: str | Path,
        providers: Sequence[Any] | None = None,
        strict_providers: bool = False,
        session_options: Any = None,
        require_signed: bool = False,
        validate: Validate = "strict",
    ) -> None:
        self._target, self._require_signed = str(target), require_signed
        self._load = partial(
            Loaded,
            providers=providers,
            strict_providers=strict_providers,
            session_options=session_options,
            validate=validate,
        )
        self._refreshing = threading.Lock()
        self._loaded = self._load(*locate(target, require_signed))
        self._store = connection.tracking_uri() if isinstance(target, str) and "@" in target else ""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once.

        Inputs are NumPy arrays, torch tensors or nested lists, given by position in the order of the graph, by name,
        or as one dict. An array of another dtype is converted where that loses nothing (NumPy's "safe" casts) or
        only precision that float32 does not have (float64 to float32); numbers in lists, which have no dtype of
        their own, wherever the input's dtype holds them.

        Returns:
            the output, where there is one; else a dict of outputs by name.

        Raises:
            UsageError: names, number, rank, a dimension, a dtype or a value is not what the model documents, or ONNX
                Runtime refuses the inputs.
            OnwardError: ONNX Runtime failed.
        """
        return self._loaded.predict(args, kwargs)

    def predict_batches(self, inputs: Any, batch_size: int = 32) -> Any:
        """Run the model over many samples, `batch_size` at a time, and join the answers along the first axis.

        `inputs` is what `predict` takes, but as one argument: an array, a dict, or a tuple or list of one array per
        input; the first axis counts samples. Where the graph fixes its first dimension, that is the batch size, and
        the last batch is filled up with repetitions that are cut off again. No samples give empty outputs, of the
        documented dtypes and shapes (0 for dimensions that nothing determines), without running the model. Where the
        model documents how many samples it takes at once, no batch has more or fewer.

        Returns:
            as predict.

        Raises:
            UsageError: as predict; the inputs differ in their number of samples; an output is not per sample; the
                model has no inputs.
        """
        return self._loaded.predict_batches(inputs, batch_size)

    @property
    def metadata(self) -> Metadata:
        """What is loaded, where it came from, and what runs it."""
        return self._loaded.metadata()

    def refresh(self, on_change: Callable[[Metadata], object] | None = None) -> bool:
        """Load what is live now, where the target is MODEL@ENVIRONMENT and that is another model than before.

        Calls that are under way finish on the old model, those that come later run on the new one, and none waits.
        Before the swap, the new one's recorded inputs are run on this host. Whatever is raised, the old one goes on.

        Args:
            on_change: called after a swap, with what is loaded now.

        Returns:
            whether there was a swap. A version or a file never changes.

        Raises:
            Refused: nothing is live there any more, the files are not those that were published, or the new model
                does not repeat its recorded answers here.
            StoreUnreachable: the store did not answer.
            UsageError: the new model cannot be loaded here.
        """
        if "@" not in self._target or not _REGISTERED.fullmatch(self._target):
            return False
        with self._refreshing:
            swapped = self._follow()
        if swapped and on_change is not None:
            on_change(self.metadata)
        return swapped

    def _follow(self) -> bool:
        from onward.registry.artifact.replay import replay_in_subprocess
        from onward.registry.store.resolve import resolve
        from onward.registry.store.store import Store

        store, old = Store(connection.connect(connection.still(self._store), create=False)), self._loaded
        found = resolve(self._target, store)
        origin = _origin(self._target, found)
        # Another version of the same bytes may be served in another way.
        same = (found.sha256, found.manifest, found.version) == tuple(
            old.origin[name] for name in ("sha256", "manifest", "version")
        )
        _require_proof(found, self._require_signed)
        if found.alarm and not same:
            raise Refused(
                f"{self._target}: the signed log raises an alarm ({'; '.join(found.alarm)}), and version "
                f"{old.origin['version']} stays loaded: look at `onward history {found.model}`"
            )
        if found.entry < int(old.origin.get("entry", 0)):
            raise Refused(
                f"{self._target}: entry {old.origin['entry']} does not count any more, and version "
                f"{old.origin['version']} stays loaded: look at `onward history {found.model}`"
            )
        if same:
            self._loaded = old.called(origin)
            return False
        path = download(found, store)
        met, detail = replay_in_subprocess(path.parent, old.providers[0])
        if not met:
            raise Refused(
                f"{self._target}: version {found.version}, entry {found.entry}, does not repeat its recorded answers "
                f"here, and version {old.origin['version']} stays loaded: {detail}"
            )
        self._loaded = self._load(path, origin, Serving.load(path.parent))
        return True


def locate(target: str | Path, require_signed: bool = False) -> tuple[Path, dict[str, Any], Serving | None]:
    """The .onnx file that `target` names, checked where there is something to check it against; its origin: the
    fields of Metadata that say where it came from; and how it is served, where it is a version or a folder that says.

    Raises:
        as InferenceSession.
    """
    if isinstance(target, str) and _REGISTERED.fullmatch(target):
        return _registered(target, require_signed)
    if require_signed:
        raise Refused(f"{target}: nothing proves where a file comes from; require_signed takes MODEL@ENVIRONMENT alone")
    path, serving = Path(target), None
    origin: dict[str, Any] = {"target": str(target)}
    if path.is_dir():
        if (path / MANIFEST).is_file():
            origin["sha256"] = content_digest(check_folder(path))
        serving = Serving.load(path)
        found = [path / MODEL] if (path / MODEL).is_file() else sorted(path.glob("*.onnx"))
        if len(found) != 1:
            raise UsageError(f"{target}: holds {len(found) or 'no'} .onnx files; name one")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"{target}: there is no such file; a registered model is MODEL@ENVIRONMENT or MODEL/VERSION")
    return path, origin, serving


def _registered(target: str, require_signed: bool) -> tuple[Path, dict[str, Any], Serving | None]:
    from onward.registry.store.resolve import resolve
    from onward.registry.store.store import Store

    store = Store(create=False)
    found = resolve(target, store)
    _require_proof(found, require_signed)
    path = download(found, store)
    return path, _origin(target, found), Serving.load(path.parent)


def _require_proof(found: Target, require_signed: bool) -> None:
    """Warn of rows that are not proven, or refuse what is not proven, where proof is required.

    Raises:
        Refused: proof is required, and there is none.
    """
    from onward.registry.gates import policy

    if require_signed or _asked_for_proof():
        if not found.environment:
            raise Refused(f"{found}: nothing proves who made a version; require_signed takes MODEL@ENVIRONMENT alone")
        if not policy.environment(policy.read(), found.environment).signers:
            raise Refused(
                f"{found}: {found.environment} has no signers, so that nothing proves who deployed it: name them in "
                f"params.yaml, or name that file with {policy.FILE} on this host"
            )
        if found.alarm:
            raise Refused(
                f"{found}: the signed log raises an alarm: {'; '.join(found.alarm)}. "
                f"Look at `onward history {found.model}`"
            )
    if found.alarm:
        warnings.warn(
            f"{found}: version {found.version}, entry {found.entry}, is the last that is proven, and the signed log "
            f"raises an alarm: {'; '.join(found.alarm)}",
            UnprovenLog,
            stacklevel=5,
        )


def _asked_for_proof() -> bool:
    said = os.environ.get(REQUIRE_SIGNED, "").lower()
    if said in ("1", "true", "yes", "on"):
        return True
    if said in ("", "0", "false", "no", "off"):
        return False
    raise UsageError(f"{REQUIRE_SIGNED}: {said!r} is neither 1 nor 0")


def _origin(target: str, found: Target) -> dict[str, Any]:
    origin: dict[str, Any] = {"target": target, "sha256": found.sha256, "manifest": found.manifest}
    origin |= {"model": found.model, "version": found.version}
    if found.environment:
        origin |= {"environment": found.environment, "entry": found.entry}
    return origin
