"""Move a deployment log from one MLflow server to another, as JSON lines: one entry per line, oldest first.

Entries keep their numbers, so that references to "entry 7" stay valid. The location of an entry's files differs between
servers and is not exported. An import takes the files from a folder beside the log (`export(files=...)`) or from the
new server, and checks them against the digests that the entry names.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError, model_validator

from onward.registry.artifact.manifest import check_folder
from onward.registry.errors import OnwardError, Refused, UsageError, saying
from onward.registry.log.entries import Entry
from onward.registry.names import valid_name
from onward.registry.store.resolve import require_model
from onward.registry.store.schema import approval_source, registered_name
from onward.registry.store.store import Store

# Each unused number costs two requests, which take about 60 ms on a local store.
_MOST_GAPS = 100


class LogRecord(Entry):
    """One line of an exported log: an entry, and the log that it belongs to.

    It is valid only if it refers to earlier entries alone, and if its actor and its reason are one line each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    environment: str
    model: str
    source: Literal[""] = ""

    @model_validator(mode="after")
    def _sound(self) -> LogRecord:
        for name in ("base", "restores", "seen"):
            if getattr(self, name) >= self.number:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be the number of an earlier entry")
        if (self.kind == "rollback") != bool(self.restores):
            raise ValueError("a rollback must name the entry that it restores, and other entries must not")
        for name in ("actor", "reason"):
            if getattr(self, name) != " ".join(getattr(self, name).split()):
                raise ValueError(f"{name} must be one line")
        return self


@dataclass(frozen=True)
class Imported:
    """The result of importing one log.

    Attributes:
        environment: the environment.
        model: the model's name.
        added: how many entries were added.
        present: how many entries existed before.
    """

    environment: str
    model: str
    added: int
    present: int


def export(models: Iterable[str], files: Path | None = None, store: Store | None = None) -> list[LogRecord]:
    """Export the logs of all environments of some models.

    Args:
        models: the names of the models.
        files: a folder for the deployed files, with one subfolder per manifest; None to export no files.
        store: the store; None for the store in use.

    Raises:
        UsageError: a model has no versions, or `files` is not a folder.
        Refused: the files of an entry are gone, or differ from the published ones.
    """
    store = store or Store(create=False)
    if files is not None and files.exists() and not files.is_dir():
        raise UsageError(f"--files {files}: is a file: give a folder")
    lines = []
    for model in models:
        valid_name(model, "a model")
        environments = store.environments(model)
        if not environments:
            require_model(store, model)
        for environment in environments:
            log = store.log(environment, model)
            for entry in log.entries():
                counted = entry in log.history.counted
                try:
                    line = LogRecord(**{**entry.model_dump(), "source": "", "environment": environment, "model": model})
                except ValidationError as error:
                    if not counted:
                        continue  # Onward did not write this row, and it never counted
                    what = f"entry {entry.number} of {registered_name(environment, model)}"
                    raise Refused(f"{what} cannot be exported: {error.errors()[0]['msg']}") from None
                lines.append(line)
                if files is not None and entry.kind != "approve":
                    _save(store, environment, model, entry, files / _folder(entry))
    return lines


def _save(store: Store, environment: str, model: str, entry: Entry, folder: Path) -> None:
    what = f"entry {entry.number} of {environment}.{model}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
            try:
                found = store.files.copy_of(environment, model, entry, Path(temporary) / "files")
            except Refused as error:
                raise Refused(f"{what}: {error}") from None
            shutil.move(found.folder, folder)
    _check(folder, entry, what)


def _folder(entry: Entry) -> str:
    """The name of the folder with an entry's files: the manifest's digest, or the model's if there is no manifest."""
    return entry.manifest or entry.sha256


def _check(folder: Path, entry: Entry, what: str) -> None:
    try:
        check_folder(folder, entry.sha256, entry.manifest)
    except Refused as error:
        raise Refused(f"{what}: {error}") from None


def read(path: Path) -> list[LogRecord]:
    """Read a file that `onward export-log` wrote.

    Args:
        path: the file.

    Raises:
        UsageError: it cannot be read, or a line is wrong; the message says which line, and what is wrong.
    """
    try:
        texts = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = LogRecord.model_validate_json(text)
            valid_name(line.environment, "an environment")
            valid_name(line.model, "a model")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise UsageError(f"{path}: line {number} is not a valid entry: {where}: {first['msg']}") from None
        except OnwardError as error:
            raise UsageError(f"{path}: line {number}: {error}") from None
        lines.append(line)
    return lines


