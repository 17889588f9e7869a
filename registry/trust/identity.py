"""Who acts: the name that a version's publication and every entry of a log carry. What a machine says, and no proof."""

from __future__ import annotations

import getpass
import os
import subprocess

from onward.registry.text import one_line, printable


def who() -> str:
    """Who acts: ONWARD_ACTOR, else git's user.email, else the user of the operating system; in one line."""
    if name := named(os.environ.get("ONWARD_ACTOR", "")):
        return name
    try:
        asked = subprocess.run(
            ["git", "config", "user.email"],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=5,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        asked = ""
    if name := named(asked):
        return name
    try:
        return named(getpass.getuser()) or f"uid {os.getuid()}"
    except (OSError, KeyError):  # a container's user id without a name
        return f"uid {os.getuid()}"


def named(text: str) -> str:
    """A name as a log keeps it: in one line, with escapes for what cannot be printed; empty where it shows nothing."""
    return printable(one_line(text))
