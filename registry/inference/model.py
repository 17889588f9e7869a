"""A loaded model: checks inputs, runs ONNX Runtime or OpenVINO, and joins batches.

A Loaded object never changes. registry/inference/session.py replaces it when another version is live.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from onward.registry.artifact import sessions
from onward.registry.artifact.custom_ops import register
from onward.registry.artifact.replay import without_batches
from onward.registry.artifact.serving_plan import Served, Serving, preload
from onward.registry.errors import MachineFault, UsageError
from onward.registry.evidence.records import Record, TensorSpec, first_problem
from onward.registry.evidence.sample_axes import part
from onward.registry.evidence.session_options import CPU, CUDA, OPENVINO, OPENVINO_NATIVE, SessionOptions
from onward.registry.inference.conversion import Array, to_dtype
from onward.registry.inference.inputs import (
    Inputs,
    Validate,
    declared,
    declared_shape,
    declared_states,
    documented,
    sample_axis,
)
from onward.registry.inference.stream import Stream

_LOG = logging.getLogger("onward")


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
        cached: whether the store could not be reached, and this is the version that was live at the last look.
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
    cached: bool = False
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    providers: list[str]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    documentation: dict[str, str]
    served: Served | None = None


class Loaded:
    """A model loaded into ONNX Runtime, or into OpenVINO itself.

    Args:
        path: the .onnx file.
        origin: the fields of Metadata that say where the model came from, and `evidence`, the version's tags.
        serving: the version's serving.json, which may name another file beside `path` for the provider in use.
        providers: as in onward.registry.inference.session.InferenceSession.
        strict_providers: as in InferenceSession.
        session_options: as in InferenceSession.
        validate: as in InferenceSession.
        allow_custom_ops: as in InferenceSession.
        overrides: as in InferenceSession.

    Raises:
        UsageError: as in InferenceSession.
    """

    _session: Any  # of ONNX Runtime, or a NativeSession

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
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.origin, self.allow_custom_ops = path, dict(origin), allow_custom_ops
        # The tags of the version: what was measured of it. They are no part of Metadata.
        self.evidence: Mapping[str, str] = self.origin.pop("evidence", {})
        self._no_batches = without_batches(path.parent)
        self._served: Served | None = None
        self._overrides = _checked_overrides(overrides or {}, session_options)
        self._open(serving, providers, strict_providers, session_options)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._inputs = Inputs(self._session.get_inputs(), metadata, validate)
        about = declared(metadata.get("onward.outputs", ""))
        self._answers = {
            value.name: documented(value.shape, declared_shape(about.get(value.name)))
            for value in self._session.get_outputs()
        }
        self._outputs = list(self._answers)
        states = declared_states(metadata.get("onward.states", ""))
        self._states = {
            name: out for name, out in states.items() if name in self._inputs.names and out in self._answers
        }
        self._samples_on = [sample_axis(about.get(name)) for name in self._outputs]
        self._run = self._session.run
        self._single_output = len(self._outputs) == 1

    def _open(self, serving: Serving | None, given: Sequence[Any] | None, strict: bool, session_options: Any) -> None:
        """Create the session, on the first provider that works."""
        target, main, available = self.origin["target"], self.path, sessions.available()
        serving = serving.here() if serving else None
        wanted = list(given or ()) or _preferred(serving, available)
        usable = [provider for provider in wanted if _name(provider) in available]
        if session_options is not None:  # they are ONNX Runtime's
            usable = [provider for provider in usable if _name(provider) != OPENVINO_NATIVE]
        if CPU not in map(_name, wanted):
            usable.append(CPU)
        reasons: dict[str, str] = {}
        if not usable:
            _onnxruntime(reasons)  # raises: nothing is installed that could run the model
        # An installed provider may fail to start (no device, no driver). ONNX Runtime then drops it without an error.
        # In that case, the next provider is tried, with the file and the options that won on it.
        for number, provider in enumerate(usable):
            name = _name(provider)
            self._served = serving.on(name) if serving else None
            self.path = main.parent / self._served.file if self._served else main
            options = (self._served.options if self._served else SessionOptions()).fitting_here()
            options = options.model_copy(update=self._overrides)
            if name == OPENVINO_NATIVE:
                try:
                    self._session = sessions.NativeSession(self.path, options)
                except Exception as error:  # OpenVINO's exceptions share no base but this
                    reasons[name] = error_text(error)
                    continue
                options = self._session.options
            else:
                together: list[Any] = usable[number:] if given else list(dict.fromkeys((name, CPU)))
                together = [one for one in together if _name(one) != OPENVINO_NATIVE]
                if self._served and isinstance(provider, str):
                    together[0] = options.to_provider(provider)
                native = session_options or options.to_onnxruntime()
                register(native, main.parent, serving.libraries if serving else [], self.allow_custom_ops)
                self._session = self._started(native, together, reasons)
            if self._served:
                self._served = self._served.model_copy(update={"options": options})
            if self._session.get_providers()[0] == name:
                break
        running = self._session.get_providers()
        requested = [_name(provider) for provider in wanted]
        # If the caller named no providers, only installed providers that come before the one in use count as missing,
        # unless the version was not measured on the one in use.
        if not given and (self._served or not serving):
            before = requested[: requested.index(running[0])] if running[0] in requested else requested
            requested = [name for name in before if name in available]
            if serving:
                _log_faster(target, serving, running[0], available)
        missing = [name for name in requested if name not in running]
        if missing and strict:
            raise _without(missing, available, reasons)
        if missing:
            warnings.warn(
                f"{target}: {', '.join(missing)} cannot be used here ({_why(missing, available, reasons)}); "
                f"the model runs on {running[0]}",
                ProviderFallback,
                stacklevel=4,
            )

    def _started(self, options: Any, providers: list[Any], reasons: Mapping[str, str]) -> Any:
        """An ONNX Runtime session. `reasons` say why other providers did not start."""
        target, runtime = self.origin["target"], _onnxruntime(reasons)
        preload([_name(provider) for provider in providers])
        try:
            return runtime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise UsageError(f"{target}: ONNX Runtime cannot load the model: {error_text(error)}") from error

    def predict(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the model once; see InferenceSession.predict.

        Args:
            args: the inputs by position, or one dict of inputs by name.
            kwargs: the inputs by name.
        """
        results = self._ran(self._inputs.feed(args, kwargs))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))

    def checked(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Convert the inputs of a prediction to arrays, and check them, without running the model.

        Args:
            given: the inputs by name.

        Raises:
            UsageError: as in InferenceSession.predict.
        """
        return self._inputs.feed((), given)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on inputs that `checked` returned.

        Args:
            feed: the array of each input, by name.

        Returns:
            all outputs by name.

        Raises:
            OnwardError: the runtime failed.
        """
        return dict(zip(self._outputs, self._ran(feed), strict=True))

    def joined(self, wanted: int) -> int:
        """The most samples that several requests may be joined to; 0 if they cannot be joined.

        They can if every output counts samples, predict_batches works with this version, and no other axis of an input
        or output depends on the number of samples (such as the similarities of all pairs, [batch, batch]).

        Args:
            wanted: the most samples that the caller wants. The result stays within the documented sizes.
        """
        known = self._inputs
        if self._no_batches or self._states or not known.sample_axes or None in self._samples_on:
            return 0
        shapes = [(spec.shape, spec.samples) for spec in known.all]
        shapes += zip(self._answers.values(), self._samples_on, strict=True)
        counted = {str(shape[axis]) for shape, axis in shapes if axis is not None and axis < len(shape)}
        rest = [str(size) for shape, axis in shapes for number, size in enumerate(shape) if number != axis]
        if any(re.search(rf"\b{re.escape(name)}\b", size) for name in counted - {"None"} for size in rest):
            return 0
        return known.batch(wanted)[1]

    def predict_batches(self, inputs: Any, batch_size: int) -> Any:
        """Run the model in batches; see InferenceSession.predict_batches.

        Args:
            inputs: an array, a dict, or a tuple or list of one array per input. The first axis counts samples,
            unless the model documents another one.
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
        elif len(known.required) == 1:
            given = known.by_name((), {known.required[0]: inputs})
        elif isinstance(inputs, (tuple, list)):
            given = known.by_name(tuple(inputs), {})
        else:
            raise UsageError(f"the model has {len(known.all)} inputs, not one; give a dict or a tuple of {known}")
        arrays = known.arrays(given)
        axes = known.sample_axes
        counts = {n: arrays[n].shape[axis] if arrays[n].ndim > axis else None for n, axis in axes.items()}
        total = next(iter(counts.values()), None)
        if total is None or len(set(counts.values())) != 1:
            described = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            where = (
                "first axis" if set(axes.values()) <= {0} else "axes " + ", ".join(f"{axes[n]} of {n}" for n in axes)
            )
            raise UsageError(f"the inputs differ in their number of samples ({where}): {described}")
        if total == 0:
            return self._empty(arrays)
        least, size = known.batch(batch_size)
        parts = [
            self._batch({name: part(array, axes.get(name), start, size) for name, array in arrays.items()}, least)
            for start in range(0, total, size)
        ]
        columns = zip(zip(*parts, strict=True), self._samples_on, strict=True)
        results = [np.concatenate(column, axis or 0) for column, axis in columns]
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

    def stream(self) -> Stream:
        """Start a sequence of steps; see InferenceSession.stream."""
        if not self._states:
            raise UsageError(
                f"{self.origin['target']}: the model documents no state; declare `states` in params.yaml, such as "
                "states: {state: stateN}, and release it again"
            )
        return Stream(self._inputs, self._outputs, self._states, self._ran)

    @property
    def states(self) -> dict[str, str]:
        """The output that continues each state, by the input's name."""
        return dict(self._states)

    @property
    def sample_axes(self) -> dict[str, int | None]:
        """The axis that counts samples of each input and output; None if it has none."""
        return {spec.name: spec.samples for spec in self._inputs.all} | dict(
            zip(self._outputs, self._samples_on, strict=True)
        )

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in the order of the graph."""
        return list(self._outputs)

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
        same.origin = dict(origin)
        same.evidence = same.origin.pop("evidence", {})
        return same

    def _ran(self, feed: Mapping[str, Array]) -> Any:
        """Run the session, and translate its errors."""
        try:
            return self._run(self._outputs, feed)
        except Exception as error:  # the runtimes' exceptions share no base but this
            target, text = self.origin["target"], error_text(error)
            runtime = OPENVINO_NATIVE if self.providers == [OPENVINO_NATIVE] else "ONNX Runtime"
            fault = self._inputs.fault(feed)
            if fault:
                raise UsageError(f"{target}: {fault}; {runtime} says: {text}") from error
            given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            if type(error).__name__ == "InvalidArgument" or isinstance(error, (TypeError, ValueError)):
                raise UsageError(f"{target}: {runtime} rejects {given or 'the call without inputs'}: {text}") from error
            raise MachineFault(f"{target}: {runtime} failed on {given or 'no inputs'}: {text}") from error

    def _batch(self, batch: dict[str, Array], least: int) -> list[Array]:
        """Run one batch. A batch of fewer than `least` samples is padded, and its outputs are cut to size again."""
        axes = self._inputs.sample_axes
        first = next(iter(axes))
        count = batch[first].shape[axes[first]]
        wanted = max(count, least)
        if count < wanted:
            index = np.minimum(np.arange(wanted), count - 1)  # repeats the last sample
            batch = {n: array if n not in axes else np.take(array, index, axes[n]) for n, array in batch.items()}
        if self._inputs.validate != "off":
            self._inputs.check_shapes(batch)
        outputs = self._ran(batch)
        for name, output, axis in zip(self._outputs, outputs, self._samples_on, strict=True):
            fits = isinstance(output, np.ndarray) and axis is not None and output.ndim > axis
            if not fits or output.shape[axis] != wanted:
                raise UsageError(f"output {name} does not have one row per sample; call predict for each batch instead")
        return [part(output, axis, 0, count) for output, axis in zip(outputs, self._samples_on, strict=True)]

    def _empty(self, arrays: dict[str, Array]) -> Any:
        """Empty outputs for zero samples."""
        sizes: dict[str, tuple[str, int]] = {}
        counted = {
            spec.name: spec.shape[spec.samples] for spec in self._inputs.all if spec.samples is not None and spec.shape
        }
        for spec in self._inputs.all:
            shape = list(arrays[spec.name].shape)
            if spec.name in counted and spec.samples is not None:
                first = counted[spec.name]
                shape[spec.samples] = first if isinstance(first, int) else 1
            spec.check_shape(tuple(shape), spec.shape, sizes)
        for name, first in counted.items():
            if isinstance(first, str):
                sizes[first] = (name, 0)
        results = []
        for value, axis in zip(self._session.get_outputs(), self._samples_on, strict=True):
            if axis is None:
                raise UsageError(f"output {value.name} does not have one row per sample; call predict instead")
            dims = self._answers[value.name]
            known = [dim if isinstance(dim, int) else sizes[dim][1] if dim in sizes else 0 for dim in dims]
            known[axis : axis + 1] = [0]
            results.append(np.empty(known, to_dtype(value.type)))
        return results[0] if self._single_output else dict(zip(self._outputs, results, strict=True))


def _name(provider: Any) -> str:
    """The name of a provider that is given as a name, or as a pair of name and options."""
    return provider if isinstance(provider, str) else str(provider[0])


def _preferred(serving: Serving | None, available: Sequence[str]) -> list[str]:
    """The providers to use if the caller names none: those of the version, else the CPU's.

    On a host without ONNX Runtime, OpenVINO itself runs a file.
    """
    if serving:
        return [served.provider for served in serving.root.values()]
    return [OPENVINO_NATIVE] if list(available) == [OPENVINO_NATIVE] else [CPU]


def _log_faster(target: str, serving: Serving, running: str, available: Sequence[str]) -> None:
    """Log the runtimes that were faster where the version was measured, but are not installed here."""
    for runtime, served in serving.root.items():
        if served.provider == running:
            return
        if served.provider not in available:
            _LOG.warning(
                "%s: %s was faster where this version was measured, but is not installed here%s; the model runs on %s",
                target, runtime, _hint(served.provider), running,
            )  # fmt: skip


def swept_batch(loaded: Loaded) -> int:
    """The batch size with the best throughput in the version's batch sweep; 0 if it has none."""
    text = str(loaded.evidence.get("best_batch", ""))
    return int(text) if text.isdecimal() else 0


def _checked_overrides(overrides: Mapping[str, Any], session_options: Any) -> dict[str, Any]:
    """Session options that replace those of the version.

    Raises:
        UsageError: There is no such option, or it cannot have this value.
    """
    if overrides and session_options is not None:
        raise UsageError(
            "give overrides or session_options, not both: an onnxruntime.SessionOptions replaces all options"
        )
    try:
        checked = SessionOptions.model_validate(dict(overrides))
    except ValidationError as error:
        raise UsageError(f"overrides: {first_problem(error)}") from None
    # A tuned affinity names processors for the tuned number of threads.
    dropped = {"affinity": None} if "threads" in overrides else {}
    return {**dropped, **{name: getattr(checked, name) for name in overrides}}


def _onnxruntime(reasons: Mapping[str, str]) -> Any:
    try:
        import onnxruntime
    except ImportError:
        others = "".join(f"; {name} does not start: {reason}" for name, reason in reasons.items())
        raise UsageError(
            f"ONNX Runtime is not installed: pip install 'onward[cpu]' (or [openvino], or [cuda]){others}"
        ) from None
    return onnxruntime


def _without(missing: list[str], available: list[str], reasons: Mapping[str, str]) -> UsageError:
    """The error for providers that cannot be used."""
    why = _why(missing, available, reasons)
    return UsageError(f"{', '.join(missing)} cannot be used here ({why}){_hint(missing[0])}")


def _why(missing: list[str], available: list[str], reasons: Mapping[str, str]) -> str:
    """Which providers are available, and why the missing ones did not start if that is known."""
    return "; ".join([f"available: {', '.join(available)}", *(reasons[name] for name in missing if name in reasons)])


def _hint(provider: str) -> str:
    """How to install a provider; "" if that is not known."""
    if provider == OPENVINO_NATIVE:
        return ": pip install 'onward[openvino-native]'"
    extra = {CUDA: "cuda", OPENVINO: "openvino"}.get(provider)
    return f"; install it with `pip install 'onward[{extra}]'` in a separate environment" if extra else ""


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
