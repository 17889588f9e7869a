"""Paths of stage outputs: each stage writes to `build/<model>/<stage>/`."""

from __future__ import annotations

import re
from pathlib import Path

from onward.registry import checkout


def root() -> Path:
    """The project's folder. Paths in reports are relative to it."""
    return checkout.root()


def source_folders() -> list[Path]:
    """Folders to import the team's modules from, in order: the project, the repository, and its `src/`."""
    repository = checkout.repository()
    found = (checkout.root(), repository, repository / "src")
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def build(model: str, stage: str) -> Path:
    """The folder that `stage` writes for `model`."""
    return root() / "build" / model / stage


def relative(model: str, stage: str, name: str) -> str:
    """The path of a stage's file as in reports: relative to the project's folder, with forward slashes."""
    return (build(model, stage) / name).relative_to(root()).as_posix()


def without_paths(text: str) -> str:
    """Shorten absolute paths in `text`, so that reports do not depend on the machine.

    Paths of installed packages start at the package, paths of the project are relative to it, and others keep their
    file name only.
    """
    text = re.sub(r"(/[^\s\"':,()]+)?/(site-packages|lib/python3\.\d+)/", "", text)
    text = text.replace(f"{root()}/", "")
    return re.sub(r"(?<![\w.])/(?:[^\s\"':,()/]+/)+([^\s\"':,()/]+)", r"\1", text)
