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
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry import connection
from registry.errors import Refused, UsageError
from registry.integrity import MANIFEST, check_folder, content_digest
from registry.loaded import Loaded, Metadata, ProviderFallback
from registry.serving import MODEL, Serving

if TYPE_CHECKING:
    from registry.overview import Target
    from registry.store import Store

_REGISTERED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(@[A-Za-z0-9][A-Za-z0-9_-]*|/\d+)")
__all__ = ["InferenceSession", "Metadata", "ProviderFallback", "cache", "download", "locate"]


class InferenceSession:
    """A loaded model.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or the path of an .onnx file or of a folder that holds one. A path
            that looks like one of the first two has to be written `./cnn/3`.
        providers: execution providers in order of preference, as onnxruntime.InferenceSession takes them; the CPU
            comes last in any case. None: of those that the version was measured on, the fastest that can be used
            here; for a file, the CPU. What won on the provider in use is loaded (registry/serving.py).
        strict_providers: whether a provider that cannot be used is an error instead of a ProviderFallback warning.
        session_options: an onnxruntime.SessionOptions. None: those that the version was tuned to on the provider in
            use, but for what this host lacks (processors).

    Raises:
        UsageError: there is no such model, version, environment or file, ONNX Runtime is not installed or cannot
            load the file, or (strict) lacks a provider.
        Refused: nothing is live there, or the files are not those that were published.
        StoreUnreachable: the MLflow store did not answer.
    """

    def __init__(
        self,
        target: str | Path,
        providers: Sequence[Any] | None = None,
        strict_providers: bool = False,
        session_options: Any = None,
    ) -> None:
        self._target = str(target)
        self._load = partial(
            Loaded, providers=providers, strict_providers=strict_providers, session_options=session_options
        )
        self._refreshing = threading.Lock()
        self._loaded = self._load(*locate(target))
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
            UsageError: names, number, rank, a dimension or a dtype is not what the model documents.
        """
        return self._loaded.predict(args, kwargs)

    def predict_batches(self, inputs: Any, batch_size: int = 32) -> Any:
        """Run the model over many samples, `batch_size` at a time, and join the answers along the first axis.

        `inputs` is what `predict` takes, but as one argument: an array, a dict, or a tuple or list of one array per
        input; the first axis counts samples. Where the graph fixes its first dimension, that is the batch size, and
        the last batch is filled up with repetitions that are cut off again. No samples give empty outputs, of the
        documented dtypes and shapes (0 for dimensions that nothing determines), without running the model.

        Returns:
            as predict.

        Raises:
            UsageError: as predict; the inputs differ in their number of samples; an output is not per sample.
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
        from registry.overview import resolve
        from registry.replay import replay_in_subprocess
        from registry.store import Store

        store, old = Store(connection.connect(connection.still(self._store))), self._loaded
        found = resolve(self._target, store)
        origin = _origin(self._target, found)
        # Another version of the same bytes is served in another way.
        if (found.sha256, found.version) == (old.origin["sha256"], old.origin["version"]):
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


def locate(target: str | Path) -> tuple[Path, dict[str, Any], Serving | None]:
    """The .onnx file that `target` names, checked where there is something to check it against; its origin: the
    fields of Metadata that say where it came from; and how it is served, where it is a version or a folder that says.

    Raises:
        as InferenceSession.
    """
    if isinstance(target, str) and _REGISTERED.fullmatch(target):
        return _registered(target)
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


def _registered(target: str) -> tuple[Path, dict[str, Any], Serving | None]:
    from registry.overview import resolve
    from registry.store import Store

    store = Store()
    found = resolve(target, store)
    path = download(found, store)
    return path, _origin(target, found), Serving.load(path.parent)


def _origin(target: str, found: Target) -> dict[str, Any]:
    origin = {"target": target, "sha256": found.sha256, "model": found.model, "version": found.version}
    if found.environment:
        origin |= {"environment": found.environment, "entry": found.entry}
    return origin


def download(target: Target, store: Store) -> Path:
    """The .onnx file of a registered version, in the cache and checked.

    Raises:
        Refused: the store no longer has the files, or they are not those that were published (or signed, where the
            environment asks for that).
        StoreUnreachable: the store did not answer.
    """
    from registry import file_signatures
    from registry.files import SERVED_AS, served

    folder = cache() / target.sha256
    way = target.evidence.get(SERVED_AS)
    if way is not None and folder.is_dir() and served(folder) != way:  # another version of the same bytes
        folder = cache() / f"{target.sha256}-{way[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            found = store.files.copy_of(target.environment, target.model, target, Path(temporary) / "files")
            try:
                os.replace(found.folder, folder)
            except OSError:  # somebody else was quicker with the same bytes
                if not folder.is_dir():
                    raise
    try:
        check_folder(folder, target.sha256)
    except Refused as error:
        raise Refused(f"{target}: {error}. Delete {folder} to download it again") from None
    try:
        file_signatures.require(folder, target.evidence, target.environment)
    except Refused as error:
        raise Refused(f"{target}: {error}") from None
    return folder / MODEL


def cache() -> Path:
    """The folder that holds downloaded versions, each under its sha256."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onward"
