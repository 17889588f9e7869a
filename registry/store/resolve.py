"""Resolve a target such as `cnn@production` (the version that is live there) or `cnn/3` (version 3).

resolve("cnn@production").sha256
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onward.registry.errors import Refused, UsageError
from onward.registry.gates import policy
from onward.registry.names import valid_name
from onward.registry.store.schema import RegisteredVersion, registered_name
from onward.registry.store.store import Store


@dataclass(frozen=True)
class Target:
    """A version, resolved from `MODEL@ENV` or `MODEL/VERSION`.

    Attributes:
        model: the model's name.
        version: the version's number.
        sha256: the digest of the model's files.
        source: the models:/ URI of the files.
        manifest: the digest of all files; "" if an older Onward pinned only the model's files.
        environment: the environment; "" for `MODEL/VERSION`.
        entry: the number of the log entry that deployed it; 0 for `MODEL/VERSION`.
        evidence: what was measured of the version.
        alarm: a message for each log row after the live entry that is not proven.
    """

    model: str
    version: int
    sha256: str
    source: str
    manifest: str = ""
    environment: str = ""
    entry: int = 0
    evidence: Mapping[str, str] = field(default_factory=dict)
    alarm: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model}@{self.environment}" if self.environment else f"{self.model}/{self.version}"


def resolve(target: str, store: Store | None = None) -> Target:
    """Find the version that a target names.

    Args:
        target: `MODEL@ENV` for the version that is live there, or `MODEL/VERSION`.
        store: the store to look in; None for the store in use.

    Raises:
        UsageError: the target has another form, or there is no such model, version or environment.
        Refused: nothing is live in the environment, or Onward did not publish the version.
    """
    model, at, environment = target.partition("@")
    if at:
        valid_name(model, "a model")
        policy.environment(policy.read(), environment)
        store = store or Store(create=False, direct=True)
        log = store.head(environment, model)
        live = log.history.live
        log.require_known(registered_name(environment, model))
        if live is None:
            require_model(store, model)
            unsigned = f" ({len(log.unproven)} entries do not count: no signer signed them)" if log.unproven else ""
            raise Refused(
                f"nothing is live in {environment} of {model}{unsigned}: deploy a version with "
                f"`onward promote {model} --to {environment}`"
            )
        return Target(
            model,
            live.candidate_version,
            live.sha256,
            live.source,
            live.manifest,
            environment,
            live.number,
            dict(live.evidence),
            log.alarm,
        )
    model, slash, version = target.partition("/")
    if not slash or not version.isdecimal():
        raise UsageError(f"{target!r} is not a target: give MODEL@ENVIRONMENT, MODEL/VERSION, or an .onnx file")
    valid_name(model, "a model")
    found = find_candidate(store or Store(create=False, direct=True), model, int(version))
    return Target(model, found.version, found.sha256, found.source, found.manifest, evidence=found.evidence)


def find_candidate(store: Store, model: str, version: int) -> RegisteredVersion:
    """Find one version that Onward published.

    Args:
        store: the store to look in.
        model: the model's name.
        version: the version's number.

    Raises:
        UsageError: there is no such model or version.
        Refused: Onward did not publish it.
    """
    found = store.candidate(model, version) if 0 < version < 2**31 else None
    if found is None:
        require_model(store, model)
        raise UsageError(f"there is no version {version} of {model}: `onward status` lists the registered models")
    if not found.sha256:
        raise Refused(
            f"{model} version {version} has no sha256: Onward did not publish it, so its files cannot be checked"
        )
    return found


def require_model(store: Store, model: str) -> None:
    """Check that a model has at least one version.

    Args:
        store: the store to look in.
        model: the model's name.

    Raises:
        UsageError: it has none.
    """
    if next(store.candidates(model), None) is None:
        raise no_version(model)


def no_version(model: str) -> UsageError:
    """The error for a model that has no version."""
    return UsageError(
        f"there is no version of {model!r}: `dvc repro` registers models, and `onward status` lists the registered ones"
    )
