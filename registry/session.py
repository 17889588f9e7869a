"""Loads a model by environment, version or file, and predicts.

    session = InferenceSession("cnn@production")          # or "cnn/3", or a path to an .onnx file
    logits = session.predict(image)                       # NumPy arrays or torch tensors, by position or by name
    logits = session.predict_batches({"image": images}, batch_size=64)
    session.metadata["inputs"]

Needs onnxruntime (any build of it), MLflow where the target is not a file, and never torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from registry import onnx_file
from registry.errors import OnwardError, Refused, UsageError
from registry.evidence import TensorSpec
from registry.flavor import MODEL
from registry.integrity import check_folder

Array = npt.NDArray[Any]

DEFAULT_PROVIDER = "CPUExecutionProvider"


class ProviderFallback(RuntimeWarning):
    """A provider that was asked for is not used: the session computes on the CPU instead."""


class InferenceSession:
    """One model, loaded. `target` is MODEL@ENVIRONMENT, MODEL/VERSION, or a path to an .onnx file.

    `providers` are tried in order, the CPU last; without `strict_providers`, one that is not used is a
    `ProviderFallback` warning, with it an error. `session_options` is an onnxruntime.SessionOptions.

    Raises:
        UsageError: there is no such model, version, environment or file, or it is no ONNX file.
        Refused: the files are not those that were published, or a provider is not used under `strict_providers`.
        StoreUnreachable: the store did not answer.
    """

    def __init__(
        self,
        target: str | Path,
        providers: Sequence[str] | None = None,
        strict_providers: bool = False,
        session_options: Any = None,
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise OnwardError("onnxruntime is not installed here: pip install 'onward[cpu]'") from None
        self._path, self._about = resolve(target)
        onnx_file.files(self._path)
        wanted = list(providers or [self._about.get("provider", DEFAULT_PROVIDER)])
        there = set(onnxruntime.get_available_providers())
        usable = [name for name in wanted if name in there]
        try:
            self._session = onnxruntime.InferenceSession(
                str(self._path), session_options, providers=[*usable, *({DEFAULT_PROVIDER} - set(usable))]
            )
        except Exception as error:  # onnxruntime's errors share no public base
            raise UsageError(f"{target}: onnxruntime cannot load it: {str(error).splitlines()[0][:300]}") from error
        active = self._session.get_providers()
        unused = [name for name in wanted if name not in active]
        if unused:
            text = (
                f"{target}: {', '.join(unused)} is not used here (onnxruntime has {', '.join(sorted(there))}); "
                f"it computes on {active[0]}"
            )
            if strict_providers:
                raise Refused(text)
            warnings.warn(text, ProviderFallback, stacklevel=2)
        self._inputs = self._session.get_inputs()
        self._names = [value.name for value in self._inputs]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._checks = [(value.name, _numpy_type(value.type), tuple(value.shape)) for value in self._inputs]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the model is: its inputs and outputs with their documentation, where it came from, what computes it."""
        graph = onnx_file.describe(self._path)
        about = {kind: json.loads(graph.metadata.get(f"onward.{kind}", "{}")) for kind in ("inputs", "outputs")}

        def documented(specs: list[TensorSpec], kind: str) -> list[dict[str, Any]]:
            return [{**spec.model_dump(), "about": about[kind].get(spec.name, {}).get("about", "")} for spec in specs]

        return {
            **self._about,
            "inputs": documented(graph.inputs, "inputs"),
            "outputs": documented(graph.outputs, "outputs"),
            "providers": self._session.get_providers(),
            "opsets": graph.opsets,
            "ir_version": graph.ir_version,
            "producer": graph.producer,
            "parameters": graph.parameters,
            "size_bytes": graph.size_bytes,
        }

    def predict(self, *positional: Any, **named: Any) -> Any:
        """Run the model: inputs by position in the model's order, by name, or as one mapping of names.

        Each is an array, a torch tensor, or nested lists. A wider number is narrowed where that is the same kind
        (float64 to float32, int64 to int32); anything else of the wrong dtype is refused.

        Returns:
            the output's array where there is one output, else a dict of arrays by name.

        Raises:
            UsageError: the inputs are not those that the model documents; the message says which and why.
        """
        feed = self._feed(positional, named)
        results = self._session.run(self._outputs, feed)
        return results[0] if len(results) == 1 else dict(zip(self._outputs, results, strict=True))

    def predict_batches(self, inputs: Any, batch_size: int = 32) -> Any:
        """`predict` over many samples, `batch_size` at a time, stacked on the first axis.

        `inputs` is one array for a model of one input, or a mapping of names to arrays, samples on axis 0. No samples
        give an empty result.

        Raises:
            UsageError: as predict; or the inputs have different numbers of samples.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        arrays = {name: _array(value) for name, value in self._by_name((inputs,), {}).items()}
        counts = {name: len(value) for name, value in arrays.items()}
        if len(set(counts.values())) != 1:
            raise UsageError(f"the inputs have different numbers of samples: {counts}")
        count = next(iter(counts.values()))
        if count == 0:
            results: list[Array] = [
                np.empty([0, *(d if isinstance(d, int) else 0 for d in value.shape[1:])], _numpy_type(value.type))
                for value in self._session.get_outputs()
            ]
        else:
            parts = []
            for start in range(0, count, batch_size):
                batch = {name: value[start : start + batch_size] for name, value in arrays.items()}
                parts.append(self._session.run(self._outputs, self._feed((), batch)))
            results = [np.concatenate(column, axis=0) for column in zip(*parts, strict=True)]
        return results[0] if len(results) == 1 else dict(zip(self._outputs, results, strict=True))

    def _by_name(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        first = positional[0] if len(positional) == 1 else None
        if isinstance(first, Mapping):
            return self._by_name((), {**first, **named})
        if len(positional) > len(self._names):
            raise UsageError(f"{len(positional)} inputs given; the model has {len(self._names)}: {self._listed()}")
        given = {**dict(zip(self._names, positional, strict=False)), **named}
        if len(given) != len(positional) + len(named):
            raise UsageError(f"an input is given both by position and by name; the model has {self._listed()}")
        if given.keys() != set(self._names):
            missing = [name for name in self._names if name not in given]
            extra = [name for name in given if name not in self._names]
            words = [f"missing {', '.join(missing)}"] if missing else []
            words += [f"unknown {', '.join(extra)}"] if extra else []
            raise UsageError(f"{'; '.join(words)}; the model has {self._listed()}")
        return given

    def _feed(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Array]:
        given = self._by_name(positional, named)
        feed: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for name, dtype, shape in self._checks:
            value = given[name]
            array = value if type(value) is np.ndarray else _array(value)
            if array.dtype != dtype:
                array = _narrowed(name, array, dtype)
            if array.ndim != len(shape):
                raise UsageError(f"{name} has {array.ndim} dimensions, {list(array.shape)}; wanted {list(shape)}")
            for size, wanted in zip(array.shape, shape, strict=True):
                if isinstance(wanted, int):
                    if size != wanted:
                        raise UsageError(f"{name} has shape {list(array.shape)}; wanted {list(shape)}")
                elif wanted and sizes.setdefault(wanted, size) != size:
                    raise UsageError(f"{name} has {wanted} = {size}, an earlier input has {sizes[wanted]}")
            feed[name] = array
        return feed

    def _listed(self) -> str:
        return ", ".join(f"{name} {dtype.name}{list(shape)}" for name, dtype, shape in self._checks)


def resolve(target: str | Path) -> tuple[Path, dict[str, Any]]:
    """The .onnx file that `target` names, and where it came from.

    Raises:
        UsageError: there is no such thing. Refused: its files are not those that were published.
    """
    path = Path(target)
    if path.is_file():
        return path, {"target": path.name}
    if path.is_dir() and (path / MODEL).is_file():
        return path / MODEL, {"target": path.name}
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*)(?:@([A-Za-z0-9][A-Za-z0-9_-]*)|/(\d+))", str(target))
    if found is None:
        raise UsageError(f"{target}: there is no such file; a registered model is MODEL@ENVIRONMENT or MODEL/VERSION")
    from registry.operations import live_entry
    from registry.store import Store

    store = Store()
    model, environment, version = found.groups()
    if environment:
        live = live_entry(store, model, environment)
        source, sha256, number = live.source, live.sha256, live.candidate_version
        provider = live.evidence.get("provider")
    else:
        candidate = store.candidate(model, version)
        source, number = f"models:/{model}/{version}", version
        sha256, provider = candidate.tags.get("sha256", ""), candidate.tags.get("provider")
    about = {"target": str(target), "model": model, "version": number, "sha256": sha256}
    if environment:
        about["environment"] = environment
    return _cached(store, source, sha256) / MODEL, {**about, "provider": provider or DEFAULT_PROVIDER}


def _cached(store: Any, source: str, sha256: str) -> Path:
    """The files of a version on this host, kept by sha256 and checked at every load."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onward"
    folder = base / sha256
    if not folder.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=base, prefix=".loading."))
        try:
            with store.files(source) as files:
                shutil.copytree(files, fresh, dirs_exist_ok=True)
            check_folder(fresh, sha256)
            try:
                os.replace(fresh, folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker, with the same bytes
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    try:
        check_folder(folder, sha256)
    except Refused as error:
        raise Refused(f"{error} (in the cache: remove {folder} to download them again)") from None
    return folder


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a torch tensor, told by its looks: torch is not needed here
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"an input of {array.dtype} is no array of numbers")
    return array


def _narrowed(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    if np.can_cast(array.dtype, dtype, "same_kind"):
        narrowed = array.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(narrowed, array):
            raise UsageError(f"{name} holds values that {dtype} cannot")
        return narrowed
    raise UsageError(f"{name} is {array.dtype}; wanted {dtype}")


def _numpy_type(kind: str) -> np.dtype[Any]:
    """`tensor(float)` to float32."""
    names = {"float": "float32", "double": "float64"}
    inner = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(names.get(inner, inner))
    except TypeError:
        raise UsageError(f"an input or output of type {kind} cannot be fed from NumPy") from None
