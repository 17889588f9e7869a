"""The policy: what each environment requires, from the section `environments` of params.yaml.

Without this section, the policy is:

environments:
  staging:    {from: candidate, require: [parity, quality, data]}
  production: {from: staging, require: [parity, quality, data, latency, replay]}
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from onward.registry import checkout, yaml_text
from onward.registry.errors import UsageError
from onward.registry.evidence.shadow import MINIMUM
from onward.registry.gates import builtin
from onward.registry.names import NAME_RULE, is_name
from onward.registry.text import one_line
from onward.registry.trust.entry_signatures import ReadSigner, is_public_key

CANDIDATE = "candidate"
DEFAULT = {
    "staging": {"from": CANDIDATE, "require": ["parity", "quality", "data"]},
    "production": {"from": "staging", "require": ["parity", "quality", "data", "latency", "replay"]},
}
SUITE = ".json"
# The variable that names a params.yaml, for a host that needs the signers but has no checkout.
FILE = "ONWARD_PARAMS"
# MLflow's deprecated stages, by the environment that each can represent.
STAGES = {"staging": "Staging", "production": "Production"}
_Address = Annotated[str, Field(pattern=r"^(https?://\S+|\$[A-Za-z_]\w*)$")]


class Notify(BaseModel):
    """The receiver of notifications about entries: exactly one of three.

    An address `$NAME` is read from the environment variable NAME, so that a secret address stays out of git.

    Attributes:
        command: A command and its arguments. It receives the entry as JSON on stdin.
        webhook: An address to which the entry is posted as JSON.
        server_webhook: An address to which the MLflow server itself posts, in MLflow's format.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Annotated[list[str], Field(min_length=1)] | None = None
    webhook: _Address | None = None
    server_webhook: _Address | None = None

    @model_validator(mode="after")
    def _one(self) -> Notify:
        if len(self.model_fields_set) != 1 or None in (getattr(self, name) for name in self.model_fields_set):
            raise ValueError("give either command, webhook or server_webhook")
        return self


# Alarms on which a rollback is refused, and the reason.
_NO_ROLLBACK = {
    "input_drift": "the version before would receive the same inputs",
    "output_drift": "outputs also change if the inputs do, and the version before would receive the same inputs",
    "shadow": "a disagreement does not say which of the two versions is wrong",
}


class OnDecay(BaseModel):
    """What the monitor does about each kind of alarm (registry/watch/response.py).

    `alert` shows the alarm, `rollback` also deploys the version before, `ignore` judges nothing.

    Attributes:
        errors: The version fails more often than the one before.
        rejections: It rejects more requests as invalid than the one before.
        latency: It answers more slowly than it was measured to, or than in its first hour.
        shadow: A candidate in shadow traffic disagrees with the live version.
        input_drift: The inputs differ from those that the version was published with.
        output_drift: The outputs do.
        cooldown_hours: For this many hours after an automatic rollback there is no further one.
        paused: Whether automatic rollbacks are switched off. Alarms are still shown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    errors: Literal["rollback", "alert", "ignore"] = "alert"
    rejections: Literal["rollback", "alert", "ignore"] = "alert"
    latency: Literal["rollback", "alert", "ignore"] = "alert"
    shadow: Literal["alert", "ignore"] = "alert"
    input_drift: Literal["alert", "ignore"] = "alert"
    output_drift: Literal["alert", "ignore"] = "alert"
    cooldown_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 24.0
    paused: bool = False

    @field_validator(*_NO_ROLLBACK, mode="before")
    @classmethod
    def _no_rollback(cls, value: Any, info: ValidationInfo) -> Any:
        if value == "rollback":
            raise ValueError(f"no rollback is possible: {_NO_ROLLBACK[str(info.field_name)]}; write alert or ignore")
        return value


class Environment(BaseModel):
    """The requirements of one environment.

    Attributes:
        source: The environment in which a version must be live before it can be promoted to this one (`from` in
            params.yaml).
        require: What a version must meet: names of Onward's own gates, and paths of suites
            (registry/gates/expectations.py).
        notify: The receiver of notifications about every entry.
        mirror_stages: Whether MLflow's deprecated stage of the same name is kept up to date.
        four_eyes: Whether a second person must take part (registry/gates/four_eyes.py).
        signers: By name, the persons whose entries count (registry/trust/entry_signatures.py).
        files_key: The file with the public key for the signatures of a version's files
            (registry/trust/file_signatures.py); empty if signatures are not required.
        shadow_requests: The number of requests that `shadow` requires (registry/gates/shadow.py).
        on_decay: What the monitor does about alarms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(alias="from")
    require: list[str]
    notify: Notify | None = None
    mirror_stages: bool = False
    four_eyes: bool = False
    signers: dict[str, ReadSigner] = {}
    files_key: str = ""
    shadow_requests: Annotated[int, Field(ge=1)] = MINIMUM
    on_decay: OnDecay = OnDecay()

    @property
    def named(self) -> list[str]:
        """The requirements that are Onward's own gates."""
        return [requirement for requirement in self.require if not requirement.endswith(SUITE)]

    @property
    def suites(self) -> list[str]:
        """The requirements that are a team's own suites."""
        return [requirement for requirement in self.require if requirement.endswith(SUITE)]


