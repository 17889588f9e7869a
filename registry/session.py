"""Loads a model by environment, version or file, checks what it is fed, and predicts.

    session = InferenceSession("cnn@production")       # what is live there
    session = InferenceSession("cnn/3")                # version 3
    session = InferenceSession("./build/model.onnx")   # a file, or a folder that holds one

    logits = session.predict(image)                    # NumPy, torch or lists; by position, by name, or one dict
    logits = session.predict_batches(images, batch_size=64)
    session.metadata.inputs

Needs ONNX Runtime in any of its builds, MLflow where the target is not a file, and never torch.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from registry.errors import Refused, UsageError
from registry.evidence import Record, TensorSpec
from registry.integrity import MANIFEST, check_folder

if TYPE_CHECKING:
    from registry.overview import Target
    from registry.store import Store

Array = npt.NDArray[Any]

CPU = "CPUExecutionProvider"
MODEL = "model.onnx"
_REGISTERED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(@[A-Za-z0-9][A-Za-z0-9_-]*|/\d+)")
# ONNX Runtime's names for element types where NumPy's differ; the others are the same.
_ELEMENTS = {"float": "float32", "double": "float64", "string": "object"}


class ProviderFallback(RuntimeWarning):
    """An execution provider that was asked for is not in use; the model runs on another."""


class Metadata(Record):
    """What a session has loaded. `version`, `environment` and `entry` are empty for what was loaded from a file;
    `documentation` is what the graph's own metadata says."""

    target: str
    sha256: str
    model: str = ""
    version: int | None = None
    environment: str = ""
    entry: int | None = None
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    providers: list[str]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    documentation: dict[str, str]


