"""Whether the files of a version carry the signature that an environment asks for (`files_key` in params.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onward.registry.errors import Refused
from onward.registry.gates import policy
from onward.registry.trust.file_signatures import TAG, verify


def require(folder: Path, evidence: Mapping[str, str], environment: str) -> None:
    """Check the signature of what is, or is to be, live in an environment, where its policy has a `files_key`.

    Raises:
        Refused: there is no signature, or it does not hold.
        UsageError: as verify.
    """
    wanted = policy.read().get(environment)
    if wanted is None or not wanted.files_key:
        return
    if TAG not in evidence:
        raise Refused(
            f"the files are not signed, and {environment} takes none that are not: "
            "`onward sign-files MODEL VERSION --key FILE`"
        )
    verify(folder, evidence[TAG], policy.home() / wanted.files_key)
