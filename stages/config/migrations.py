"""Schema versions of params.yaml, and how a file of an older one becomes one of the present one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from onward.registry.errors import UsageError

VERSION = 1
KEY = "schema_version"

# The step from each version to the next, which changes the loaded file in place and keeps its comments.
STEPS: dict[int, Callable[[Any], None]] = {}


def migrated(text: str) -> str | None:
    """The content of params.yaml in the present schema version; None if it is of that version already.

    Raises:
        UsageError: it is of a newer version, or not YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        content = yaml.load(text)
    except YAMLError as error:
        raise UsageError(f"params.yaml: is not YAML: {str(error).splitlines()[0]}") from None
    found = version_of(content)
    if found == VERSION:
        return None
    for number in range(found, VERSION):
        STEPS[number](content)
    content[KEY] = VERSION
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def version_of(content: Any) -> int:
    """The schema version of a loaded params.yaml; 1 where it names none.

    Raises:
        UsageError: it is no version, or newer than this Onward.
    """
    found = content.get(KEY, 1) if isinstance(content, dict) else 1
    if type(found) is not int or found < 1:
        raise UsageError(f"params.yaml: {KEY}: {found!r} is no schema version; this Onward reads {VERSION}")
    if found > VERSION:
        raise UsageError(
            f"params.yaml: {KEY}: {found} is newer than this Onward reads ({VERSION}): install a newer onward"
        )
    return found
