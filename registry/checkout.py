"""Finds the project: the folder with Onward's `dvc.yaml` and `params.yaml`.

The project is the folder that ONWARD_PROJECT names, else the nearest one at or above the working directory. A
repository with its own pipelines has a file `.onward-project` in its top folder that names the project's folder
(`onward init` writes it). Then Onward's commands work in every folder of the repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onward.registry.errors import UsageError

PROJECT = "ONWARD_PROJECT"
POINTER = ".onward-project"
PIPELINE = "dvc.yaml"
# Where DVC keeps the copies of `dvc exp run --temp` and `--queue`, below its root.
_COPIES = (".dvc", "tmp", "exps")
# A text that only Onward's own dvc.yaml contains.
_OURS = "onward.stages"


def root(start: Path | None = None) -> Path:
    """Find the project's folder.

    Args:
        start: The folder where the search begins; the working directory if None.

    Returns:
        The project's folder.

    Raises:
        UsageError: There is no project at or above `start`, ONWARD_PROJECT does not name a folder, or
            `.onward-project` names a folder without dvc.yaml.
    """
    if named := os.environ.get(PROJECT):
        if not Path(named).is_dir():
            raise UsageError(f"{PROJECT} names {named}, which is not a folder")
        return Path(named).resolve()
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if _is_ours(folder / PIPELINE):
            return folder
        if (folder / POINTER).is_file():
            return _pointed_to(folder)
    if other := next(_pipelines(here), None):
        return other
    raise UsageError(
        f"no dvc.yaml in {here} or above it: run the command inside a project, name one with {PROJECT}, or make one "
        "with `onward init`"
    )


def home() -> Path:
    """Find the project's folder in the user's checkout.

    `dvc exp run --temp` and `--queue` work in a temporary copy of the repository. Inside them, this is the folder from
    which the experiment was started. Elsewhere it is `root()`.

    Returns:
        The project's folder.

    Raises:
        UsageError: As `root`.
    """
    here = root()
    origin = os.environ.get("DVC_EXP_GIT_REMOTE")
    if not origin or not Path(origin).is_dir():
        return original(here)
    git = Path(origin)
    repository = git.parent if git.name == ".git" else git
    copy = Path(os.environ.get("DVC_ROOT") or here).resolve()
    return repository / (here.relative_to(copy) if here.is_relative_to(copy) else "")


def original(folder: Path) -> Path:
    """Find the folder of the user's checkout that a folder of an experiment's temporary copy was copied from.

    DVC keeps the copies at any depth in `.dvc/tmp/exps/`. Each is a copy of the whole git repository.

    Returns:
        That folder; `folder` itself if it is not in such a copy.
    """
    copy = repository_around(folder)
    for place in copy.parents:
        if place.parts[-len(_COPIES) :] == _COPIES:
            return repository_around(place.parents[len(_COPIES) - 1]) / folder.relative_to(copy)
    return folder


def experiment() -> str:
    """The name of the DVC experiment that runs this process; empty outside of experiments."""
    return os.environ.get("DVC_EXP_NAME") or os.environ.get("DVC_EXP_BASELINE_REV") or ""


def repository() -> Path:
    """Find the top folder of the git repository around the project.

    Returns:
        The repository's folder, or the project's own folder if it is not in a repository.

    Raises:
        UsageError: As `root`.
    """
    return repository_around(root())


def repository_around(folder: Path) -> Path:
    """Find the top folder of the git repository around a folder.

    Returns:
        The repository's folder, or `folder` itself if it is not in a repository.
    """
    return next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)


def _pipelines(here: Path) -> Iterator[Path]:
    return (folder for folder in (here, *here.parents) if (folder / PIPELINE).is_file())


def _is_ours(pipeline: Path) -> bool:
    return pipeline.is_file() and _OURS in _content(pipeline)


def _content(path: Path) -> str:
    return path.read_text(errors="replace").strip()


def _pointed_to(repository: Path) -> Path:
    folder = repository / _content(repository / POINTER)
    if not (folder / PIPELINE).is_file():
        raise UsageError(f"{repository / POINTER} names {folder}, which contains no dvc.yaml")
    return folder.resolve()
