"""Checks the signature that an environment requires of a version's files (`files_key` in params.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onward.registry.errors import Refused
from onward.registry.gates import policy
from onward.registry.trust.file_signatures import TAG, verify


def require(folder: Path, evidence: Mapping[str, str], environment: str) -> None:
    """Check the signature of a version's files if the environment has a `files_key`.

    Args:
        folder: The version's files.
        evidence: The version's tags, which include the signature.
        environment: The environment in which the version is live, or is to become live.

    Raises:
        Refused: The signature is missing or not valid.
        UsageError: As `file_signatures.verify`.
    """
    wanted = policy.read().get(environment)
    if wanted is None or not wanted.files_key:
        return
    if TAG not in evidence:
        raise Refused(
            f"the files are not signed, but {environment} requires signed files: "
            "run `onward sign-files MODEL VERSION --key FILE`"
        )
    verify(folder, evidence[TAG], policy.home() / wanted.files_key)
