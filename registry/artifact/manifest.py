"""Digests: what a version's bytes are, and whether a folder still holds them.

Two digests pin a version. Its sha256 says which model it is: it is over the model files alone, so that a second
measurement of the same model has the same sha256. The digest of `manifest.json` pins every file with its name, so also
the session options, the recorded inputs and answers, and the tolerances. Versions and entries of before have no second
digest: they pin less.

A version's model files are its graphs (`model.onnx` at the top of the folder, and `providers/NAME/model.onnx` for each
provider that has a graph of its own) and the external data that these graphs refer to, whatever its name. The graphs
say which files those are, because nothing else in the folder is under the version's sha256.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from onward.registry.errors import Refused, UsageError
from onward.registry.evidence.records import FileDigest
from onward.registry.files import write_atomically

MANIFEST = "manifest.json"
GRAPH = re.compile(r"(providers/[A-Za-z0-9_-]+/)?model\.onnx")

# MLflow writes this beside a registered version when it is downloaded; it is no part of what was published.
NOT_OURS = "registered_model_meta"

_digests = TypeAdapter(list[FileDigest])


def content_digest(files: list[FileDigest]) -> str:
    """The sha256 that a model is known by: its .onnx file's own where that is the only file, else the sha256 over
    the sorted digests of all its files, those for other providers included, a line each. Names play no part: the graph
    itself holds its data's name."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{digest}\n" for digest in sorted(f.sha256 for f in files)).encode()).hexdigest()


def write_manifest(folder: Path) -> str:
    """Write `manifest.json`, the digest of every other file below `folder`, and return its own digest.

    Raises:
        Refused: the folder holds a link, or something else that is no file.
    """
    files = [FileDigest.of(path, folder) for path in _files(folder)]
    write_atomically(folder / MANIFEST, _digests.dump_json(files, indent=2) + b"\n")
    return manifest_digest(folder)


def manifest_digest(folder: Path) -> str:
    """The sha256 of `manifest.json`, which pins every file of a version with its name.

    Raises:
        Refused: there is none.
    """
    return hashlib.sha256(_manifest(folder)).hexdigest()


def _manifest(folder: Path) -> bytes:
    try:
        return _plain(folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise Refused(f"{folder.name}: {MANIFEST} is missing, so nothing says what the files should be") from None


def read_manifest(folder: Path) -> list[FileDigest]:
    """What `manifest.json` in `folder` says.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    try:
        return _digests.validate_json(_manifest(folder))
    except ValueError as error:
        raise Refused(f"{folder.name}/{MANIFEST} cannot be read: {str(error).splitlines()[0]}") from None


def check_folder(folder: Path, sha256: str | None = None, manifest: str = "") -> list[FileDigest]:
    """Check every file below `folder` against its manifest, the manifest against `manifest`, and the model's own files
    against `sha256`. No link is followed.

    Args:
        folder: a version's files.
        sha256: what the model's own files have to be; None where nothing says so.
        manifest: the digest that was pinned of the manifest; "" where none was, as before Onward pinned it.

    Returns:
        the model's own files (every provider's graph and its external data), as the manifest names them.

    Raises:
        Refused: a file is missing, added or changed, or is a link; the manifest or the model is another one.
    """
    if manifest and (here := manifest_digest(folder)) != manifest:
        raise Refused(
            f"the files are not those that were published: {MANIFEST} has sha256 {here}, but {manifest} was recorded"
        )
    expected = {file.path: file for file in read_manifest(folder)}
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is not in the manifest" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if FileDigest.of(found[name], folder) != expected[name]:
            problems.append(f"{name} has changed")
    if problems:
        raise Refused(f"the files are not those that were published: {'; '.join(problems)}")
    names = _model_files(folder, expected)
    if names - expected.keys():
        raise Refused(f"the model uses {', '.join(sorted(names - expected.keys()))}, which {MANIFEST} does not name")
    model = [file for file in expected.values() if file.path in names]
    if sha256 is not None and content_digest(model) != sha256:
        raise Refused(f"the model has sha256 {content_digest(model)}, but {sha256} was recorded")
    return model


def _model_files(folder: Path, names: Iterable[str]) -> set[str]:
    """Of the files of a version, the graphs and all external data that they refer to.

    Raises:
        Refused: a graph cannot be read, or its external data is not in the folder.
    """
    graphs = [folder / name for name in names if GRAPH.fullmatch(name)]
    return {file.relative_to(folder).as_posix() for graph in graphs for file in _with_external_data(graph)}


def _with_external_data(graph: Path) -> list[Path]:
    """A graph and the external data that it refers to.

    To refer to external data, a graph has to spell the word "location". Without that word there is no need to read the
    graph, which costs more than its digest does.
    """
    with open(graph, "rb") as file:
        if not graph.stat().st_size:
            return [graph]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"location") < 0:
                return [graph]
    from onward.registry.artifact import onnx_file

    try:
        return onnx_file.files(graph)
    except UsageError as error:
        raise Refused(str(error)) from None


def _files(folder: Path) -> list[Path]:
    """Every file below `folder` but the manifest itself and MLflow's note on a download.

    Raises:
        Refused: something there is neither a folder nor a file of its own, for example a link.
    """
    apart = (folder / MANIFEST, folder / NOT_OURS)
    found = []
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise Refused(f"{(Path(parent) / name).relative_to(folder).as_posix()} is a link; links are refused")
        found += [_plain(Path(parent) / name) for name in files]
    return sorted(path for path in found if path not in apart)


def _plain(path: Path) -> Path:
    """`path`, which has to be a regular file."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise Refused(f"{path.name} is {kind}; a version holds regular files alone")
    return path


def _unreadable(error: OSError) -> None:
    raise error
