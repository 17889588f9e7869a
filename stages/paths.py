"""Where things lie: everything a stage writes is below `build/`, named for the model and the stage."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def root() -> Path:
    """The repository: DVC says so, else it is the folder above this package."""
    return Path(os.environ.get("DVC_ROOT") or Path(__file__).resolve().parent.parent)


def build(model: str, stage: str) -> Path:
    """The folder that `stage` writes for `model`."""
    return root() / "build" / model / stage


def relative(model: str, stage: str, name: str) -> str:
    """A file of a stage as reports name it: relative to the repository, with forward slashes."""
    return (build(model, stage) / name).relative_to(root()).as_posix()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder to write to, which takes `folder`'s place when all went well and vanishes when not.

    So a stage that is killed or fails halfway leaves what was there before, and never half of something new.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*.*"):
        if not psutil.pid_exists(int(left.name.split(".")[2])):
            shutil.rmtree(left, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{os.getpid()}."))
    try:
        yield fresh
        fresh.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def without_paths(text: str) -> str:
    """Paths of installed packages from the package on, paths of the repository from its root on, others by name."""
    text = re.sub(r"(/[^\s\"':,()]+)?/(site-packages|lib/python3\.\d+)/", "", text)
    text = text.replace(f"{root()}/", "")
    return re.sub(r"(?<![\w.])/(?:[^\s\"':,()/]+/)+([^\s\"':,()/]+)", r"\1", text)
