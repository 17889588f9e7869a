"""A commit of the repository as one archive, from which every machine makes a clean clone with one model.

The archive contains the git objects of that commit alone, so the machines need no access to the git server. A clone
gets a params.yaml with one model: DVC then reads the stages of one model, and its time does not grow with the number of
models.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.registry import checkout
from onward.registry.errors import UsageError
from onward.registry.files import write_atomically
from onward.stages.fleet import locks

PARAMS = "params.yaml"
_LOCAL_CONFIG = Path(".dvc") / "config.local"


@dataclass(frozen=True)
class Pack:
    """A commit to clone.

    Attributes:
        commit: Its sha1.
        archive: The git folder of a clone of this commit, as a tar archive.
        project: The folder with Onward's dvc.yaml, relative to the repository.
        dvc_config: The content of .dvc/config.local, which git does not contain; None if there is none. It may contain
            credentials.
    """

    commit: str
    archive: bytes
    project: str
    dvc_config: bytes | None


def commit_of(revision: str | None) -> str:
    """Find the commit to run.

    Args:
        revision: Anything that git understands; None for the commit that is checked out, without changes.

    Returns:
        The commit's sha1.

    Raises:
        UsageError: There is no such commit, or, without `revision`, files of the project have uncommitted changes.
    """
    repository = checkout.repository()
    if not (repository / ".git").exists():
        raise UsageError(
            f"{repository}: is not a git repository: every machine works on a commit; run `git init` first"
        )
    found = _git(
        repository,
        "rev-parse",
        "--quiet",
        "--verify",
        "--end-of-options",
        f"{revision or 'HEAD'}^{{commit}}",
        check=False,
    )
    if not found:
        raise UsageError(f"there is no commit {revision}" if revision else "there is no commit yet: run `git commit`")
    if revision is None:
        changes = _git(repository, "diff", "--name-only", "HEAD", "--", ".", ":!**/dvc.lock", ":!dvc.lock")
        if changes:
            names = ", ".join(changes.splitlines()[:5])
            raise UsageError(
                f"uncommitted changes in {names}: every machine works on a commit, so commit them; "
                "to run the last commit without them, give --rev HEAD"
            )
    return found


def clone(commit: str, folder: Path) -> None:
    """Make a clone that contains one commit of the user's repository.

    Args:
        commit: Its sha1.
        folder: An empty folder.
    """
    repository = checkout.repository().resolve()
    _git(folder, "init", "--quiet", ".")
    _git(folder, "-c", "protocol.version=2", "fetch", "--quiet", "--depth=1", repository.as_uri(), commit)
    _git(folder, "checkout", "--quiet", "--detach", commit)
    origin = _git(repository, "config", "--get", "remote.origin.url", check=False)
    if origin:
        _git(folder, "remote", "add", "origin", origin)
    if (repository / _LOCAL_CONFIG).is_file():
        shutil.copy(repository / _LOCAL_CONFIG, folder / _LOCAL_CONFIG)


def pack(commit: str, folder: Path) -> Pack:
    """Pack a clone that `clone` made.

    Args:
        commit: The commit's sha1.
        folder: The clone.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder / ".git", ".git")
    config = folder / _LOCAL_CONFIG
    project = checkout.root().relative_to(checkout.repository()).as_posix()
    return Pack(commit, buffer.getvalue(), project, config.read_bytes() if config.is_file() else None)


def unpack(pack: Pack, files: Mapping[str, bytes], lock: Mapping[str, Any], folder: Path) -> Path:
    """Make a clean clone that contains one model.

    Args:
        pack: The commit.
        files: Files to write below the project's folder, by path: params.yaml with this model alone, and the settings
            of its stages.
        lock: The entries of dvc.lock.
        folder: An empty folder.

    Returns:
        The project's folder in the clone.
    """
    with tarfile.open(fileobj=io.BytesIO(pack.archive)) as archive:
        archive.extractall(folder, filter="data")
    _git(folder, "checkout", "--quiet", "--force", "--detach", pack.commit)
    if pack.dvc_config is not None:
        write_atomically(folder / _LOCAL_CONFIG, pack.dvc_config)
        (folder / _LOCAL_CONFIG).chmod(0o600)
    project = folder / pack.project
    (project / locks.LOCK).unlink(missing_ok=True)
    locks.update(project / locks.LOCK, [lock])
    for path, content in files.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_bytes(content)
    # What params.yaml lacks does not concern this model, so to git, its sources are those of the commit.
    _git(project, "update-index", "--skip-worktree", "--", PARAMS)
    return project


def _git(folder: Path, *arguments: str, check: bool = True) -> str:
    """The output of a git command in a folder; empty if it fails and `check` is false."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("git is not installed on this machine: onward fleet works on clones") from None
    if done.returncode and check:
        raise UsageError(f"git {arguments[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip() if not done.returncode else ""
