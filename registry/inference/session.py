"""Load a model by environment, version or file, check its inputs, and predict.

    session = InferenceSession("cnn@production")       # the version that is live there
    session = InferenceSession("cnn/3")                # version 3
    session = InferenceSession("./build/model.onnx")   # a file, or a folder that contains one

    logits = session.predict(image)                    # NumPy, torch or lists; by position, by name, or one dict
    logits = session.predict_batches(images, batch_size=64)
    session.metadata.inputs
    session.refresh()                                  # load the version that is live there now

This needs any build of ONNX Runtime, or the package openvino. Targets other than files also need MLflow. Torch is never
needed.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.artifact.manifest import MANIFEST, check_folder, content_digest
from onward.registry.artifact.serving_plan import MODEL, Serving
from onward.registry.errors import Refused, StoreUnreachable, UsageError
from onward.registry.inference.inputs import Validate
from onward.registry.inference.model import Loaded, Metadata, ProviderFallback
from onward.registry.inference.stream import Stream
from onward.registry.names import PATTERN
from onward.registry.store import connection
from onward.registry.store.cache import cache
from onward.registry.store.download import download, is_cached
from onward.registry.switches import is_on

if TYPE_CHECKING:
    from onward.registry.store.resolve import Target

_REGISTERED = re.compile(rf"{PATTERN}(@{PATTERN}|/\d+)")
# Set this variable to 1 on a host that may only load versions from a registry if a signer deployed them.
REQUIRE_SIGNED = "ONWARD_REQUIRE_SIGNED"
__all__ = ["InferenceSession", "Metadata", "ProviderFallback", "UnprovenLog", "cache", "download", "locate"]


class UnprovenLog(RuntimeWarning):
    """A signed log has unproven rows after the live entry, so it may have been tampered with."""


class InferenceSession:
    """A loaded model.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or the path of an .onnx file or of a folder that contains one. Write a
            path that looks like one of the first two as `./cnn/3`.
        providers: execution providers in order of preference, in the form of onnxruntime.InferenceSession. The CPU is
            always added as the last one. "OpenVINO" is OpenVINO itself (the package openvino), without ONNX Runtime.
            None: the fastest usable provider that the version was measured on; for a file, the CPU. The file and the
            options that won on the provider in use are loaded (registry/artifact/serving_plan.py).
        strict_providers: whether an unusable provider is an error instead of a ProviderFallback warning.
        session_options: an onnxruntime.SessionOptions, with which OpenVINO itself is not used. None: the options that
            the version was tuned to on the provider in use, without those that this host does not support (number of
            processors, precision).
        overrides: session options of Onward that replace the version's tuned ones, such as {"threads": 1, "spinning":
            False}; see onward.registry.evidence.session_options.SessionOptions. None as a value means ONNX Runtime's
            default.
        require_signed: whether to load only versions that a signer deployed. Then `target` must be MODEL@ENVIRONMENT,
            the environment must have signers, and no unproven row may follow the live entry in its log. Without a
            checkout, ONWARD_PARAMS names the file with the signers. If False, unproven rows cause an UnprovenLog
            warning. The environment variable ONWARD_REQUIRE_SIGNED=1 requires the same of all versions from a registry.
        validate: what is checked of the inputs before each run. "strict": names, dtypes, shapes, and the documented
            ranges of values (NaN is in none) and sizes of dimensions. "shape": the same without documented ranges and
            sizes. "off": only names; ONNX Runtime receives arrays unchanged, and a UsageError reports those that it
            rejects. In all cases, values change only by rounding (see `predict`). "strict" is the default, because a
            model also answers inputs that it was never verified on, and the checks take only some microseconds
            (benchmarks/predict.md).
        allow_custom_ops: whether to load the native libraries with custom operators that some versions contain. Their
            code runs in this process. The environment variable ONWARD_ALLOW_CUSTOM_OPS=1 allows it on the whole host.
        allow_cached: whether to load the version that was live when this machine last looked, if the store cannot be
            reached and the version's files are in the cache. Then `metadata.cached` is True until a `refresh` succeeds.

    Raises:
        UsageError: there is no such model, version, environment or file; ONNX Runtime is not installed, or cannot load
            the file; or, with `strict_providers`, a provider cannot be used.
        Refused: nothing is live in the environment, the files differ from the published ones, or, with
            `require_signed`, no signature proves who deployed them.
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
        allow_custom_ops: bool = False,
        allow_cached: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self._target, self._require_signed = str(target), require_signed
        self._load = partial(
            Loaded,
            providers=providers,
            strict_providers=strict_providers,
            session_options=session_options,
            validate=validate,
            allow_custom_ops=allow_custom_ops,
            overrides=dict(overrides or {}),
        )
        self._refreshing = threading.Lock()
        self._loaded = self._load(*locate(target, require_signed, allow_cached))
        self._store = connection.tracking_uri() if isinstance(target, str) and "@" in target else ""
        # The version that was live at the last look of `refresh`, also if it could not be loaded.
        self.seen_live: Target | None = None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once.

        Inputs are NumPy arrays, torch tensors or nested lists. An array of another dtype is converted if no value can
        change (NumPy's "safe" casts), or from float64 to float32, which rounds. Numbers in lists have no dtype, so they
        are converted if the input's dtype can represent them.

        Args:
            *args: the inputs in the order of the graph, or one dict of inputs by name.
            **kwargs: the inputs by name.

        Returns:
            the output if the model has only one; else a dict of outputs by name.

        Raises:
            UsageError: a name, the number of inputs, a rank, a dimension, a dtype or a value is not what the model
                documents, or ONNX Runtime rejects the inputs.
            OnwardError: ONNX Runtime failed.
        """
        return self._loaded.predict(args, kwargs)

    def predict_batches(self, inputs: Any, batch_size: int = 32) -> Any:
        """Run the model on many samples in batches, and join the outputs along the axis of samples.

        Samples are on the first axis, unless the model documents another one (`sample_axes`). Inputs without such an
        axis are given to every batch as they are. If the graph fixes the number of samples, that is the batch size.
        Batches are never larger or smaller than the model documents. A batch that is too small is padded with copies
        of its last sample, and the outputs of these copies are dropped. Zero samples give empty outputs of the
        documented dtypes and shapes (0 for unknown dimensions), without running the model.

        Args:
            inputs: the same values as for `predict`, in one argument: an array, a dict, or a tuple or list of one array
                per input.
            batch_size: the number of samples in a batch.

        Returns:
            the output if the model has only one; else a dict of outputs by name.

        Raises:
            UsageError: as in `predict`; or the inputs differ in their number of samples, an output does not have one
                row per sample, or the model has no inputs.
        """
        return self._loaded.predict_batches(inputs, batch_size)

    def stream(self) -> Stream:
        """Start a sequence of steps of a model that has a state (`states` in params.yaml).

            stream = session.stream()
            for chunk in chunks:
                probability = stream.predict(chunk)

        The stream begins with a state of zeros, keeps it from step to step, and returns the other outputs. It stays
        with the version that is loaded now.

        Raises:
            UsageError: the model has no state.
        """
        return self._loaded.stream()

    @property
    def sample_axes(self) -> dict[str, int | None]:
        """The axis that counts samples of each input and output, by name; None if it has none."""
        return self._loaded.sample_axes

    @property
    def metadata(self) -> Metadata:
        """The loaded model, where it came from, and what runs it."""
        return self._loaded.metadata()

    @property
    def loaded(self) -> Loaded:
        """The model that is loaded now. It never changes; `refresh` replaces it with another one."""
        return self._loaded

    def refresh(
        self,
        on_change: Callable[[Metadata], object] | None = None,
        prepare: Callable[[Loaded], object] | None = None,
        skip_entry: int = 0,
    ) -> bool:
        """Load the version that is live now, if the target is MODEL@ENVIRONMENT and another version is live.

        Running predictions finish on the old model, later ones use the new model, and no prediction waits. Before the
        change, the new model's recorded inputs are run on this host. If anything fails, the old model stays loaded.

        Args:
            on_change: called after a change, with the metadata of the new model.
            prepare: called before a change, with the new model, such as to warm it up. If it raises, the old model
                stays loaded.
            skip_entry: the number of an entry that is not tried, such as one that failed a moment ago.

        Returns:
            whether another model was loaded. It is always False for a version or a file.

        Raises:
            Refused: nothing is live any more, the files differ from the published ones, or the new model does not
                repeat its recorded answers on this host.
            StoreUnreachable: the store did not answer.
            UsageError: the new model cannot be loaded on this host.
        """
        if "@" not in self._target or not _REGISTERED.fullmatch(self._target):
            return False
        with self._refreshing:
            swapped = self._follow(prepare, skip_entry)
        if swapped and on_change is not None:
            on_change(self.metadata)
        return swapped

    def _follow(self, prepare: Callable[[Loaded], object] | None = None, skip_entry: int = 0) -> bool:
        """Load the version that is live now, if it differs, and return whether it does."""
        from onward.registry.artifact.replay import replay_in_subprocess
        from onward.registry.store import last_live
        from onward.registry.store.resolve import resolve
        from onward.registry.store.store import Store

        store, old = Store(create=False, direct=True, address=connection.still(self._store)), self._loaded
        self.seen_live = None
        self.seen_live = found = resolve(self._target, store)
        origin = _origin(self._target, found)
        # Another version with the same files may have another serving.json.
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
                f"{self._target}: the loaded entry {old.origin['entry']} no longer counts, and version "
                f"{old.origin['version']} stays loaded: look at `onward history {found.model}`"
            )
        if same:
            if {**old.origin, "evidence": old.evidence} != origin:
                last_live.remember(found, self._store)
                self._loaded = old.called(origin)
            return False
        if found.entry == skip_entry:
            return False
        path = download(found, store)
        met, detail = replay_in_subprocess(path.parent, old.providers[0], allow_custom_ops=old.allow_custom_ops)
        if not met:
            raise Refused(
                f"{self._target}: version {found.version}, entry {found.entry}, does not repeat its recorded answers "
                f"here, and version {old.origin['version']} stays loaded: {detail}"
            )
        fresh = self._load(path, origin, Serving.load(path.parent))
        if prepare is not None:
            prepare(fresh)
        self._loaded = fresh
        last_live.remember(found, self._store)
        return True


def locate(
    target: str | Path, require_signed: bool = False, allow_cached: bool = False
) -> tuple[Path, dict[str, Any], Serving | None]:
    """Find the .onnx file that a target names, and check it if its digests are known.

    Args:
        target: as in InferenceSession.
        require_signed: as in InferenceSession.
        allow_cached: as in InferenceSession.

    Returns:
        the file; the fields of Metadata that say where it came from; and its serving.json, or None.

    Raises:
        UsageError: there is no such model, version, environment or file.
        Refused: nothing is live in the environment, the files differ from the published ones, or, with
            `require_signed`, no signature proves who deployed them.
        StoreUnreachable: the MLflow store did not answer.
    """
    if isinstance(target, str) and _REGISTERED.fullmatch(target):
        return _registered(target, require_signed, allow_cached)
    if require_signed:
        raise Refused(
            f"{target}: no signature proves the origin of a file; with require_signed, the target must be "
            "MODEL@ENVIRONMENT"
        )
    path, serving = Path(target), None
    origin: dict[str, Any] = {"target": str(target)}
    if path.is_dir():
        if (path / MANIFEST).is_file():
            origin["sha256"] = content_digest(check_folder(path))
        serving = Serving.load(path)
        found = [path / MODEL] if (path / MODEL).is_file() else sorted(path.glob("*.onnx"))
        if len(found) != 1:
            raise UsageError(f"{target}: contains {len(found) or 'no'} .onnx files; give the path of one file")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"{target}: there is no such file; a registered model is MODEL@ENVIRONMENT or MODEL/VERSION")
    return path, origin, serving


def _registered(target: str, require_signed: bool, allow_cached: bool) -> tuple[Path, dict[str, Any], Serving | None]:
    from onward.registry.store import last_live
    from onward.registry.store.resolve import resolve
    from onward.registry.store.store import Store

    uri = connection.tracking_uri()
    try:
        store = Store(create=False, direct=True)
        found = resolve(target, store)
        _require_proof(found, require_signed)
        path = download(found, store)
    except StoreUnreachable:
        last = last_live.recall(target, uri) if allow_cached and "@" in target else None
        if last is None or not is_cached(last):
            raise
        _require_proof(last, require_signed)
        path = download(last)
        return path, _origin(target, last) | {"cached": True}, Serving.load(path.parent)
    if found.environment:
        last_live.remember(found, uri)
    return path, _origin(target, found), Serving.load(path.parent)


def _require_proof(found: Target, require_signed: bool) -> None:
    """Warn of unproven rows in a log. If signatures are required, reject versions that are not proven.

    Raises:
        Refused: signatures are required, and the version is not proven.
    """
    from onward.registry.gates import policy

    if require_signed or is_on(REQUIRE_SIGNED):
        if not found.environment:
            raise Refused(
                f"{found}: no signature proves who registered a version; with require_signed, the target must be "
                "MODEL@ENVIRONMENT"
            )
        if not policy.environment(policy.read(), found.environment).signers:
            raise Refused(
                f"{found}: {found.environment} has no signers, so no signature proves who deployed it: name signers in "
                f"params.yaml, or set {policy.FILE} on this host to the path of a params.yaml that does"
            )
        if found.alarm:
            raise Refused(
                f"{found}: the signed log raises an alarm: {'; '.join(found.alarm)}. "
                f"Look at `onward history {found.model}`"
            )
    if found.alarm:
        warnings.warn(
            f"{found}: version {found.version}, entry {found.entry}, is the last proven entry, and the signed log "
            f"raises an alarm: {'; '.join(found.alarm)}",
            UnprovenLog,
            stacklevel=5,
        )


def _origin(target: str, found: Target) -> dict[str, Any]:
    origin: dict[str, Any] = {"target": target, "sha256": found.sha256, "manifest": found.manifest}
    origin |= {"model": found.model, "version": found.version, "evidence": dict(found.evidence)}
    if found.environment:
        origin |= {"environment": found.environment, "entry": found.entry}
    return origin
