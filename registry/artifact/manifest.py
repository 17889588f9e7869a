"""Computes the digests of a version, and checks whether a folder still contains the published files.

Two digests pin a version. Its sha256 identifies the model: it covers the model files only, so a second measurement of
the same model has the same sha256. The digest of `manifest.json` pins every file with its name, including the session
options, the recorded inputs and answers, and the tolerances. Older versions and entries lack the second digest, so they
pin less.

A version's model files are its graphs (`model.onnx` at the top of the folder, and `providers/NAME/model.onnx` for each
provider with a graph of its own) and the external data that these graphs refer to, whatever its name. Only the graphs
are trusted to name the external data, because the version's sha256 covers nothing else in the folder.
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

# MLflow writes this file when it downloads a registered version. It is not one of the published files.
NOT_OURS = "registered_model_meta"

_digests = TypeAdapter(list[FileDigest])


def content_digest(files: list[FileDigest]) -> str:
    """Compute the sha256 that identifies a model.

    The digest does not depend on file names: each graph contains the names of its data.

    Args:
        files: All files of the model, including those for other providers.

    Returns:
        The digest of the .onnx if that is the only file, else the sha256 of all files' sorted digests, one per line.
    """
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256(
        "".join(f"{digest}\n" for digest in sorted(file.sha256 for file in files)).encode()
    ).hexdigest()


def write_manifest(folder: Path) -> str:
    """Write `manifest.json`, which lists the digest of every other file below `folder`.

    Args:
        folder: A version's files.

    Returns:
        The digest of `manifest.json`.

    Raises:
        Refused: The folder contains a link, or anything else that is not a regular file or a folder.
    """
    files = [FileDigest.of(path, folder) for path in _files(folder)]
    write_atomically(folder / MANIFEST, _digests.dump_json(files, indent=2) + b"\n")
    return manifest_digest(folder)


def manifest_digest(folder: Path) -> str:
    """Compute the sha256 of `manifest.json`, which pins every file of a version with its name.

    Args:
        folder: A version's files.

    Returns:
        The digest in hexadecimal.

    Raises:
        Refused: `manifest.json` is missing.
    """
    return hashlib.sha256(_manifest(folder)).hexdigest()


def _manifest(folder: Path) -> bytes:
    try:
        return _plain(folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise Refused(f"{folder.name}: {MANIFEST} is missing, so the files cannot be checked") from None


def read_manifest(folder: Path) -> list[FileDigest]:
    """Read `manifest.json` in `folder`.

    Args:
        folder: A version's files.

    Returns:
        The digest of each file.

    Raises:
        Refused: `manifest.json` is missing or invalid.
    """
    try:
        return _digests.validate_json(_manifest(folder))
    except ValueError as error:
        raise Refused(f"{folder.name}/{MANIFEST} cannot be read: {str(error).splitlines()[0]}") from None


def check_folder(folder: Path, sha256: str | None = None, manifest: str = "") -> list[FileDigest]:
    """Check that a folder contains exactly the published files.

    Every file must match the manifest, the manifest must match the digest `manifest`, and the model's files must match
    `sha256`. Links are refused, not followed.

    Args:
        folder: A version's files.
        sha256: The recorded digest of the model's files; None if it is unknown.
        manifest: The recorded digest of the manifest; "" if there is none (versions older than this check).

    Returns:
        The model's files (every provider's graph and its external data), as listed in the manifest.

    Raises:
        Refused: A file is missing, added, changed or a link, or the manifest or the model has another digest.
    """
    if manifest and (actual := manifest_digest(folder)) != manifest:
        raise Refused(
            f"the files are not those that were published: {MANIFEST} has sha256 {actual}, but {manifest} was recorded"
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
        raise Refused(f"the model uses {', '.join(sorted(names - expected.keys()))}, which {MANIFEST} does not list")
    model = [file for file in expected.values() if file.path in names]
    if sha256 is not None and content_digest(model) != sha256:
        raise Refused(f"the model has sha256 {content_digest(model)}, but {sha256} was recorded")
    return model


def _model_files(folder: Path, names: Iterable[str]) -> set[str]:
    """The graphs among the files of a version, and all external data that they refer to.

    Raises:
        Refused: A graph cannot be read, or its external data is not in the folder.
    """
    graphs = [folder / name for name in names if GRAPH.fullmatch(name)]
    return {file.relative_to(folder).as_posix() for graph in graphs for file in _with_external_data(graph)}


def _with_external_data(graph: Path) -> list[Path]:
    """A graph and the external data that it refers to.

    A reference to external data contains the word "location". A graph without that word need not be parsed. (Parsing
    takes longer than computing the digest.)
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
    """Every file below `folder` except the manifest and MLflow's file about the download.

    Raises:
        Refused: Something in it is neither a folder nor a regular file, for example a link.
    """
    excluded = (folder / MANIFEST, folder / NOT_OURS)
    found = []
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise Refused(f"{(Path(parent) / name).relative_to(folder).as_posix()} is a link; links are refused")
        found += [_plain(Path(parent) / name) for name in files]
    return sorted(path for path in found if path not in excluded)


def _plain(path: Path) -> Path:
    """Return `path` if it is a regular file, else raise Refused."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "not a regular file"
        raise Refused(f"{path.name} is {kind}; a version may contain only regular files")
    return path


def _unreadable(error: OSError) -> None:
    raise error
