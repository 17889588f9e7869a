"""One loaded model: checks what it is fed, runs it, joins batches. It never changes; registry/session.py swaps it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import UsageError
from registry.inputs import Array, Input, documented, to_dtype
from registry.replay import without_batches
from registry.serving import CPU, Served, Serving, preload
from registry.session_options import CUDA, SessionOptions
from registry.vocabulary import Record, TensorSpec


class ProviderFallback(RuntimeWarning):
    """An execution provider that was asked for is not in use; the model runs on another."""


class Metadata(Record):
    """What a session has loaded. `version`, `environment` and `entry` are empty for what was loaded from a file;
    `documentation` is what the graph's own metadata says; `served` is a version's file and session options for the
    provider in use, less what this host lacks for them; None where it says nothing of that provider."""

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
    served: Served | None = None


class Loaded:
    """What is at `path`, in ONNX Runtime; or what `serving` names beside it for the provider in use. `origin` are the
    fields of Metadata that say where it came from; the rest is as registry.session.InferenceSession has it."""

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, Any],
        serving: Serving | None,
        providers: Sequence[Any] | None,
        strict_providers: bool,
        session_options: Any,
    ) -> None:
        self.path, self.origin = path, origin
        self._no_batches = without_batches(path.parent)
        self._served: Served | None = None
        self._open(serving, providers, strict_providers, session_options)
        said = self._session.get_modelmeta().custom_metadata_map
        shapes = _shapes(said.get("onward.inputs", ""))
        self._inputs = [Input(value, shapes.get(value.name)) for value in self._session.get_inputs()]
        self._names = [value.name for value in self._inputs]
        self._known = frozenset(self._names)
        self._fitting: list[tuple[int, ...]] = []
        shapes = _shapes(said.get("onward.outputs", ""))
        self._answers = {v.name: documented(v.shape, shapes.get(v.name)) for v in self._session.get_outputs()}
        self._outputs = list(self._answers)
        self._run = self._session.run
        self._single_output = len(self._outputs) == 1

    def _open(self, serving: Serving | None, given: Sequence[Any] | None, strict: bool, session_options: Any) -> None:
        runtime, folder, target = _onnxruntime(), self.path.parent, self.origin["target"]
        available = runtime.get_available_providers()
        wanted = list(given or ())
        if not wanted:
            wanted = [served.provider for served in serving.root.values()] if serving else [CPU]
        usable = [provider for provider in wanted if _name(provider) in available]
        if CPU not in map(_name, wanted):
            usable.append(CPU)
        preload([_name(provider) for provider in usable])
        # A provider that is there may still fail to start (no device, no driver), and is dropped without an error:
        # then the next one gets what won there.
        for number, provider in enumerate(usable):
            self._served = serving.on(_name(provider)) if serving else None
            options = session_options or SessionOptions().fitting_here().to_onnxruntime()
            if self._served:
                fitting = self._served.options.fitting_here()
                self._served = self._served.model_copy(update={"options": fitting})
                self.path = folder / self._served.file
                options = session_options or fitting.to_onnxruntime()
            together = usable[number:] if given else list(dict.fromkeys((_name(provider), CPU)))
            if self._served and isinstance(provider, str):
                together[0] = self._served.options.to_provider(provider)
            try:
                self._session = runtime.InferenceSession(str(self.path), options, providers=together)
            except Exception as error:  # ONNX Runtime's exceptions share no base but this
                first = " ".join(str(error).split())[:300]
                raise UsageError(f"{target}: ONNX Runtime cannot load it: {first}") from error
            running = self._session.get_providers()
            if running[0] == _name(provider):
                break
        asked = [_name(provider) for provider in wanted]
        if not given and (self._served or not serving):  # measured here, too; what ONNX Runtime lacks is not missed
            asked = [name for name in asked[: asked.index(running[0])] if name in available]
        missing = [name for name in asked if name not in running]
        if missing and strict:
            raise _without(missing, available)
        if missing:
            warnings.warn(
                f"{target}: {', '.join(missing)} cannot be used here (there are {', '.join(available)}); "
                f"it runs on {running[0]}",
                ProviderFallback,
                stacklevel=4,
            )

    def predict(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run once; see InferenceSession.predict."""
        results = self._run(self._outputs, self._feed(args, kwargs))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

    def predict_batches(self, inputs: Any, batch_size: int) -> Any:
        """Run in batches; see InferenceSession.predict_batches."""
        if self._no_batches:
            raise UsageError(f"predict_batches cannot be used with this version: {self._no_batches}; call predict")
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

    def metadata(self) -> Metadata:
        """What is loaded, where it came from, and what runs it."""
        from registry import onnx_file
        from registry.integrity import content_digest

        graph = onnx_file.describe(self.path)
        origin = {"sha256": content_digest(onnx_file.digests(self.path)), **self.origin}
        return Metadata(
            **origin,
            inputs=_about(graph.inputs, graph.metadata.get("onward.inputs", "")),
            outputs=_about(graph.outputs, graph.metadata.get("onward.outputs", "")),
            providers=self._session.get_providers(),
            opsets=graph.opsets,
            ir_version=graph.ir_version,
            producer=graph.producer,
            documentation=graph.metadata,
            served=self._served,
        )

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, the first one first."""
        return list(self._session.get_providers())

    def called(self, origin: Mapping[str, Any]) -> Loaded:
        """The same model under another origin: what is live again needs no loading."""
        same = copy.copy(self)
        same.origin = origin
        return same

    def _feed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) == len(self._inputs) and not kwargs and not isinstance(args[0], (dict, Mapping)):
            values = args
        else:
            given = self._by_name(args, kwargs)
            values = tuple([given[name] for name in self._names])
        arrays = [spec.array(value) for spec, value in zip(self._inputs, values, strict=True)]
        shapes = [array.shape for array in arrays]
        if shapes != self._fitting:  # those that fitted last time do so again
            sizes: dict[str, tuple[str, int]] = {}
            for spec, shape in zip(self._inputs, shapes, strict=True):
                spec.check_shape(shape, spec.shape, sizes)
            self._fitting = shapes
        return dict(zip(self._names, arrays, strict=True))

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(args) == 1 and isinstance(args[0], (dict, Mapping)) and not kwargs:
            return self._by_name((), args[0])
        if not args and kwargs.keys() == self._known:
            return kwargs
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
            shape = self._answers[value.name][1:]
            known = [dim if isinstance(dim, int) else sizes[dim][1] if dim in sizes else 0 for dim in shape]
            results.append(np.empty((0, *known), to_dtype(value.type)))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))


def _name(provider: Any) -> str:
    """The name of a provider as onnxruntime.InferenceSession takes it: itself, or the first of a pair with options."""
    return provider if isinstance(provider, str) else str(provider[0])


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(
            "ONNX Runtime is not installed: pip install 'onward[cpu]' (or [openvino], or [cuda])"
        ) from None
    return onnxruntime


def _without(missing: list[str], available: list[str]) -> UsageError:
    extra = {CUDA: "cuda", "OpenVINOExecutionProvider": "openvino"}.get(missing[0])
    hint = f"; pip install 'onward[{extra}]' in an environment of its own brings it" if extra else ""
    return UsageError(f"{', '.join(missing)} cannot be used here; there are {', '.join(available)}{hint}")


def _shapes(documentation: str) -> dict[str, list[Any]]:
    """The shapes that params.yaml declared, by name, which export keeps in the graph."""
    try:
        said = {name: spec.get("shape") for name, spec in json.loads(documentation or "{}").items()}
    except (ValueError, AttributeError):  # another tool's metadata under our key
        return {}
    return {name: shape for name, shape in said.items() if isinstance(shape, list)}


def _about(specs: list[TensorSpec], documentation: str) -> list[TensorSpec]:
    """The graph's inputs or outputs with what params.yaml said about them, which export keeps in the graph."""
    try:
        said = json.loads(documentation or "{}")
        return [spec.model_copy(update={"about": str(said.get(spec.name, {}).get("about", ""))}) for spec in specs]
    except (ValueError, AttributeError):  # another tool's metadata under our key
        return specs
