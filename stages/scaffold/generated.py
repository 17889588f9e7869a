"""The files that Onward generates in a repository, and the record of what it generated.

The record is the project's folder `.onward/`: `generated.json` with the version of Onward and the digest of each file,
and `base/` with a copy of each, which a three-way merge needs. It belongs into git.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onward.registry.errors import UsageError
from onward.registry.files import write_atomically

CI = Literal["github", "gitlab"]
RECORD = ".onward"
_TEMPLATES = Path(__file__).parent / "templates"
_FILES = {"dvc.yaml": "dvc.yaml", "example_model.py": "example_model.py", "gitignore": ".gitignore"}


class Record(BaseModel):
    """What was generated, by which version of Onward.

    Attributes:
        version: of Onward.
        ci: for which CI system files were generated, if for any.
        files: sha256 of each file's content as generated, by its path relative to the repository.
    """

    model_config = ConfigDict(extra="forbid")

    version: str
    ci: CI | None = None
    files: dict[str, str] = {}


def render(folder: str, ci: CI | None) -> dict[str, str]:
    """The generated files as this version of Onward has them.

    Args:
        folder: the project's folder, relative to the repository, with forward slashes; "." for the repository itself.
        ci: the CI system to generate files for.

    Returns:
        the files' contents by their paths relative to the repository.
    """
    prefix = "" if folder == "." else f"{folder}/"
    found = {f"{prefix}{name}": (_TEMPLATES / template).read_text() for template, name in _FILES.items()}
    if ci is not None:
        place = {"github": ".github/workflows/onward.yml", "gitlab": f"{prefix}gitlab-ci.yml"}[ci]
        text = (_TEMPLATES / "ci" / f"{ci}.yml").read_text()
        found[place] = text.replace("@FOLDER@/", prefix).replace("@VERSION@", version("onward"))
    return found


def params() -> str:
    """The first content of params.yaml, which is the team's own from then on."""
    return (_TEMPLATES / "params.yaml").read_text()


def digest(text: str) -> str:
    """The sha256 of a file's content."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(project: Path) -> Record:
    """Read the record of a project.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    path = project / RECORD / "generated.json"
    try:
        return Record.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: this project was not made by `onward init`") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def base(project: Path, path: str) -> str | None:
    """The content of a file as it was generated last; None if it was not generated."""
    copy = _copy(project, path)
    return copy.read_text() if copy.is_file() else None


def _copy(project: Path, path: str) -> Path:
    """Where the copy of a generated file is. Its name ends otherwise: DVC reads every dvc.yaml of a repository."""
    return project / RECORD / "base" / f"{path}.base"


def write_record(project: Path, files: dict[str, str], ci: CI | None) -> None:
    """Record what was generated. The copies come first: a record without its copies would be useless."""
    for path, text in files.items():
        write_atomically(_copy(project, path), text.encode())
    record = Record(version=version("onward"), ci=ci, files={path: digest(text) for path, text in files.items()})
    write_atomically(project / RECORD / "generated.json", (record.model_dump_json(indent=2) + "\n").encode())
