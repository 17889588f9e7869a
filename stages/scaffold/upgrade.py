"""`onward upgrade`: brings the generated files of a project to the installed version of Onward."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onward.registry import checkout
from onward.registry.errors import UsageError
from onward.registry.files import write_atomically
from onward.stages.config import migrations
from onward.stages.scaffold import generated, settings

Action = Literal["unchanged", "updated", "merged", "created", "conflict", "deleted by you", "no longer generated"]
MERGED = ".onward-merge"
PARAMS = "params.yaml"


@dataclass(frozen=True)
class Change:
    """What happens to one file.

    Attributes:
        path: relative to the repository.
        action: what is done with the file.
        diff: a unified diff; empty if nothing changes.
    """

    path: str
    action: Action
    diff: str = ""


def upgrade(dry_run: bool = False) -> list[Change]:
    """Bring the generated files of the project to the installed version, and params.yaml to its schema version.

    A file that was not edited is generated again. An edited one is merged (three-way, by git). Where that is not
    possible, the file stays as it is and the attempt, with conflict markers, is written beside it (`.onward-merge`).

    Settings that `dvc exp run -S` changes are added to the models in params.yaml that lack them, with the value
    `default`, which changes nothing (stages/scaffold/settings.py).

    Args:
        dry_run: only say what would change.

    Raises:
        UsageError: there is no project, `onward init` did not make it, or params.yaml is of a newer schema.
    """
    project = checkout.root()
    repository = checkout.repository()
    record = generated.read_record(project)
    place = project.resolve().relative_to(repository.resolve()).as_posix()
    wanted = generated.render(place, record.ci)
    change, content = _params(project, repository)
    changes = [change]
    writes = {} if content is None else {project / PARAMS: content}
    for path, text in wanted.items():
        change, content = _change(project, repository, path, text, path in record.files)
        changes.append(change)
        if content is not None:
            there = repository / path
            writes[there.with_name(there.name + MERGED) if change.action == "conflict" else there] = content
    changes += [Change(path, "no longer generated") for path in record.files if path not in wanted]
    if not dry_run:
        for target, content in writes.items():
            write_atomically(target, content.encode())
        conflicts = {change.path for change in changes if change.action == "conflict"}
        kept = {path: generated.base(project, path) or "" for path in conflicts}
        generated.write_record(project, wanted | kept, record.ci)
    return changes


def _params(project: Path, repository: Path) -> tuple[Change, str | None]:
    """What happens to params.yaml, and the content to write, if any."""
    path = project / PARAMS
    name = path.resolve().relative_to(repository.resolve()).as_posix()
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    migrated = settings.with_settings(migrations.migrated(text) or text)
    if migrated == text:
        return Change(name, "unchanged"), None
    return Change(name, "updated", _diff(name, text, migrated)), migrated


def _change(project: Path, repository: Path, path: str, wanted: str, known: bool) -> tuple[Change, str | None]:
    """What happens to one generated file, and the content to write, if any."""
    there = repository / path
    before = generated.base(project, path)
    if not there.exists():
        if known:
            return Change(path, "deleted by you"), None
        return Change(path, "created", _diff(path, "", wanted)), wanted
    mine = there.read_text()
    if mine == wanted or before == wanted:
        return Change(path, "unchanged"), None
    if mine == before:
        return Change(path, "updated", _diff(path, mine, wanted)), wanted
    merged, clean = _merge(mine, before or "", wanted)
    if merged == mine:
        return Change(path, "unchanged"), None
    return Change(path, "merged" if clean else "conflict", _diff(path, mine, merged)), merged


def _merge(mine: str, before: str, wanted: str) -> tuple[str, bool]:
    """The three-way merge, and whether it has no conflicts."""
    git = shutil.which("git")
    if git is None:
        raise UsageError("edited files are merged by git, and there is no git on PATH: install it; nothing was changed")
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        names = {"yours": mine, "generated before": before, "generated now": wanted}
        paths = []
        for number, text in enumerate(names.values()):
            paths.append(Path(temporary) / str(number))
            paths[-1].write_text(text)
        labels = [word for name in names for word in ("-L", name)]
        done = subprocess.run(
            [git, "merge-file", "-p", *labels, *map(str, paths)], cwd=temporary, capture_output=True, text=True
        )
    if done.returncode < 0 or done.returncode > 127:  # else the number of conflicts
        raise UsageError(f"git merge-file failed: {done.stderr.strip()}; nothing was changed")
    return done.stdout, done.returncode == 0


def _diff(path: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm="")
    return "\n".join(lines)
