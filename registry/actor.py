"""Who acts: the name that a version's publication and every entry of a log carry. What a machine says, and no proof."""

from __future__ import annotations

import getpass
import os
import subprocess


def who() -> str:
    """Who acts: ONWARD_ACTOR, else git's user.email, else the user of the operating system."""
    if named := os.environ.get("ONWARD_ACTOR", "").strip():
        return named
    try:
        asked = subprocess.run(
            ["git", "config", "user.email"], capture_output=True, text=True, timeout=5, check=False
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        asked = ""
    if asked:
        return asked
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return f"uid {os.getuid()}"
