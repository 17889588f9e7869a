"""What a target such as `cnn@production` (what is live there) or `cnn/3` (a version) names.

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
    """What `MODEL@ENV` or `MODEL/VERSION` names: its bytes' digests and where they are; `manifest` is "" where an older
    Onward pinned the model files alone. `alarm` is what the log of the environment holds after the last entry that is
    proven, in words."""

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
    """What `cnn@production` (what is live there) or `cnn/3` (a version) names.

    Raises:
        UsageError: it is neither, or there is no such model, version or environment.
        Refused: nothing is live there, or the version was not published by Onward.
    """
    model, at, environment = target.partition("@")
    if at:
        valid_name(model, "a model")
        policy.environment(policy.read(), environment)
        store = store or Store(create=False)
        log = store.head(environment, model)
        live = log.history.live
        log.require_known(registered_name(environment, model))
        if live is None:
            require_model(store, model)
            unsigned = (
                f" ({len(log.unproven)} entries count for nothing: no signer signed them)" if log.unproven else ""
            )
            raise Refused(
                f"nothing is live in {environment} of {model}{unsigned}; `onward promote {model} --to {environment}`"
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
        raise UsageError(f"{target!r} names nothing: give MODEL@ENVIRONMENT, MODEL/VERSION, or an .onnx file")
    valid_name(model, "a model")
    found = find_candidate(store or Store(create=False), model, int(version))
    return Target(model, found.version, found.sha256, found.source, found.manifest, evidence=found.evidence)


def find_candidate(store: Store, model: str, version: int) -> RegisteredVersion:
    """One version that Onward published.

    Raises:
        UsageError: there is no such model or version.
        Refused: Onward did not publish it.
    """
    found = store.candidate(model, version) if 0 < version < 2**31 else None
    if found is None:
        require_model(store, model)
        raise UsageError(f"there is no version {version} of {model}; `onward status` shows what there is")
    if not found.sha256:
        raise Refused(f"{model} version {version} has no sha256: it was not published by Onward, and cannot be checked")
    return found


def require_model(store: Store, model: str) -> None:
    """Raise UsageError where nothing is known of `model`."""
    if next(store.candidates(model), None) is None:
        raise UsageError(
            f"there is no version of {model!r}: `dvc repro` registers one, `onward status` shows what there is"
        )
