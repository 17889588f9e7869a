"""`onward init`: writes a DVC pipeline of its own, with its params and an example, into one folder of a repository."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from onward.registry import checkout
from onward.registry.errors import MachineFault, UsageError
from onward.registry.files import write_atomically
from onward.stages.scaffold import generated


@dataclass(frozen=True)
class Initialised:
    """What `init` wrote, or would write.

    Attributes:
        repository: its top folder.
        folder: the project's folder, relative to it.
        written: the paths of the files, relative to the repository.
        dvc: whether the repository becomes a DVC repository, too.
        notes: what is left to do, in sentences.
    """

    repository: Path
    folder: str
    written: list[str]
    dvc: bool
    notes: list[str]


def init(folder: str, ci: generated.CI | None = None, dry_run: bool = False) -> Initialised:
    """Make an Onward project in the repository around the working directory. Existing files are never changed.

    Args:
        folder: where the pipeline goes, relative to the repository's top.
        ci: also write a CI pipeline for this system.
        dry_run: only say what would be written.

    Raises:
        UsageError: the folder lies outside the repository, is a Python package, or holds files of these names; or the
            repository has an Onward project already.
        MachineFault: DVC could not be initialised.
    """
    repository = checkout.repository_around(Path.cwd())
    project = (repository / folder).resolve()
    if not project.is_relative_to(repository.resolve()):
        raise UsageError(f"{folder}: lies outside the repository {repository}")
    place = project.relative_to(repository.resolve()).as_posix()
    files = generated.render(place, ci)
    prefix = "" if place == "." else f"{place}/"
    texts = {f"{prefix}params.yaml": generated.params(), **files}
    if place != ".":
        texts[checkout.POINTER] = f"{place}\n"
    _check_free(repository, project, place, texts)
    dvc = not any((there / ".dvc").is_dir() for there in (project, *project.parents))
    if not dry_run:
        if dvc:
            _dvc_init(repository)
        generated.write_record(project, files, ci)
        for path, text in texts.items():  # the pointer is the last: until then nothing takes the folder for a project
            write_atomically(repository / path, text.encode())
    record = [f"{prefix}{generated.RECORD}/"]
    return Initialised(repository, place, sorted([*texts, *record]), dvc, _notes(place, ci))


def _check_free(repository: Path, project: Path, place: str, texts: dict[str, str]) -> None:
    if (project / generated.RECORD).exists():
        raise UsageError(f"{place} is an Onward project already: `onward upgrade` brings its files up to date")
    pointer = repository / checkout.POINTER
    if pointer.exists():
        raise UsageError(
            f"{pointer} names {pointer.read_text().strip()!r}: this repository has an Onward project already"
        )
    if (project / "__init__.py").exists():
        raise UsageError(f"{place} is a Python package of yours: choose another folder, e.g. `onward init ml-release`")
    taken = sorted(path for path in texts if (repository / path).exists())
    if taken:
        raise UsageError(
            f"{', '.join(taken)} {'exist' if len(taken) > 1 else 'exists'} already, and nothing was written: choose "
            "another folder, e.g. `onward init ml-release`"
        )


def _dvc_init(repository: Path) -> None:
    command = [sys.executable, "-m", "dvc", "init", "--quiet"]
    if not (repository / ".git").exists():
        command.append("--no-scm")
    if find_spec("dvc") is None:
        raise UsageError("DVC is not installed here: pip install 'onward[pipeline]'; nothing was written")
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if done.returncode:
        raise MachineFault(f"`dvc init` failed in {repository}: {done.stderr.strip() or done.stdout.strip()}")


def _notes(place: str, ci: generated.CI | None) -> list[str]:
    pipeline = "dvc.yaml" if place == "." else f"{place}/dvc.yaml"
    prefix = "" if place == "." else f"{place}/"
    notes = [
        f"try it: dvc repro {pipeline}",
        "add a model of yours: onward add NAME --onnx FILE (or --build MODULE:FUNCTION)",
    ]
    if ci == "gitlab":
        notes.append(f"include {prefix}gitlab-ci.yml in .gitlab-ci.yml: its first lines say how")
    return [*notes, "commit what was written"]
