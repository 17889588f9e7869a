"""What this machine and its toolchain are, so that nothing is restored that another machine measured.

Two files, for two kinds of consequence: another toolchain exports again (toolchain.json), another machine only
measures again (machine.json).
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from registry.disk import write_atomically
from registry.errors import UsageError
from registry.vocabulary import Machine, RuntimeState
from stages import command, paths
from stages.params import read
from stages.runtime.environments import probe

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

# The instruction sets that decide which kernels ONNX Runtime and PyTorch pick, and so which numbers int8 gives.
INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


class Host(BaseModel):
    """machine.json: where measurements are taken, and with which runtimes."""

    machine: Machine
    runtimes: list[RuntimeState]


def describe_machine() -> Machine:
    """CPU, memory and accelerators; nothing that changes while the machine does not."""
    info = _cpu()
    flags = set(info.get("flags", ()))
    return Machine(
        cpu=str(info.get("brand_raw") or platform.processor() or platform.machine()),
        instruction_sets=[name for name in INSTRUCTION_SETS if name in flags],
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        accelerators=_accelerators(),
        system=f"{platform.system()} {platform.machine()}",
    )


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
        UsageError: it has not run yet.
    """
    folder = paths.root() / "build" / "host"
    try:
        versions: dict[str, str] = json.loads((folder / "toolchain.json").read_text())
        return Host.model_validate_json((folder / "machine.json").read_text()), versions
    except FileNotFoundError as error:
        raise UsageError(f"build/host/{Path(error.filename).name} is missing: run `python -m stages.host`") from None


def _cpu() -> dict[str, Any]:
    """`brand_raw` and `flags`, as py-cpuinfo names them. It takes a second, which every `dvc repro` would wait for, so
    where Linux on x86 says the same in a file, that is read instead."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" in fields and "flags" in fields:
        return {"brand_raw": fields["model name"], "flags": fields["flags"].split()}
    import cpuinfo

    info: dict[str, Any] = cpuinfo.get_cpu_info()
    return info


def _accelerators() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return [f"nvidia-smi does not answer: {type(error).__name__}"]
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


def main() -> None:
    """Describe the machine and the toolchain in build/host/machine.json and build/host/toolchain.json."""
    host = Host(machine=describe_machine(), runtimes=[probe(name) for name in read().runtimes])
    with paths.replacing(paths.root() / "build" / "host") as folder:
        write_atomically(folder / "machine.json", (host.model_dump_json(indent=2) + "\n").encode())
        write_atomically(folder / "toolchain.json", (json.dumps(toolchain(), indent=2) + "\n").encode())


if __name__ == "__main__":
    command.run_plain(main)
