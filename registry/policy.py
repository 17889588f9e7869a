"""What each environment asks for: the section `environments` of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from registry.connection import checkout
from registry.errors import UsageError

Requirement = Literal["parity", "quality", "data", "latency", "replay"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]

CANDIDATE = "candidate"


class Environment(BaseModel):
    """`from_` is the environment whose live version may be promoted here, or `candidate` for any registered version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: str = Field(alias="from")
    require: list[Requirement] = []


DEFAULT: dict[str, Any] = {
    "staging": {"from": CANDIDATE, "require": ["parity", "quality", "data"]},
    "production": {"from": "staging", "require": ["parity", "quality", "data", "latency", "replay"]},
}

_environments = TypeAdapter(dict[Name, Environment])


def parse(raw: object) -> dict[str, Environment]:
    """The environments by name; staging and production where params.yaml names none.

    Raises:
        UsageError: one line for each mistake, with the path into params.yaml.
    """
    try:
        found = _environments.validate_python(DEFAULT if raw is None else raw)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            where = ".".join(str(part) for part in item["loc"] if part != "[key]")
            what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            lines.append(f"params.yaml: environments{'.' if where else ''}{where}: {what}")
        raise UsageError("\n".join(dict.fromkeys(lines))) from None
    for name, environment in found.items():
        if name == CANDIDATE:
            raise UsageError(f"params.yaml: environments.{name}: every registered version is a candidate already")
        if environment.from_ != CANDIDATE and (environment.from_ not in found or environment.from_ == name):
            raise UsageError(f"params.yaml: environments.{name}.from: there is no environment {environment.from_!r}")
    return found


def environments() -> dict[str, Environment]:
    """The environments of the checkout one stands in; outside of one, staging and production."""
    try:
        path: Path = checkout() / "params.yaml"
    except UsageError:
        return parse(None)
    import yaml

    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"params.yaml: cannot be read: {str(error).splitlines()[0]}") from None
    return parse(raw.get("environments") if isinstance(raw, dict) else None)
