"""Writes versions to a Triton model repository.

    REPOSITORY/cnn/config.pbtxt
    REPOSITORY/cnn/3/model.onnx                  and the files with its external data
    REPOSITORY/cnn/warmup/3-0.bin                the recorded values of input 0, with which Triton warms the version up

Triton serves the version that config.pbtxt names. Files of other versions stay, so that a second export of an earlier
version is a rollback. A model's folder is replaced atomically, because Triton may poll it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onward.registry.errors import Refused, UsageError
from onward.registry.files import replacing, sha256_file
from onward.registry.other_servers.batching import Batching, plan
from onward.registry.other_servers.exported import Exported, Tensor
from onward.registry.other_servers.text_format import to_text
from onward.registry.other_servers.triton_config import config, left_out

CONFIG = "config.pbtxt"
WARM_UP = "warmup"
_HEAD = re.compile(r"# Written by `onward export-triton`\. [^\n]*\n# sha256 of the rest: ([0-9a-f]{64})\n")


@dataclass(frozen=True)
class Written:
    """What an export did.

    Attributes:
        folder: the model's folder in the repository.
        changed: whether anything was written; False if the repository already contained the same.
        batching: whether Triton joins requests.
        notes: what the user should know.
    """

    folder: Path
    changed: bool
    batching: Batching
    notes: Sequence[str]


def write(version: Exported, repository: Path) -> Written:
    """Write a version to a model repository.

    Args:
        version: the version.
        repository: the folder of the repository. Missing folders are made.

    Raises:
        Refused: the repository has other files for this version, or a configuration that Onward did not write; or
            Triton does not have the type of an input or output.
        UsageError: a file is where a folder should be.
    """
    folder = repository / version.name
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, and must be the folder of the model")
    batching = plan(version)
    recorded = list(_warm_up(version, batching.most > 0))
    names = [f"{version.version}-{number}.bin" for number in range(len(recorded))]
    warm_up = [(tensor, shape, name) for (tensor, shape, _), name in zip(recorded, names, strict=True)]
    text = to_text(config(version, batching, warm_up))
    notes = [*version.notes, *left_out(version)]
    if not batching.most:
        notes.append(f"Triton does not join requests, because {batching.reason}")
    head = (
        f"# Written by `onward export-triton`. Version {version.version}, sha256 {version.sha256 or 'not recorded'}.\n"
        f"# sha256 of the rest: {hashlib.sha256(text.encode()).hexdigest()}\n"
    )
    content = {CONFIG: (head + text).encode()}
    content |= {f"{WARM_UP}/{name}": raw for name, (_, _, raw) in zip(names, recorded, strict=True)}
    _require_ours(folder)
    same = _same_files(version, folder)
    if same and all(_content(folder / name) == data for name, data in content.items()):
        return Written(folder, False, batching, notes)
    with replacing(folder) as fresh:
        if folder.is_dir():
            shutil.copytree(folder, fresh, dirs_exist_ok=True, symlinks=True, copy_function=_link)
        if not same:
            _copy(version, fresh / str(version.version))
        for name, data in content.items():
            file = fresh / name
            file.parent.mkdir(exist_ok=True)
            file.unlink(missing_ok=True)  # it may be a hard link to the old file
            file.write_bytes(data)
    return Written(folder, True, batching, notes)


def _require_ours(folder: Path) -> None:
    """Check that the configuration in a folder is Onward's, and that it was not edited.

    Raises:
        Refused: it is not.
    """
    found = _content(folder / CONFIG)
    if found is None:
        return
    head = _HEAD.match(found.decode(errors="replace"))
    if head is None or hashlib.sha256(found[len(head[0].encode()) :]).hexdigest() != head[1]:
        raise Refused(
            f"{folder / CONFIG}: was not written by Onward, or was changed since: move or delete it, or give another "
            "--name"
        )


def _same_files(version: Exported, folder: Path) -> bool:
    """Whether the repository already has the files of a version.

    Raises:
        Refused: it has other files for this version.
    """
    place = folder / str(version.version)
    if not place.exists():
        return False
    here = version.files[0].parent
    wanted = {str(file.relative_to(here)): sha256_file(file) for file in version.files}
    found = {str(file.relative_to(place)): sha256_file(file) for file in place.rglob("*") if file.is_file()}
    if found != wanted:
        different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise Refused(
            f"{place}: contains another version {version.version} of {version.name} ({', '.join(different)} differ): "
            "move or delete that folder, or give another --version"
        )
    return True


def _copy(version: Exported, place: Path) -> None:
    """Copy the files of a version, and check that the copies have the digests of the checked files."""
    here = version.files[0].parent
    for file in version.files:
        target = place / file.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        if sha256_file(target) != sha256_file(file):
            raise Refused(f"{file}: changed while it was copied")


def _link(source: str, target: str) -> None:
    """Make a hard link, or a copy where the file system has none: models may be large."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _warm_up(version: Exported, batched: bool) -> Iterator[tuple[Tensor, tuple[int, ...], bytes]]:
    """Each input, the shape of its recorded values, and the values: of one sample if requests are joined."""
    if any(tensor.name not in version.recorded for tensor in version.inputs):
        return
    for tensor in version.inputs:
        values = np.asarray(version.recorded[tensor.name])
        one = values[0] if batched else values
        yield tensor, one.shape, _raw(one)


def _raw(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes of a tensor, as Triton reads them: little-endian, and strings after their lengths."""
    if array.dtype.kind not in "USO":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
