"""Data of the team's own that DVC keeps: the files that `*.dvc` files in the repository name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.repo import Repo


def bring(repo: Repo, download: bool) -> None:
    """Put the files that `*.dvc` files name into a clone.

    Args:
        repo: The clone.
        download: Whether to take from the remote what the cache lacks.

    Raises:
        dvc.exceptions.DvcException: Some files are neither in the cache nor in the remote.
    """
    top = Path(repo.root_dir)
    named = [path for path in top.rglob("*.dvc") if path.is_file() and ".dvc" not in path.relative_to(top).parts]
    if not named:
        return
    targets = [str(path) for path in named]
    if download:
        repo.pull(targets)
    else:
        repo.checkout(targets, force=True)
