"""Triton's model configuration of a version.

Sources: Triton's documentation of the model configuration, and that of its ONNX Runtime backend for the parameters and
accelerators. `level` counts differently there: -1 is basic, 1 is extended, 2 is none, and without it all are on.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.registry.errors import Refused
from onward.registry.evidence.session_options import CPU, CUDA, OPENVINO, TENSORRT, SessionOptions
from onward.registry.other_servers.batching import Batching
from onward.registry.other_servers.exported import Exported, Tensor
from onward.registry.other_servers.text_format import Field, Message, Symbol

DTYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16", "string": "STRING", "object": "STRING",
}  # fmt: skip
_LEVELS = {"basic": -1, "extended": 1, "disabled": 2}
_ACCELERATORS = {CUDA: ("gpu", "cuda"), TENSORRT: ("gpu", "tensorrt"), OPENVINO: ("cpu", "openvino")}


def config(version: Exported, batching: Batching, warm_up: Sequence[tuple[Tensor, Sequence[int], str]]) -> Message:
    """The configuration, as a ModelConfig message.

    Args:
        version: the version.
        batching: whether requests are joined.
        warm_up: for each input its tensor, the shape of its recorded values, and the name of their file.

    Raises:
        Refused: an input or output has a type that Triton does not have.
    """
    batched = batching.most > 0
    message: list[Field] = [
        ("name", version.name),
        ("platform", "onnxruntime_onnx"),
        ("backend", "onnxruntime"),
        ("default_model_filename", version.files[0].name),
        ("version_policy", [("specific", [("versions", version.version)])]),
        ("max_batch_size", batching.most),
        *(("input", _tensor(tensor, batched)) for tensor in version.inputs),
        *(("output", _tensor(tensor, batched)) for tensor in version.outputs),
        ("instance_group", [("count", 1), ("kind", Symbol(_kind(version.served.provider)))]),
    ]
    if optimization := _optimization(version.served.provider, version.served.options):
        message.append(("optimization", optimization))
    if batching.preferred:
        sizes = [("preferred_batch_size", size) for size in batching.preferred]
        message.append(("dynamic_batching", [*sizes, ("max_queue_delay_microseconds", batching.delay_us)]))
    message += [
        ("parameters", [("key", key), ("value", [("string_value", value)])])
        for key, value in _parameters(version.served.options).items()
    ]
    if warm_up:
        inputs = [("inputs", _warm_up(*one)) for one in warm_up]
        message.append(("model_warmup", [("name", "recorded inputs"), ("batch_size", 1), *inputs]))
    return message


def left_out(version: Exported) -> list[str]:
    """The options that Triton's ONNX Runtime backend cannot set, as sentences.

    Args:
        version: the version.
    """
    options, provider = version.served.options, version.served.provider
    found = []
    if options.spinning is not None:
        found.append(f"Triton cannot set allow_spinning; the version was measured with {int(options.spinning)}")
    if options.affinity is not None:
        found.append("Triton cannot set the processors of threads, which the version was measured with")
    if provider == OPENVINO:
        found.append(
            f"Triton cannot set OpenVINO's precision; the version was measured in {options.precision or 'float32'}, "
            "and OpenVINO's default is bfloat16 on processors that have it"
        )
    return found


def triton_type(tensor: Tensor) -> str:
    """Triton's name of a tensor's type, such as FP32.

    Raises:
        Refused: Triton does not have the type.
    """
    if tensor.dtype not in DTYPES:
        raise Refused(f"{tensor.name} has type {tensor.dtype}, which Triton does not have")
    return DTYPES[tensor.dtype]


def _tensor(tensor: Tensor, batched: bool) -> Message:
    """An input or output. Triton has no tensors without dimensions, so such a tensor is given a dimension of 1."""
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape][batched:]
    fields: list[Field] = [
        ("name", tensor.name),
        ("data_type", Symbol(f"TYPE_{triton_type(tensor)}")),
        *(("dims", size) for size in shape or [1]),
    ]
    return fields if shape else [*fields, ("reshape", [])]


def _kind(provider: str) -> str:
    return "KIND_GPU" if provider in (CUDA, TENSORRT) else "KIND_CPU"


def _optimization(provider: str, options: SessionOptions) -> Message:
    found: list[Field] = []
    if options.graph_level in _LEVELS:
        found.append(("graph", [("level", _LEVELS[options.graph_level])]))
    if provider != CPU:
        place, name = _ACCELERATORS[provider]
        accelerator: list[Field] = [("name", name)]
        if provider == CUDA:
            settings = {"use_tf32": str(int(bool(options.tf32)))}
            settings |= {} if options.nhwc is None else {"prefer_nhwc": str(int(options.nhwc))}
            accelerator += [("parameters", [("key", key), ("value", value)]) for key, value in settings.items()]
        found.append(("execution_accelerators", [(f"{place}_execution_accelerator", accelerator)]))
    return found


def _parameters(options: SessionOptions) -> dict[str, str]:
    found = {}
    if options.threads is not None:
        found["intra_op_thread_count"] = str(options.threads)
    if options.execution_mode is not None:
        found["execution_mode"] = str(int(options.execution_mode == "parallel"))
    if options.arena is not None:
        found["enable_mem_arena"] = str(int(options.arena))
    if options.memory_pattern is not None:
        found["enable_mem_pattern"] = str(int(options.memory_pattern))
    return found


def _warm_up(tensor: Tensor, shape: Sequence[int], file: str) -> Message:
    dims: list[Field] = [("dims", size) for size in shape or [1]]
    value: list[Field] = [("data_type", Symbol(f"TYPE_{triton_type(tensor)}")), *dims, ("input_data_file", file)]
    return [("key", tensor.name), ("value", value)]
