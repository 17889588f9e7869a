"""Creates the session that serves a model: one of ONNX Runtime, or one of OpenVINO itself with the same methods."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onward.registry.artifact import onnx_file
from onward.registry.artifact.openvino_session import OpenvinoSession, precisions
from onward.registry.evidence.records import TensorSpec
from onward.registry.evidence.session_options import OPENVINO_NATIVE, SessionOptions

# The names of NumPy's dtypes in ONNX Runtime, where they differ.
_ELEMENTS = {"float32": "float", "float64": "double", "object": "string"}


def available() -> list[str]:
    """List what can run a model in this process: the providers of the installed ONNX Runtime, and OpenVINO itself."""
    found: list[str] = []
    try:
        import onnxruntime
    except ImportError:
        pass  # a service may have OpenVINO alone
    else:
        found += onnxruntime.get_available_providers()
    package = importlib.util.find_spec("openvino")
    # A folder with this name on the path is also found, as a namespace package without an origin.
    return [*found, OPENVINO_NATIVE] if package is not None and package.origin else found


class Value(NamedTuple):
    """An input or output, with the attributes that ONNX Runtime gives it."""

    name: str
    type: str
    shape: list[int | str | None]


class Metadata(NamedTuple):
    """The metadata of a graph, with the attribute that ONNX Runtime gives it."""

    custom_metadata_map: dict[str, str]


class NativeSession:
    """A session of OpenVINO itself, with the methods of onnxruntime.InferenceSession that Onward uses.

    Several threads may call `run` at the same time.

    Args:
        path: The .onnx file.
        options: The session options. A precision that this CPU does not compute natively is left out.

    Attributes:
        options: The session options in use.

    Raises:
        ImportError: The package openvino is not installed.
        RuntimeError: OpenVINO cannot read or compile the file.
    """

    def __init__(self, path: Path, options: SessionOptions) -> None:
        if options.precision is not None and options.precision not in precisions():
            options = options.model_copy(update={"precision": None})
        self.options = options
        self._session = OpenvinoSession(str(path), **options.to_native())
        self._graph = onnx_file.describe(path)

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Run the model once.

        Args:
            names: Names of the outputs to return; None for all.
            feed: Arrays by input name.
        """
        return self._session.run(names, feed)

    def get_inputs(self) -> list[Value]:
        """Describe the inputs as ONNX Runtime does."""
        return [_value(spec) for spec in self._graph.inputs]

    def get_outputs(self) -> list[Value]:
        """Describe the outputs as ONNX Runtime does."""
        return [_value(spec) for spec in self._graph.outputs]

    def get_modelmeta(self) -> Metadata:
        """Return the metadata of the graph."""
        return Metadata(self._graph.metadata)

    def get_providers(self) -> list[str]:
        """Name what runs the model: OpenVINO runs all of it."""
        return [OPENVINO_NATIVE]


def _value(spec: TensorSpec) -> Value:
    shape = [None if size == "?" else size for size in spec.shape]
    return Value(spec.name, f"tensor({_ELEMENTS.get(spec.dtype, spec.dtype)})", shape)