class InferenceSession:
    """A loaded model.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or the path of an .onnx file or of a folder that holds one. A path
            that looks like one of the first two has to be written `./cnn/3`.
        providers: execution providers in order of preference, as onnxruntime.InferenceSession takes them; the CPU
            comes last in any case, and alone if there are none.
        strict_providers: whether a provider that cannot be used is an error instead of a ProviderFallback warning.
        session_options: an onnxruntime.SessionOptions.

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
        runtime = _onnxruntime()
        self._path, self._origin = locate(target)
        wanted = list(providers or [CPU])
        names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
        available = runtime.get_available_providers()
        missing = [name for name in names if name not in available]
        if missing and strict_providers:
            raise _without(missing, available)
        usable = [provider for provider, name in zip(wanted, names, strict=True) if name in available]
        if CPU not in names:
            usable.append(CPU)
        try:
            self._session = runtime.InferenceSession(str(self._path), session_options, providers=usable)
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            first = " ".join(str(error).split())[:300]
            raise UsageError(f"{target}: ONNX Runtime cannot load it: {first}") from error
        # A provider that is there may still fail to start (no device, no driver), and is dropped without an error.
        missing = [name for name in names if name not in self._session.get_providers()]
        if missing and strict_providers:
            raise _without(missing, available)
        if missing:
            warnings.warn(
                f"{target}: {', '.join(missing)} cannot be used here (there are {', '.join(available)}); "
                f"it runs on {self._session.get_providers()[0]}",
                ProviderFallback,
                stacklevel=2,
            )
        self._inputs = [_Input(value) for value in self._session.get_inputs()]
        self._names = [value.name for value in self._inputs]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._run = self._session.run
        self._single_output = len(self._outputs) == 1

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
        results = self._run(self._outputs, self._feed(args, kwargs))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

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
        if batch_size < 1:
            raise UsageError(f"batch_size: {batch_size}; at least 1 is needed")
        if isinstance(inputs, Mapping):
            given = self._by_name((), inputs)
        elif len(self._inputs) == 1:
            given = {self._names[0]: inputs}
        elif isinstance(inputs, (tuple, list)):
            given = self._by_name(tuple(inputs), {})
        else:
            raise UsageError(
                f"one array for {len(self._inputs)} inputs; give a dict or a tuple of {self._documented()}"
            )
        arrays = {spec.name: spec.convert(given[spec.name]) for spec in self._inputs}
        counts = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
        total = counts[self._names[0]]
        if total is None or len(set(counts.values())) != 1:
            described = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise UsageError(f"the inputs differ in their number of samples (first axis): {described}")
        fixed = next((spec.shape[0] for spec in self._inputs if spec.shape and isinstance(spec.shape[0], int)), None)
        if total == 0:
            return self._empty(arrays)
        size = fixed or batch_size
        parts = [
            self._batch({name: array[start : start + size] for name, array in arrays.items()}, fixed)
            for start in range(0, total, size)
        ]
        results = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

    @property
    def metadata(self) -> Metadata:
        """What is loaded, where it came from, and what runs it."""
        from registry import onnx_file
        from registry.integrity import content_digest

        graph = onnx_file.describe(self._path)
        origin = {"sha256": content_digest(onnx_file.digests(self._path)), **self._origin}
        return Metadata(
            **origin,
            inputs=_about(graph.inputs, graph.metadata.get("onward.inputs", "")),
            outputs=_about(graph.outputs, graph.metadata.get("onward.outputs", "")),
            providers=self._session.get_providers(),
            opsets=graph.opsets,
            ir_version=graph.ir_version,
            producer=graph.producer,
            documentation=graph.metadata,
        )

    def _feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) == len(self._inputs) and not kwargs and not isinstance(args[0], Mapping):
            values = args
        else:
            given = self._by_name(args, kwargs)
            values = tuple([given[name] for name in self._names])
        sizes: dict[str, tuple[str, int]] = {}
        return {spec.name: spec.check(value, sizes) for spec, value in zip(self._inputs, values, strict=True)}

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
            return self._by_name((), args[0])
        if len(args) > len(self._inputs):
            raise UsageError(f"{len(args)} inputs given, the model takes {len(self._inputs)}: {self._documented()}")
        given = dict(zip(self._names, args, strict=False))
        twice = [name for name in kwargs if name in given]
        if twice:
            raise UsageError(f"input {twice[0]!r} is given by position and by name")
        given.update(kwargs)
        unknown = [str(name) for name in given if name not in self._names]
        if unknown:
            raise UsageError(f"the model has no input {', '.join(unknown)}; it takes {self._documented()}")
        missing = [name for name in self._names if name not in given]
        if missing:
            raise UsageError(f"input {', '.join(missing)} is missing; the model takes {self._documented()}")
        return given

    def _documented(self) -> str:
        return ", ".join(str(spec) for spec in self._inputs)

    def _batch(self, batch: dict[str, Array], fixed: int | None) -> list[Array]:
        count = len(batch[self._names[0]])
        wanted = max(count, fixed or 0)
        if count < wanted:
            batch = {
                name: np.concatenate([array, np.repeat(array[-1:], wanted - count, axis=0)])
                for name, array in batch.items()
            }
        outputs = self._run(self._outputs, self._feed((), batch))
        for name, output in zip(self._outputs, outputs, strict=True):
            if not isinstance(output, np.ndarray) or output.ndim == 0 or len(output) != wanted:
                raise UsageError(
                    f"output {name} does not hold one answer a sample; call predict for each batch instead"
                )
        return [output[:count] for output in outputs]

    def _empty(self, arrays: dict[str, Array]) -> Any:
        sizes: dict[str, tuple[str, int]] = {}
        for spec in self._inputs:
            first = spec.shape[0] if spec.shape else None
            spec.check_shape((first if isinstance(first, int) else 1, *arrays[spec.name].shape[1:]), spec.shape, sizes)
        for spec in self._inputs:
            if spec.shape and isinstance(spec.shape[0], str):
                sizes[spec.shape[0]] = (spec.name, 0)
        results = []
        for value in self._session.get_outputs():
            known = [sizes[dim][1] if dim in sizes else dim if isinstance(dim, int) else 0 for dim in value.shape[1:]]
            results.append(np.empty((0, *known), _dtype(value.type)))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))


class _Input:
    """One input's documentation, and the checks that it stands for. `check` is on the path of every prediction."""

    def __init__(self, value: Any) -> None:
        self.name: str = value.name
        self.dtype = _dtype(value.type)
        # A dimension is a size, a name, or None; [] also stands for a rank that the graph leaves open.
        self.shape: list[int | str | None] = list(value.shape or [])
        self.rank = len(self.shape)

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {'string' if self.dtype == object else self.dtype}[{dims}]"

    def check(self, value: Any, sizes: dict[str, tuple[str, int]]) -> Array:
        array: Array = value if type(value) is np.ndarray and value.dtype == self.dtype else self.convert(value)
        self.check_shape(array.shape, self.shape, sizes)
        return array

    def check_shape(
        self, shape: tuple[int, ...], wanted: list[int | str | None], sizes: dict[str, tuple[str, int]]
    ) -> None:
        """Check sizes, and that a named dimension is one size in all inputs; `sizes` collects name to (input, size)."""
        if len(shape) != len(wanted):
            if not self.rank:
                return
            raise UsageError(f"input {self.name} has rank {len(shape)}, shape {list(shape)}; the model takes {self}")
        for size, dim in zip(shape, wanted, strict=True):
            if size == 0:
                # Some operators abort the whole process on nothing (an LSTM on an empty batch does).
                raise UsageError(
                    f"input {self.name} is empty, shape {list(shape)}; only predict_batches takes no samples"
                )
            if dim.__class__ is int:
                if size != dim:
                    raise UsageError(f"input {self.name} has shape {list(shape)}; the model takes {self}")
            elif dim is not None:
                first = sizes.setdefault(str(dim), (self.name, size))
                if first[1] != size:
                    raise UsageError(
                        f"dimension {dim} is {first[1]} in input {first[0]} and {size} in input {self.name}"
                    )

    def convert(self, value: Any) -> Array:
        """`value` as an array of the input's dtype."""
        bare = isinstance(value, (list, tuple, int, float, bool, str))
        try:
            if hasattr(value, "detach"):  # a torch tensor, known by its manners: torch is not imported here
                value = value.detach().cpu().numpy()
            array: Array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"input {self.name} cannot be made an array: {str(error).splitlines()[0]}") from None
        if array.dtype == self.dtype:
            return array
        if self.dtype == object and array.dtype.kind in "UO":
            return array.astype(object)
        source = array.dtype
        safe = np.can_cast(source, self.dtype, "safe") or (source == np.float64 and self.dtype == np.float32)
        if self.dtype != object and source.kind in "biuf" and (safe or (bare and self._holds(array))):
            return array.astype(self.dtype)
        hint = "" if bare else f"; convert it yourself if that is meant (.astype({str(self.dtype)!r}))"
        raise UsageError(f"input {self.name} is {source}, the model takes {self}{hint}")

    def _holds(self, array: Array) -> bool:
        if self.dtype.kind == "f":
            return True
        if self.dtype.kind in "iu" and array.dtype.kind in "biu":
            limits = np.iinfo(self.dtype)
            return array.size == 0 or bool(array.min() >= limits.min and array.max() <= limits.max)
        return False


