"""Where things lie: everything a stage writes is below `build/`, named for the model and the stage."""

from __future__ import annotations

import re
from pathlib import Path

from onward.registry import checkout


def root() -> Path:
    """The project's folder: what reports name is relative to it."""
    return checkout.root()


def source_folders() -> list[Path]:
    """Where the team's own modules are imported from, in this order: the project, the repository, and its `src/`."""
    repository = checkout.repository()
    found = (checkout.root(), repository, repository / "src")
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def build(model: str, stage: str) -> Path:
    """The folder that `stage` writes for `model`."""
    return root() / "build" / model / stage


def relative(model: str, stage: str, name: str) -> str:
    """A file of a stage as reports name it: relative to the repository, with forward slashes."""
    return (build(model, stage) / name).relative_to(root()).as_posix()


def without_paths(text: str) -> str:
    """Paths of installed packages from the package on, paths of the repository from its root on, others by name."""
    text = re.sub(r"(/[^\s\"':,()]+)?/(site-packages|lib/python3\.\d+)/", "", text)
    text = text.replace(f"{root()}/", "")
    return re.sub(r"(?<![\w.])/(?:[^\s\"':,()/]+/)+([^\s\"':,()/]+)", r"\1", text)
