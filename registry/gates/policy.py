"""What each environment asks for: the section `environments` of params.yaml, else Onward's own two.

environments:
  staging:    {from: candidate, require: [parity, quality, data]}
  production: {from: staging, require: [parity, quality, data, latency, replay]}
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from onward.registry import checkout, yaml_text
from onward.registry.errors import UsageError
from onward.registry.gates import builtin
from onward.registry.names import is_name
from onward.registry.text import one_line
from onward.registry.trust.entry_signatures import ReadSigner, is_public_key

CANDIDATE = "candidate"
DEFAULT = {
    "staging": {"from": CANDIDATE, "require": ["parity", "quality", "data"]},
    "production": {"from": "staging", "require": ["parity", "quality", "data", "latency", "replay"]},
}
SUITE = ".json"
# For a host without a checkout that is to know the signers all the same.
FILE = "ONWARD_PARAMS"
# The environments that MLflow's deprecated stages can stand for.
STAGES = {"staging": "Staging", "production": "Production"}
_Address = Annotated[str, Field(pattern=r"^(https?://\S+|\$[A-Za-z_]\w*)$")]


class Notify(BaseModel):
    """Who is told of every entry: a command (its words; the entry as JSON on stdin), a webhook (the same, posted), or a
    webhook of the MLflow server itself, in MLflow's own words. An address `$NAME` stands for the environment variable
    NAME, so that an address that is a secret stays out of git."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Annotated[list[str], Field(min_length=1)] | None = None
    webhook: _Address | None = None
    server_webhook: _Address | None = None

    @model_validator(mode="after")
    def _one(self) -> Notify:
        if len(self.model_fields_set) != 1 or None in (getattr(self, name) for name in self.model_fields_set):
            raise ValueError("give either command, webhook or server_webhook")
        return self


class Environment(BaseModel):
    """`source` is where a version has to be live before it may come here; `require` is what it has to meet: names of
    Onward's own gates, and paths of suites (registry/gates/expectations.py); `notify` is told of every entry;
    `mirror_stages` keeps MLflow's deprecated stage of the same name up to date; `four_eyes` asks for a second person
    (registry/gates/four_eyes.py); `signers` are the public keys, by name, of those whose entries count, each with
    `until` where somebody has left (registry/trust/entry_signatures.py); `files_key` is the
    file with the public key that a version's files have to be signed by (registry/trust/file_signatures.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(alias="from")
    require: list[str]
    notify: Notify | None = None
    mirror_stages: bool = False
    four_eyes: bool = False
    signers: dict[str, ReadSigner] = {}
    files_key: str = ""

    @property
    def named(self) -> list[str]:
        """The requirements that are Onward's own."""
        return [requirement for requirement in self.require if not requirement.endswith(SUITE)]

    @property
    def suites(self) -> list[str]:
        """The requirements that are a team's own suites."""
        return [requirement for requirement in self.require if requirement.endswith(SUITE)]


Policy = dict[str, Environment]


def home() -> Path:
    """The folder that paths in the policy are relative to: of the file that ONWARD_PARAMS names, else the checkout.

    Raises:
        UsageError: there is neither.
    """
    named = os.environ.get(FILE, "")
    return Path(named).resolve().parent if named else checkout.root()


def read() -> Policy:
    """The policy of the file that ONWARD_PARAMS names, else of the checkout that the command runs in, else the default.

    Raises:
        UsageError: the file cannot be read, or its `environments` are wrong; the message gives the path into it.
    """
    named = os.environ.get(FILE, "")
    try:
        path = Path(named) if named else checkout.root() / "params.yaml"
    except UsageError:  # a serving host has no checkout
        return parse(None)
    try:
        found = path.stat()
    except OSError as error:
        if named:
            raise UsageError(f"{FILE}: {named} cannot be read: {error.strerror}") from None
        return parse(None)
    return _read(path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int, size: int) -> Policy:
    """Every look at a log asks; the file is parsed again when it has changed."""
    return parse(_section(path))


def parse(section: Any) -> Policy:
    """Judge the section `environments`; None, where params.yaml has none, is the default.

    Raises:
        UsageError: an unknown key or requirement, a wrong type, a `from` that names no environment or runs in a circle.
    """
    if section is None:
        section = DEFAULT
    if not isinstance(section, Mapping) or not section:
        raise UsageError("params.yaml: environments: has to map names of environments to {from: ..., require: [...]}")
    policy: Policy = {}
    for name, value in section.items():
        if name == CANDIDATE:
            raise UsageError(
                f"params.yaml: environments.{name}: the name is taken: it stands for versions that are live nowhere"
            )
        if not isinstance(name, str) or not is_name(name):
            raise UsageError(f"params.yaml: environments.{name}: no name for an environment: letters, digits, - and _")
        policy[name] = _environment(name, value)
    for name in policy:
        _check_origin(policy, name)
    return policy


def environment(policy: Policy, name: str) -> Environment:
    """One environment of the policy.

    Raises:
        UsageError: there is no such one.
    """
    if name not in policy:
        raise UsageError(f"there is no environment {name!r}; params.yaml has {', '.join(policy)}")
    return policy[name]


def _section(path: Path) -> Any:
    import yaml

    try:
        content = yaml_text.load(path, yaml_text.parse) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date or a number that is none
        raise UsageError(f"{path.name}: is not YAML: {' '.join(str(error).split())}") from None
    return content.get("environments") if isinstance(content, dict) else None


def _environment(name: str, value: Any) -> Environment:
    try:
        found = Environment.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("environments", name, *first["loc"]))
        fields = Notify.model_fields if "notify" in first["loc"] else Environment.model_fields
        known = ", ".join(field.alias or key for key, field in fields.items())
        message = f"unknown key; there are {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise UsageError(f"params.yaml: {where}: {message}") from None
    if found.mirror_stages and name not in STAGES:
        raise UsageError(
            f"params.yaml: environments.{name}.mirror_stages: MLflow has stages for {' and '.join(STAGES)} alone"
        )
    if found.files_key:
        _check_inside(found.files_key, f"params.yaml: environments.{name}.files_key")
    for signer, said in found.signers.items():
        if not signer or signer != one_line(signer):
            raise UsageError(f"params.yaml: environments.{name}.signers: {signer!r} is no name: one line that shows")
        if not is_public_key(said.key):
            raise UsageError(
                f"params.yaml: environments.{name}.signers.{signer}: no public key as `onward keys create` prints it"
            )
    for position, requirement in enumerate(found.require):
        where = f"params.yaml: environments.{name}.require[{position}]"
        if requirement.endswith(SUITE):
            _check_inside(requirement, where)
        elif requirement not in builtin.REQUIREMENTS:
            raise UsageError(
                f"{where}: no requirement {requirement!r}; "
                f"there are {', '.join(builtin.REQUIREMENTS)}, and paths of suites ({SUITE})"
            )
    return found


def _check_inside(path: str, where: str) -> None:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UsageError(f"{where}: {path!r} must be a path inside the repository, relative to it")


def _check_origin(policy: Policy, name: str) -> None:
    seen = [name]
    while (origin := policy[seen[-1]].source) != CANDIDATE:
        if origin not in policy:
            raise UsageError(
                f"params.yaml: environments.{seen[-1]}.from: no environment {origin!r}, and not {CANDIDATE!r}"
            )
        if origin in seen:
            raise UsageError(
                f"params.yaml: environments.{name}.from: runs in a circle: {' from '.join([*seen, origin])}"
            )
        seen.append(origin)