def import_(path: Path, files: Path | None = None, store: Store | None = None) -> list[Imported]:
    """Append exported entries to the logs that they belong to.

    Each log of the store must be empty, or contain the first of the exported entries and nothing else. So a second
    import of the same file completes an interrupted one, and otherwise changes nothing. Everything is checked before
    anything is written.

    Args:
        path: a file that `onward export-log` wrote.
        files: the folder with the exported files; None to search only the store. Files that are not there are searched
            for in the environment, then among the candidates.
        store: the store; None for the store in use.

    Returns:
        the result for each log.

    Raises:
        UsageError: `onward export-log` did not write the file.
        Refused: a log of the store has another history, or the files of an entry are missing or have other digests.
        LostRace: another command deployed to one of the environments meanwhile.
    """
    store = store or Store()
    logs: dict[tuple[str, str], list[LogRecord]] = {}
    for line in read(path):
        logs.setdefault((line.environment, line.model), []).append(line)
    missing = {key: _missing(store, *key, lines) for key, lines in logs.items()}
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        folders = {
            key: dict(_folders(store, key, lines, files, Path(temporary) / ".".join(key)))
            for key, lines in missing.items()
        }
        absent = [
            f"\n  {line.environment}.{line.model}, entry {line.number}: sha256 {line.sha256}"
            for key, lines in missing.items()
            for line in lines
            if line.kind != "approve" and _folder(line) not in folders[key]
        ]
        if absent:
            raise Refused(
                "nothing was imported, because the files of some entries were not found. Export them with the log "
                f"(`onward export-log ... --files FOLDER`), and name that folder with --files:{''.join(absent)}"
            )
        complete: list[str] = []
        with saying(lambda: _so_far(complete)):
            for key, lines in missing.items():
                scratch = Path(temporary) / "kept" / ".".join(key)
                if lines:
                    _append(store, key, lines, folders[key], scratch)
                store.clear(*key, _gaps(logs[key]))
                store.heal(*key)
                complete.append(".".join(key))
    return [
        Imported(*key, added=len(missing[key]), present=len(lines) - len(missing[key])) for key, lines in logs.items()
    ]


def _so_far(complete: list[str]) -> str:
    """A message about what an interrupted import has done."""
    return (
        f"Imported completely before that: {', '.join(complete) or 'no log'}; the next log may be imported in part. "
        "Import the same file again to complete it"
    )


def _missing(store: Store, environment: str, model: str, lines: list[LogRecord]) -> list[LogRecord]:
    """The lines that the store's log lacks. The log must contain the lines before them."""
    registered = registered_name(environment, model)
    numbers = [line.number for line in lines]
    if numbers != sorted(set(numbers)):
        raise UsageError(f"the entries of {registered} are not in order, or one is listed twice: nothing was imported")
    if len(_gaps(lines)) > _MOST_GAPS:
        raise UsageError(
            f"{registered}: more than {_MOST_GAPS} numbers below {numbers[-1]} are missing: nothing was imported"
        )
    log = store.log(environment, model)
    here = [_fields(entry) for entry in log.entries()]
    there = [_fields(line) for line in lines]
    common = min(len(here), len(there))
    if here[:common] != there[:common]:
        first = next(number for number, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1])
        raise Refused(
            f"{registered} has another history in this store, from entry {here[first]['number']} on: nothing was "
            "imported. Import into a store in which this log is empty"
        )
    by_hand = [number for number in log.foreign if number not in _gaps(lines)]
    if by_hand:
        raise Refused(
            f"{registered} contains versions that are not entries ({', '.join(map(str, by_hand))}): nothing was "
            "imported. Delete that registered model if nothing uses it"
        )
    return lines[common:]


def _gaps(lines: list[LogRecord]) -> set[int]:
    """The numbers that belong to no entry, because a version was deleted or registered by hand; at most 101 of them."""
    known = {line.number for line in lines}
    missing = (number for number in range(1, lines[-1].number) if number not in known)
    return set(itertools.islice(missing, _MOST_GAPS + 1))


def _fields(entry: Entry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in Entry.model_fields if name not in ("source", "link")}


def _folders(
    store: Store, key: tuple[str, str], lines: list[LogRecord], files: Path | None, scratch: Path
) -> Iterator[tuple[str, tuple[str, Path]]]:
    """The checked files of the lines, as far as they are found: the folder's name, its source ("": local), its path."""
    environment, model = key
    candidates = list(store.candidates(model)) if lines else []
    for name, line in {_folder(line): line for line in lines if line.kind != "approve"}.items():
        what = f"the files of sha256 {line.sha256}"
        if files is not None and (files / name).is_dir():
            _check(files / name, line, what)
            yield name, ("", files / name)
            continue
        sources = store.files.own_copies(environment, model, line.sha256)
        sources += [candidate.source for candidate in candidates if candidate.sha256 == line.sha256]
        if sources:
            try:
                found = store.files.obtain(sources, line, scratch / name)
            except Refused as error:
                raise Refused(f"{what}: {error}") from None
            yield name, (found.source, found.folder)


def _append(
    store: Store, key: tuple[str, str], lines: list[LogRecord], folders: dict[str, tuple[str, Path]], scratch: Path
) -> None:
    environment, model = key
    sha256 = {_folder(line): line.sha256 for line in lines}
    sources = {
        name: source
        if source in store.files.own_copies(environment, model, sha256[name])
        else store.files.keep(environment, model, sha256[name], folder, scratch / name)
        for name, (source, folder) in folders.items()
    }
    placed = [
        {**_fields(line), "source": sources[_folder(line)] if line.kind != "approve" else approval_source(line.sha256)}
        for line in lines
    ]
    store.place(environment, model, map(Entry.model_validate, placed))
