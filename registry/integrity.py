"""Digests: what a version's bytes are, and whether a folder still holds them.

A version's model files are its graphs (`model.onnx` at the top of the folder, and `providers/NAME/model.onnx` for each
provider that has a graph of its own) and the external data that these graphs refer to, whatever its name. The graphs
say which files those are, because nothing else in the folder is under the version's sha256.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from registry.disk import write_atomically
from registry.errors import Refused, UsageError
from registry.vocabulary import FileDigest

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


def write_manifest(folder: Path) -> list[FileDigest]:
    """Write `manifest.json`, the digest of every other file below `folder`, and return what it holds."""
    files = [FileDigest.of(path, folder) for path in _files(folder)]
    write_atomically(folder / MANIFEST, _digests.dump_json(files, indent=2) + b"\n")
    return files


def read_manifest(folder: Path) -> list[FileDigest]:
    """What `manifest.json` in `folder` says.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    try:
        return _digests.validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Refused(f"{folder.name}: {MANIFEST} is missing, so nothing says what the files should be") from None
    except ValueError as error:
        raise Refused(f"{folder.name}/{MANIFEST} cannot be read: {str(error).splitlines()[0]}") from None


def check_folder(folder: Path, sha256: str | None = None) -> list[FileDigest]:
    """Check every file below `folder` against its manifest, and the model's own files against `sha256`.

    Returns:
        the model's own files (every provider's graph and its external data), as the manifest names them.

    Raises:
        Refused: a file is missing, added or changed, or the model is not the one that `sha256` names.
    """
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
    from registry import onnx_file

    try:
        return onnx_file.files(graph)
    except UsageError as error:
        raise Refused(str(error)) from None


def _files(folder: Path) -> list[Path]:
    apart = (folder / MANIFEST, folder / NOT_OURS)
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
