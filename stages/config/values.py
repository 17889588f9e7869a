"""The types of values in params.yaml, and the base class of its sections (schema.py)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from onward.registry.evidence import size_expressions

Size = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _known_type(value: Any) -> Any:
    if value == "bfloat16":
        raise ValueError("bfloat16: NumPy has no such type; declare float32, and cast in forward()")
    if value in ("string", "str", "object"):
        raise ValueError(
            f"{value}: texts cannot be compared within a tolerance; turn them into numbers before the model (by a "
            "tokenizer or an encoder), and leave that part out of the file"
        )
    return value


DTypeName = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
DType = Annotated[DTypeName, BeforeValidator(_known_type)]


def _callable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError(f"{value!r} is not of the form package.module:function")
    return value


def _repository_path(value: str) -> str:
    # The params stage refuses files outside the repository: the project may be a folder below its top.
    if Path(value).is_absolute():
        raise ValueError(f"{value!r} must be a path relative to params.yaml")
    return value


def _axis(value: int | str) -> int | str:
    if isinstance(value, int) and value < 1:
        raise ValueError(
            f"{value}: a fixed dimension must be at least 1; give a variable one a name and declare it under dims"
        )
    if isinstance(value, str) and not size_expressions.is_name(value):
        return _expression(value)
    return value


def _expression(value: str) -> str:
    text = size_expressions.normal(value)
    if not size_expressions.names(text):
        raise ValueError(f"{value!r} contains no dimension; write the number alone")
    return text


def _no_axis(value: Any) -> Any:
    return None if value == "none" else value


Expression = Annotated[str, AfterValidator(_expression)]
CallableName = Annotated[str, AfterValidator(_callable_name)]
RepositoryPath = Annotated[str, AfterValidator(_repository_path)]
Axis = Annotated[int | str, AfterValidator(_axis)]
SampleAxis = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_no_axis)]
# The largest size of a dimension that declares none: only a dimension of outputs alone may do so.
UNLIMITED = 2**31 - 1


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _library(value: str) -> str:
    return _callable_name(value) if ":" in value else _repository_path(value)


Library = Annotated[str, AfterValidator(_library)]


class Weights(Section):
    """The weights of a `build:` model. In params.yaml, a file name alone is enough.

    Attributes:
        file: A safetensors file, or a file of torch.save.
        key: Where the state dict is in the file: a key, keys joined by dots, or a list of keys.
        strip: A prefix that is removed from all names that begin with it.
        strict: Whether every name of the module must be in the file, and no other. If False, the report lists each
            parameter that keeps the values of build().
    """

    file: RepositoryPath
    key: str | list[str] | None = None
    strip: str = ""
    strict: bool = True


def _weights(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


Checkpoint = Annotated[Weights, BeforeValidator(_weights)]
