"""Native libraries with custom operators, which some models need. They are part of a version, in custom_ops/.

Loading such a library runs its code in the process that loads it, with all rights of that process. So it is refused
unless the host or the caller allows it (docs/decisions/0059).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onward.registry.errors import Refused, UsageError
from onward.registry.switches import is_on

FOLDER = "custom_ops"
# Set this variable to 1 on a host that may load the native libraries of versions.
ALLOW = "ONWARD_ALLOW_CUSTOM_OPS"


def register(options: Any, folder: Path, libraries: Sequence[str], allowed: bool = False) -> None:
    """Register a version's libraries with a session's options.

    Args:
        options: An onnxruntime.SessionOptions.
        folder: The version's files, whose digests have been checked.
        libraries: Paths below `folder`.
        allowed: Whether the caller allows native code. The environment variable ONWARD_ALLOW_CUSTOM_OPS does, too.

    Raises:
        Refused: Native code is not allowed.
        UsageError: A library cannot be loaded on this host.
    """
    if libraries and not (allowed or is_on(ALLOW)):
        raise Refused(
            f"this version needs the native library {', '.join(libraries)}, whose code would run in this process: pass "
            f"allow_custom_ops=True, or set {ALLOW}=1 on this host, if you trust its origin"
        )
    for library in libraries:
        try:
            options.register_custom_ops_library(str(folder / library))
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            words = " ".join(str(error).split())[:300]
            raise UsageError(f"{library}: this library of custom operators cannot be loaded here: {words}") from error
