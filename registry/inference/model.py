"""One loaded model: checks what it is fed, runs it, joins batches. It never changes; registry/inference/session.py
swaps it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onward.registry.artifact.replay import without_batches
from onward.registry.artifact.serving_plan import Served, Serving, preload
from onward.registry.errors import MachineFault, UsageError
from onward.registry.evidence.records import Record, TensorSpec
from onward.registry.evidence.session_options import CPU, CUDA, SessionOptions
from onward.registry.inference.conversion import Array, to_dtype
from onward.registry.inference.inputs import Inputs, Validate, declared, declared_shape, documented


class ProviderFallback(RuntimeWarning):
    """An execution provider that was asked for is not in use; the model runs on another."""


class Metadata(Record):
    """What a session has loaded. `version`, `environment` and `entry` are empty for what was loaded from a file;
    `manifest` is the digest of all files of a version, "" where it was not pinned;
    `documentation` is what the graph's own metadata says; `served` is a version's file and session options for the
    provider in use, less what this host lacks for them; None where it says nothing of that provider."""

    target: str
    sha256: str
    manifest: str = ""
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
    fields of Metadata that say where it came from; the rest is as onward.registry.inference.session.InferenceSession
    has it."""

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, Any],
        serving: Serving | None,
        providers: Sequence[Any] | None,
        strict_providers: bool,
        session_options: Any,
        validate: Validate,
    ) -> None:
        self.path, self.origin = path, origin
        self._no_batches = without_batches(path.parent)
        self._served: Served | None = None
        self._open(serving, providers, strict_providers, session_options)
        said = self._session.get_modelmeta().custom_metadata_map
        self._inputs = Inputs(self._session.get_inputs(), said, validate)
        about = declared(said.get("onward.outputs", ""))
        self._answers = {
            value.name: documented(value.shape, declared_shape(about.get(value.name)))
            for value in self._session.get_outputs()
        }
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
        results = self._ran(self._inputs.feed(args, kwargs))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

    def predict_batches(self, inputs: Any, batch_size: int) -> Any:
        """Run in batches; see InferenceSession.predict_batches."""
        if self._no_batches:
            raise UsageError(f"predict_batches cannot be used with this version: {self._no_batches}; call predict")
        if batch_size < 1:
            raise UsageError(f"batch_size: {batch_size}; at least 1 is needed")
        known = self._inputs
        if not known.all:
            raise UsageError("the model has no inputs, so that there are no samples to batch; call predict()")
        if isinstance(inputs, Mapping):
            given = known.by_name((), inputs)
        elif len(known.all) == 1:
            given = {known.names[0]: inputs}
        elif isinstance(inputs, (tuple, list)):
            given = known.by_name(tuple(inputs), {})
        else:
            raise UsageError(f"one array for {len(known.all)} inputs; give a dict or a tuple of {known}")
        arrays = known.arrays(given)
        counts = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
        total = counts[known.names[0]]
        if total is None or len(set(counts.values())) != 1:
            described = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise UsageError(f"the inputs differ in their number of samples (first axis): {described}")
        if total == 0:
            return self._empty(arrays)
        least, size = known.batch(batch_size)
        parts = [
            self._batch({name: array[start : start + size] for name, array in arrays.items()}, least)
            for start in range(0, total, size)
        ]
        results = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

    def metadata(self) -> Metadata:
        """What is loaded, where it came from, and what runs it."""
        from onward.registry.artifact import onnx_file
        from onward.registry.artifact.manifest import content_digest

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

    def _ran(self, feed: Mapping[str, Array]) -> Any:
        """What ONNX Runtime answers."""
        try:
            return self._run(self._outputs, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            target, words = self.origin["target"], " ".join(str(error).split())[:300]
            fault = self._inputs.fault(feed)
            if fault:
                raise UsageError(f"{target}: {fault}; ONNX Runtime says: {words}") from error
            given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            if type(error).__name__ == "InvalidArgument" or isinstance(error, (TypeError, ValueError)):
                raise UsageError(f"{target}: ONNX Runtime refuses {given or 'to run'}: {words}") from error
            raise MachineFault(f"{target}: ONNX Runtime failed on {given or 'no inputs'}: {words}") from error

    def _batch(self, batch: dict[str, Array], least: int) -> list[Array]:
        count = len(batch[self._inputs.names[0]])
        wanted = max(count, least)
        if count < wanted:
            batch = {
                name: np.concatenate([array, np.repeat(array[-1:], wanted - count, axis=0)])
                for name, array in batch.items()
            }
        if self._inputs.validate != "off":
            self._inputs.check_shapes(batch)
        outputs = self._ran(batch)
        for name, output in zip(self._outputs, outputs, strict=True):
            if not isinstance(output, np.ndarray) or output.ndim == 0 or len(output) != wanted:
                raise UsageError(
                    f"output {name} does not hold one answer a sample; call predict for each batch instead"
                )
        return [output[:count] for output in outputs]

    def _empty(self, arrays: dict[str, Array]) -> Any:
        sizes: dict[str, tuple[str, int]] = {}
        for spec in self._inputs.all:
            first = spec.shape[0] if spec.shape else None
            spec.check_shape((first if isinstance(first, int) else 1, *arrays[spec.name].shape[1:]), spec.shape, sizes)
        for spec in self._inputs.all:
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


def _about(specs: list[TensorSpec], documentation: str) -> list[TensorSpec]:
    """The graph's inputs or outputs with what params.yaml said about them, which export keeps in the graph."""
    said = declared(documentation)
    return [spec.model_copy(update={"about": str(said.get(spec.name, {}).get("about", ""))}) for spec in specs]