def locate(target: str | Path) -> tuple[Path, dict[str, Any]]:
    """The .onnx file that `target` names, checked where there is something to check it against, and its origin: the
    fields of Metadata that say where it came from.

    Raises:
        as InferenceSession.
    """
    if isinstance(target, str) and _REGISTERED.fullmatch(target):
        return _registered(target)
    path = Path(target)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            check_folder(path)
        found = [path / MODEL] if (path / MODEL).is_file() else sorted(path.glob("*.onnx"))
        if len(found) != 1:
            raise UsageError(f"{target}: holds {len(found) or 'no'} .onnx files; name one")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"{target}: there is no such file; a registered model is MODEL@ENVIRONMENT or MODEL/VERSION")
    return path, {"target": str(target)}


def _registered(target: str) -> tuple[Path, dict[str, Any]]:
    from registry.overview import resolve
    from registry.store import Store

    store = Store()
    found = resolve(target, store)
    origin = {"target": target, "sha256": found.sha256, "model": found.model, "version": found.version}
    if found.environment:
        origin |= {"environment": found.environment, "entry": found.entry}
    return download(found, store), origin


def download(target: Target, store: Store) -> Path:
    """The .onnx file of a registered version, in the cache and checked.

    Raises:
        Refused: the store no longer has the files, or they are not those that were published.
        StoreUnreachable: the store did not answer.
    """
    folder = cache() / target.sha256
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            files = store.files.fetch(target.source, Path(temporary) / "files")
            check_folder(files, target.sha256)
            try:
                os.replace(files, folder)
            except OSError:  # somebody else was quicker with the same bytes
                if not folder.is_dir():
                    raise
    try:
        check_folder(folder, target.sha256)
    except Refused as error:
        raise Refused(f"{target}: {error}. Delete {folder} to download it again") from None
    return folder / MODEL


def cache() -> Path:
    """The folder that holds downloaded versions, each under its sha256."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "onward"


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(
            "ONNX Runtime is not installed: pip install 'onward[cpu]' (or [openvino], or [cuda])"
        ) from None
    return onnxruntime


def _without(missing: list[str], available: list[str]) -> UsageError:
    extra = {"CUDAExecutionProvider": "cuda", "OpenVINOExecutionProvider": "openvino"}.get(missing[0])
    hint = f"; pip install 'onward[{extra}]' in an environment of its own brings it" if extra else ""
    return UsageError(f"{', '.join(missing)} cannot be used here; there are {', '.join(available)}{hint}")


def _dtype(kind: str) -> np.dtype[Any]:
    """NumPy's dtype of ONNX Runtime's `tensor(float)`.

    Raises:
        UsageError: NumPy has none, or it is no tensor.
    """
    element = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_ELEMENTS.get(element, element))
    except TypeError:
        raise UsageError(f"{kind} has no counterpart in NumPy; use onnxruntime itself for this model") from None


def _about(specs: list[TensorSpec], documentation: str) -> list[TensorSpec]:
    """The graph's inputs or outputs with what params.yaml said about them, which export keeps in the graph."""
    try:
        said = json.loads(documentation or "{}")
        return [spec.model_copy(update={"about": str(said.get(spec.name, {}).get("about", ""))}) for spec in specs]
    except (ValueError, AttributeError):  # another tool's metadata under our key
        return specs
