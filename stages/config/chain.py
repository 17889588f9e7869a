"""What each stage reads of the stages before it, as digests in the stage's folder.

In dvc.yaml, a stage depends on the one before it and not on all that it reads, so that `dvc dag` of a model is a chain.
`inputs.json` in each stage's folder has the digests of the results that dvc.yaml names as its dependencies, which
include their own inputs.json. So a change of any earlier result changes those of every later stage, and DVC runs them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from onward.registry.files import sha256_file, write_atomically
from onward.stages.config import paths

INPUTS = "inputs.json"

# The stages that each stage depends on in dvc.yaml. Other stages have no successor in the chain.
PREDECESSORS = {
    "export": ("train", "data"),
    "verify": ("export",),
    "optimize": ("verify",),
    "quantize": ("optimize",),
    "benchmark": ("quantize",),
    "select": ("benchmark",),
}
_TOOLCHAIN = "build/host/toolchain.json"


def record(model: str, stage: str, folder: Path) -> None:
    """Write inputs.json of a stage, if a later stage needs it.

    Args:
        model: Name of the model.
        stage: Name of the stage.
        folder: The folder with the stage's results.
    """
    if stage == "train":  # exports depend on the toolchain, through train
        found = {_TOOLCHAIN: _digest(paths.root() / _TOOLCHAIN)}
    elif stage in PREDECESSORS:
        found = {name: _digest(paths.build(model, name)) for name in PREDECESSORS[stage]}
    else:
        return
    write_atomically(folder / INPUTS, (json.dumps(found, indent=2) + "\n").encode())


def _digest(path: Path) -> str:
    """Digest of a file, or of all files of a folder with their names; "absent" if there is neither."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return "absent"
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{name}\0{sha256_file(path / name)}\n" for name in files)
    return hashlib.sha256(listed.encode()).hexdigest()
