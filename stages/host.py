"""Describes this machine and its toolchain, so that DVC restores no measurement of another machine.

A change of toolchain.json repeats the export; a change of machine.json only repeats the measurements.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel

from onward.registry.errors import NotReady
from onward.registry.evidence.records import Machine, RuntimeState
from onward.registry.files import replacing, write_atomically
from onward.registry.host import hardware, runtimes
from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import settings

TOOLCHAIN = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxsim",
    "onnxoptimizer",
    "onnxslim",
    "numpy",
    "safetensors",
)


class Host(BaseModel):
    """The content of machine.json: the machine that measures, and its runtimes."""

    machine: Machine
    runtimes: list[RuntimeState]


def toolchain() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect exports, by name; "absent" if not installed."""
    versions = {"python": platform.python_version()}
    for name in TOOLCHAIN:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def load() -> tuple[Host, dict[str, str]]:
    """Load the machine and the versions of the toolchain that the host stage wrote.

    Raises:
        NotReady: The host stage has not run yet.
    """
    folder = paths.root() / "build" / "host"
    try:
        versions: dict[str, str] = json.loads((folder / "toolchain.json").read_text())
        return Host.model_validate_json((folder / "machine.json").read_text()), versions
    except FileNotFoundError as error:
        raise NotReady(f"build/host/{Path(error.filename).name} is missing: run `onward stage host`") from None


def main() -> None:
    """Describe the machine and the toolchain in build/host/machine.json and build/host/toolchain.json."""
    host = Host(
        machine=hardware.describe(),
        runtimes=[runtimes.state(name, paths.root()) for name in runtimes.named(settings("host").runtimes)],
    )
    with replacing(paths.root() / "build" / "host") as folder:
        write_atomically(folder / "machine.json", (host.model_dump_json(indent=2) + "\n").encode())
        write_atomically(folder / "toolchain.json", (json.dumps(toolchain(), indent=2) + "\n").encode())


if __name__ == "__main__":
    command.run_plain(main)
