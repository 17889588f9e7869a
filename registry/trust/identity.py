"""Determines the name of the acting person for publications and log entries. The name is not verified."""

from __future__ import annotations

import getpass
import os
import subprocess

from onward.registry.text import one_line, printable


def who() -> str:
    """Return the acting person's name in one line: ONWARD_ACTOR, else git's user.email, else the system's user."""
    if name := named(os.environ.get("ONWARD_ACTOR", "")):
        return name
    try:
        email = subprocess.run(
            ["git", "config", "user.email"],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=5,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        email = ""
    if name := named(email):
        return name
    try:
        return named(getpass.getuser()) or f"uid {os.getuid()}"
    except (OSError, KeyError):  # in a container, a user id may have no name
        return f"uid {os.getuid()}"


def named(text: str) -> str:
    """Convert a name to one printable line, with escapes for unprintable characters; empty if nothing is visible."""
    return printable(one_line(text))
