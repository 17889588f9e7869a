"""Runs an ONNX file with OpenVINO itself, without ONNX Runtime.

This file is stand-alone: it needs numpy and openvino, and no other module of Onward. A service imports it, and
stages/workers/openvino_worker.py loads it in the environment of the runtime `openvino-native`. So what is measured is
what is served.

On a CPU with AMX or AVX512_BF16, OpenVINO computes in bfloat16 by default. So the precision is always set explicitly.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

DEVICE = "CPU"
# Values of INFERENCE_PRECISION_HINT and of OPTIMIZATION_CAPABILITIES, by precision.
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
# The names of OpenVINO's element types in ONNX Runtime's notation, where they differ from NumPy's.
_ELEMENTS = {"f32": "float", "f64": "double", "boolean": "bool", "f16": "float16", "bf16": "bfloat16"}


def properties(
    threads: int | None = None, streams: int | None = None, precision: str | None = None, performance: str | None = None
) -> dict[str, Any]:
    """Convert session options to OpenVINO's properties of a compiled model.

    Args:
        threads: The number of threads; None for OpenVINO's default, one for each physical core.
        streams: The number of requests that run at the same time; None for the number that `performance` implies.
        precision: "bfloat16" or "float16"; None for float32.
        performance: "latency" or "throughput"; None for latency.
    """
    found: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[precision or "float32"],
        "PERFORMANCE_HINT": (performance or "latency").upper(),
    }
    if threads is not None:
        found |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True}
    if streams is not None:
        found["NUM_STREAMS"] = streams
    return found


def precisions() -> list[str]:
    """List the lower precisions that this CPU computes natively, by the plug-in's own account."""
    import openvino

    able = openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return [precision for precision, capability in CAPABILITIES.items() if capability in able]


class OpenvinoSession:
    """A compiled model. Several threads may call `run` at the same time.

    Args:
        path: The .onnx file.
        options: The arguments of `properties`.

    Attributes:
        inputs: Name, type in ONNX Runtime's notation, and shape of each input; None for a size that varies.
        outputs: The same of each output.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the file, or does not compute in the requested precision here.
    """

    def __init__(self, path: str, **options: Any) -> None:
        import openvino

        self._tensor = openvino.Tensor
        core, wanted = openvino.Core(), properties(**options)
        self.model = core.compile_model(core.read_model(path), DEVICE, wanted)
        used = self.model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != wanted["INFERENCE_PRECISION_HINT"]:
            raise RuntimeError(f"OpenVINO does not compute in {options.get('precision') or 'float32'} on this CPU")
        self.inputs, self.outputs = map(_described, (self.model.inputs, self.model.outputs))
        self._places = {name: place for place, port in enumerate(self.model.inputs) for name in port.get_names()}
        self._results = {name: place for place, port in enumerate(self.model.outputs) for name in port.get_names()}
        # A request runs one call at a time. Threads take one each and put it back.
        self._idle: collections.deque[Any] = collections.deque()

    def run(self, names: Sequence[str] | None, feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run the model once.

        Args:
            names: Names of the outputs to return; None for all, in the order of the graph.
            feed: Arrays by input name.

        Raises:
            ValueError: An input is missing or unknown.
            RuntimeError: OpenVINO rejects the inputs, or fails.
        """
        if feed.keys() != self._places.keys():
            raise ValueError(f"the inputs are {', '.join(self._places)}, not {', '.join(feed) or 'none'}")
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.model.create_infer_request()
        for name, array in feed.items():
            # Shared memory saves a copy; it must be contiguous and writable.
            shares = array.flags.c_contiguous and array.flags.writeable
            request.set_input_tensor(self._places[name], self._tensor(array, shared_memory=bool(shares)))
        request.infer()
        places = range(len(self.outputs)) if names is None else [self._results[name] for name in names]
        found = [np.array(request.get_output_tensor(place).data) for place in places]
        self._idle.append(request)
        return found

    def operations(self) -> int:
        """Number of operations of the compiled model, without constants, inputs and outputs."""
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in self.model.get_runtime_model().get_ops()]
        return sum(kind not in ("Const", "Input", "Output") for kind in kinds)


def _described(ports: Sequence[Any]) -> list[tuple[str, str, list[int | None]]]:
    found = []
    for port in ports:
        element = port.get_element_type().get_type_name()
        kind = _ELEMENTS.get(element) or re.sub(
            r"^([ui])(?=\d)", lambda sign: {"u": "uint", "i": "int"}[sign[1]], element
        )
        shape = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        found.append((port.get_any_name(), f"tensor({kind})", shape))
    return found
