"""The messages of the Open Inference Protocol over gRPC, built from a table of fields.

    request = MESSAGES["ModelInferRequest"]()

Names and numbers of fields are those of the protocol's specification (service inference.GRPCInferenceService), because
they are the format on the wire.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelInfer")

# Per message: its fields as "TYPE NAME NUMBER". "*" repeats a type, "map" has strings as keys, and "|" is a choice.
_FIELDS: dict[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ModelReadyRequest": "string name 1, string version 2",
    "ModelReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name 1, string version 2, *string extensions 3",
    "ModelMetadataRequest": "string name 1, string version 2",
    "ModelMetadataResponse.TensorMetadata": "string name 1, string datatype 2, *int64 shape 3",
    "ModelMetadataResponse": (
        "string name 1, *string versions 2, string platform 3, *ModelMetadataResponse.TensorMetadata inputs 4, "
        "*ModelMetadataResponse.TensorMetadata outputs 5"
    ),
    # Triton's extension: only the fields that a client needs to build a request.
    "ModelInput": "string name 1, int32 data_type 2, *int64 dims 4",
    "ModelOutput": "string name 1, int32 data_type 2, *int64 dims 3",
    "ModelConfig": (
        "string name 1, string platform 2, int32 max_batch_size 4, *ModelInput input 5, *ModelOutput output 6"
    ),
    "ModelConfigRequest": "string name 1, string version 2",
    "ModelConfigResponse": "ModelConfig config 1",
    "InferParameter": (
        "|bool bool_param 1, |int64 int64_param 2, |string string_param 3, |double double_param 4, "
        "|uint64 uint64_param 5"
    ),
    "InferTensorContents": (
        "*bool bool_contents 1, *int32 int_contents 2, *int64 int64_contents 3, *uint32 uint_contents 4, "
        "*uint64 uint64_contents 5, *float fp32_contents 6, *double fp64_contents 7, *bytes bytes_contents 8"
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name 1, string datatype 2, *int64 shape 3, map InferParameter parameters 4, "
        "InferTensorContents contents 5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "string name 1, map InferParameter parameters 2",
    "ModelInferRequest": (
        "string model_name 1, string model_version 2, string id 3, map InferParameter parameters 4, "
        "*ModelInferRequest.InferInputTensor inputs 5, *ModelInferRequest.InferRequestedOutputTensor outputs 6, "
        "*bytes raw_input_contents 7"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name 1, string datatype 2, *int64 shape 3, map InferParameter parameters 4, "
        "InferTensorContents contents 5"
    ),
    "ModelInferResponse": (
        "string model_name 1, string model_version 2, string id 3, map InferParameter parameters 4, "
        "*ModelInferResponse.InferOutputTensor outputs 5, *bytes raw_output_contents 6"
    ),
}
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES, "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64, "uint32": _Field.TYPE_UINT32, "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT, "double": _Field.TYPE_DOUBLE,
}  # fmt: skip


def _messages() -> dict[str, Any]:
    """The class of each message, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="onward/inference.proto", package=PACKAGE, syntax="proto3")
    for name in sorted(_FIELDS, key=lambda name: name.count(".")):
        parent, _, own = name.rpartition(".")
        (_find(file, parent).nested_type if parent else file.message_type).add(name=own)
    for name, fields in _FIELDS.items():
        _fill(_find(file, name), name, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _FIELDS}


def _find(file: descriptor_pb2.FileDescriptorProto, name: str) -> descriptor_pb2.DescriptorProto:
    parent, _, own = name.rpartition(".")
    messages = _find(file, parent).nested_type if parent else file.message_type
    return next(message for message in messages if message.name == own)


def _fill(message: descriptor_pb2.DescriptorProto, path: str, fields: str) -> None:
    for text in filter(None, fields.split(", ")):
        *kind, name, number = text.split()
        field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
        if kind[0] == "map":
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
            value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL)
            _type(value, kind[1])
            field.label = _Field.LABEL_REPEATED
            _type(field, f"{path}.{entry.name}")
            continue
        if kind[0].startswith("*"):
            field.label = _Field.LABEL_REPEATED
        elif kind[0].startswith("|"):
            if not message.oneof_decl:
                message.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0
        _type(field, kind[0].lstrip("*|"))


def _type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


MESSAGES = _messages()
