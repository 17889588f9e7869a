"""What this machine and its toolchain are, so that nothing is restored that another machine measured.

Two files, for two kinds of consequence: another toolchain exports again (toolchain.json), another machine only
measures again (machine.json).
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
    """machine.json: where measurements are taken, and with which runtimes."""

    machine: Machine
    runtimes: list[RuntimeState]


def toolchain() -> dict[str, str]:
    """Versions of Python and of the packages whose version changes what is exported; "absent" where one is not here."""
    versions = {"python": platform.python_version()}
    for name in TOOLCHAIN:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return versions


def load() -> tuple[Host, dict[str, str]]:
    """The machine and the toolchain, as the host stage wrote them.

    Raises:
        NotReady: it has not run yet.
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
        runtimes=[runtimes.state(name, paths.root()) for name in settings("host").runtimes],
    )
    with replacing(paths.root() / "build" / "host") as folder:
        write_atomically(folder / "machine.json", (host.model_dump_json(indent=2) + "\n").encode())
        write_atomically(folder / "toolchain.json", (json.dumps(toolchain(), indent=2) + "\n").encode())


if __name__ == "__main__":
    command.run_plain(main)