Policy = dict[str, Environment]


def home() -> Path:
    """Locate the folder that paths in the policy are relative to.

    Returns:
        The folder of the file that ONWARD_PARAMS names, else the project's folder.

    Raises:
        UsageError: ONWARD_PARAMS is not set, and there is no project.
    """
    named = os.environ.get(FILE, "")
    return Path(named).resolve().parent if named else checkout.root()


def read() -> Policy:
    """Read the policy.

    Returns:
        The policy in the file that ONWARD_PARAMS names, else in the project's params.yaml, else the default.

    Raises:
        UsageError: The file cannot be read, or its `environments` are wrong; the message contains the path to the key.
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
    """Parse a file, or return the cached policy if it has not changed: every reading of a log needs the policy."""
    return parse(_section(path))


def parse(section: Any) -> Policy:
    """Check the section `environments` and convert it to a policy.

    Args:
        section: The section; None for the default policy.

    Returns:
        The environments by name.

    Raises:
        UsageError: A key or requirement is unknown, a type is wrong, or `from` names no environment or forms a cycle.
    """
    if section is None:
        section = DEFAULT
    if not isinstance(section, Mapping) or not section:
        raise UsageError("params.yaml: environments: has to map names of environments to {from: ..., require: [...]}")
    policy: Policy = {}
    for name, value in section.items():
        if name == CANDIDATE:
            raise UsageError(
                f"params.yaml: environments.{name}: this name is reserved for versions that are not live anywhere"
            )
        if not isinstance(name, str) or not is_name(name):
            raise UsageError(f"params.yaml: environments.{name}: not a valid name for an environment: {NAME_RULE}")
        policy[name] = _environment(name, value)
    for name in policy:
        _check_origin(policy, name)
    return policy


def environment(policy: Policy, name: str) -> Environment:
    """Find an environment of the policy.

    Args:
        policy: The policy.
        name: The environment's name.

    Returns:
        The environment's requirements.

    Raises:
        UsageError: The policy has no such environment.
    """
    if name not in policy:
        raise UsageError(f"there is no environment {name!r}; params.yaml has {', '.join(policy)}")
    return policy[name]


def _section(path: Path) -> Any:
    import yaml

    try:
        content = yaml_text.load(path, yaml_text.parse) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
        raise UsageError(f"{path.name}: is not YAML: {' '.join(str(error).split())}") from None
    return content.get("environments") if isinstance(content, dict) else None


def _environment(name: str, value: Any) -> Environment:
    try:
        found = Environment.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("environments", name, *first["loc"]))
        sections: dict[Any, type[BaseModel]] = {"notify": Notify, "on_decay": OnDecay}
        section = next((sections[key] for key in first["loc"] if key in sections), Environment)
        fields = section.model_fields
        known = ", ".join(field.alias or key for key, field in fields.items())
        message = (
            f"unknown key; there are {known}"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        raise UsageError(f"params.yaml: {where}: {message}") from None
    if found.mirror_stages and name not in STAGES:
        raise UsageError(
            f"params.yaml: environments.{name}.mirror_stages: MLflow has stages for {' and '.join(STAGES)} only"
        )
    if found.files_key:
        _check_inside(found.files_key, f"params.yaml: environments.{name}.files_key")
    for signer, entry in found.signers.items():
        if not signer or signer != one_line(signer):
            raise UsageError(
                f"params.yaml: environments.{name}.signers: {signer!r} is not a valid name: use one line of text"
            )
        if not is_public_key(entry.key):
            raise UsageError(
                f"params.yaml: environments.{name}.signers.{signer}: not a public key; `onward keys create` prints one"
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
                f"params.yaml: environments.{seen[-1]}.from: no environment {origin!r}; name one, or {CANDIDATE!r}"
            )
        if origin in seen:
            raise UsageError(f"params.yaml: environments.{name}.from: forms a cycle: {' from '.join([*seen, origin])}")
        seen.append(origin)
