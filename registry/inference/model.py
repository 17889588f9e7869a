"""A loaded model: checks inputs, runs ONNX Runtime, and joins batches.

A Loaded object never changes. registry/inference/session.py replaces it when another version is live.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onward.registry.artifact.custom_ops import register
from onward.registry.artifact.replay import without_batches
from onward.registry.artifact.serving_plan import Served, Serving, preload
from onward.registry.errors import MachineFault, UsageError
from onward.registry.evidence.records import Record, TensorSpec
from onward.registry.evidence.session_options import CPU, CUDA, SessionOptions
from onward.registry.inference.conversion import Array, to_dtype
from onward.registry.inference.inputs import Inputs, Validate, declared, declared_shape, documented


class ProviderFallback(RuntimeWarning):
    """A requested execution provider cannot be used, and the model runs on another one."""


class Metadata(Record):
    """The model that a session has loaded.

    Attributes:
        target: what the session was created with.
        sha256: the digest of the model.
        manifest: the digest of all files of the version; "" if it is not known.
        model: the model's name; "" for a file.
        version: the version's number; None for a file.
        environment: the environment; "" for a file or a version.
        entry: the number of the live log entry; None for a file or a version.
        inputs: the inputs of the graph.
        outputs: the outputs of the graph.
        providers: the execution providers in use, the main one first.
        opsets: the version of each opset in the graph.
        ir_version: the ONNX IR version of the graph.
        producer: the tool that produced the graph.
        documentation: the graph's own metadata.
        served: the version's file and session options for the provider in use, without options that this host does
            not support; None if the version has none for this provider.
    """

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
    """A model loaded into ONNX Runtime.

    Args:
        path: the .onnx file.
        origin: the fields of Metadata that say where the model came from.
        serving: the version's serving.json, which may name another file beside `path` for the provider in use.
        providers: as in onward.registry.inference.session.InferenceSession.
        strict_providers: as in InferenceSession.
        session_options: as in InferenceSession.
        validate: as in InferenceSession.
        allow_custom_ops: as in InferenceSession.
    """

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, Any],
        serving: Serving | None,
        providers: Sequence[Any] | None,
        strict_providers: bool,
        session_options: Any,
        validate: Validate,
        allow_custom_ops: bool = False,
    ) -> None:
        self.path, self.origin, self.allow_custom_ops = path, origin, allow_custom_ops
        self._no_batches = without_batches(path.parent)
        self._served: Served | None = None
        self._open(serving, providers, strict_providers, session_options)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._inputs = Inputs(self._session.get_inputs(), metadata, validate)
        about = declared(metadata.get("onward.outputs", ""))
        self._answers = {
            value.name: documented(value.shape, declared_shape(about.get(value.name)))
            for value in self._session.get_outputs()
        }
        self._outputs = list(self._answers)
        self._run = self._session.run
        self._single_output = len(self._outputs) == 1

    def _open(self, serving: Serving | None, given: Sequence[Any] | None, strict: bool, session_options: Any) -> None:
        """Create the ONNX Runtime session, on the first provider that works."""
        runtime, folder, target = _onnxruntime(), self.path.parent, self.origin["target"]
        available = runtime.get_available_providers()
        wanted = list(given or ())
        if not wanted:
            wanted = [served.provider for served in serving.root.values()] if serving else [CPU]
        usable = [provider for provider in wanted if _name(provider) in available]
        if CPU not in map(_name, wanted):
            usable.append(CPU)
        preload([_name(provider) for provider in usable])
        # An installed provider may fail to start (no device, no driver). ONNX Runtime then drops it without an error.
        # In that case, the next provider is tried, with the file and the options that won on it.
        for number, provider in enumerate(usable):
            self._served = serving.on(_name(provider)) if serving else None
            options = session_options or SessionOptions().fitting_here().to_onnxruntime()
            if self._served:
                fitting = self._served.options.fitting_here()
                self._served = self._served.model_copy(update={"options": fitting})
                self.path = folder / self._served.file
                options = session_options or fitting.to_onnxruntime()
            register(options, folder, serving.libraries if serving else [], self.allow_custom_ops)
            together = usable[number:] if given else list(dict.fromkeys((_name(provider), CPU)))
            if self._served and isinstance(provider, str):
                together[0] = self._served.options.to_provider(provider)
            try:
                self._session = runtime.InferenceSession(str(self.path), options, providers=together)
            except Exception as error:  # ONNX Runtime's exceptions share no base but this
                raise UsageError(f"{target}: ONNX Runtime cannot load the model: {error_text(error)}") from error
            running = self._session.get_providers()
            if running[0] == _name(provider):
                break
        requested = [_name(provider) for provider in wanted]
        # If the caller named no providers, only installed providers that come before the one in use count as missing,
        # unless the version was not measured on the one in use.
        if not given and (self._served or not serving):
            requested = [name for name in requested[: requested.index(running[0])] if name in available]
        missing = [name for name in requested if name not in running]
        if missing and strict:
            raise _without(missing, available)
        if missing:
            warnings.warn(
                f"{target}: {', '.join(missing)} cannot be used here (available: {', '.join(available)}); "
                f"the model runs on {running[0]}",
                ProviderFallback,
                stacklevel=4,
            )

    def predict(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the model once; see InferenceSession.predict.

        Args:
            args: the inputs by position, or one dict of inputs by name.
            kwargs: the inputs by name.
        """
        results = self._ran(self._inputs.feed(args, kwargs))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

    def predict_batches(self, inputs: Any, batch_size: int) -> Any:
        """Run the model in batches; see InferenceSession.predict_batches.

        Args:
            inputs: an array, a dict, or a tuple or list of one array per input; the first axis counts samples.
            batch_size: the number of samples in a batch.
        """
        if self._no_batches:
            raise UsageError(f"predict_batches cannot be used with this version: {self._no_batches}; call predict")
        if batch_size < 1:
            raise UsageError(f"batch_size: {batch_size} is too small, give at least 1")
        known = self._inputs
        if not known.all:
            raise UsageError("the model has no inputs, so there are no samples to batch; call predict()")
        if isinstance(inputs, Mapping):
            given = known.by_name((), inputs)
        elif len(known.all) == 1:
            given = {known.names[0]: inputs}
        elif isinstance(inputs, (tuple, list)):
            given = known.by_name(tuple(inputs), {})
        else:
            raise UsageError(f"the model has {len(known.all)} inputs, not one; give a dict or a tuple of {known}")
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
        """The loaded model, where it came from, and what runs it."""
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
        """The execution providers in use, the main one first."""
        return list(self._session.get_providers())

    def called(self, origin: Mapping[str, Any]) -> Loaded:
        """The same loaded model with another origin, for a deployment of the same files.

        Args:
            origin: the fields of Metadata that say where the model came from.
        """
        same = copy.copy(self)
        same.origin = origin
        return same

    def _ran(self, feed: Mapping[str, Array]) -> Any:
        """Run ONNX Runtime, and translate its errors."""
        try:
            return self._run(self._outputs, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            target, text = self.origin["target"], error_text(error)
            fault = self._inputs.fault(feed)
            if fault:
                raise UsageError(f"{target}: {fault}; ONNX Runtime says: {text}") from error
            given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            if type(error).__name__ == "InvalidArgument" or isinstance(error, (TypeError, ValueError)):
                raise UsageError(
                    f"{target}: ONNX Runtime rejects {given or 'the call without inputs'}: {text}"
                ) from error
            raise MachineFault(f"{target}: ONNX Runtime failed on {given or 'no inputs'}: {text}") from error

    def _batch(self, batch: dict[str, Array], least: int) -> list[Array]:
        """Run one batch. A batch of fewer than `least` samples is padded, and its outputs are cut to size again."""
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
                raise UsageError(f"output {name} does not have one row per sample; call predict for each batch instead")
        return [output[:count] for output in outputs]

    def _empty(self, arrays: dict[str, Array]) -> Any:
        """Empty outputs for zero samples."""
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
    """The name of a provider that is given as a name, or as a pair of name and options."""
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
    """The error for providers that cannot be used."""
    extra = {CUDA: "cuda", "OpenVINOExecutionProvider": "openvino"}.get(missing[0])
    hint = f"; install it with `pip install 'onward[{extra}]'` in a separate environment" if extra else ""
    return UsageError(f"{', '.join(missing)} cannot be used here (available: {', '.join(available)}){hint}")


def error_text(error: Exception) -> str:
    """The first 300 characters of an error's message, on one line.

    Args:
        error: the error, such as one of ONNX Runtime's, whose messages can be very long.
    """
    return " ".join(str(error).split())[:300]


def _about(specs: list[TensorSpec], documentation: str) -> list[TensorSpec]:
    """The graph's inputs or outputs, with the descriptions that the export stage copied from params.yaml."""
    declarations = declared(documentation)
    return [spec.model_copy(update={"about": str(declarations.get(spec.name, {}).get("about", ""))}) for spec in specs]
