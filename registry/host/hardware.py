"""What machine this is: its CPU, the instruction sets that decide what int8 computes, memory, accelerators."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from onward.registry.evidence.records import Machine

# The instruction sets that decide which kernels ONNX Runtime and PyTorch pick, and so which numbers int8 gives.
INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def describe() -> Machine:
    """CPU, memory and accelerators; nothing that changes while the machine does not."""
    import psutil

    info = _cpu()
    return Machine(
        cpu=str(info.get("brand_raw") or platform.processor() or platform.machine()),
        instruction_sets=_known(info),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        accelerators=accelerators(),
        system=f"{platform.system()} {platform.machine()}",
    )


def instruction_sets() -> list[str]:
    """Those of INSTRUCTION_SETS that this CPU has."""
    return _known(_cpu())


def kind(machine: Machine) -> str:
    """What decides which numbers int8 gives on a machine, in words: its instruction sets."""
    return " ".join(machine.instruction_sets) or machine.system


def unmeasured(kinds: str | None) -> str:
    """In words, that there is no evidence from this kind of host; "" where there is. `kinds` are those that a version
    was measured on, as its tag `instruction_sets` has them: separated by "; ", None where nothing was recorded."""
    here = kind(describe())
    if kinds is None:
        return f"no evidence says which kind of host this was measured on; here: {here}"
    known = [one.strip() for one in kinds.split(";")]
    return "" if here in known else f"no evidence from this kind of host ({here}); measured on {kinds}"


def accelerators() -> list[str]:
    """NVIDIA GPUs that answer, each with driver and memory."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return [f"nvidia-smi does not answer: {type(error).__name__}"]
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


def _known(info: dict[str, Any]) -> list[str]:
    flags = set(info.get("flags", ()))
    return [name for name in INSTRUCTION_SETS if name in flags]


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
