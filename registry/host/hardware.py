"""Describes this machine: CPU, the instruction sets that affect int8 results, memory, accelerators."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from onward.registry.evidence.host_class import INSTRUCTION_SETS
from onward.registry.evidence.records import Machine


def describe() -> Machine:
    """Describe CPU, memory and accelerators. The same machine always gives the same description."""
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
    """List the INSTRUCTION_SETS that this CPU supports."""
    return _known(_cpu())


def kind(machine: Machine) -> str:
    """Name the kind of host that a machine is: its instruction sets, which decide what int8 computes.

    Args:
        machine: The machine's description.

    Returns:
        The instruction sets, separated by spaces; the operating system and architecture if none is known.
    """
    return " ".join(machine.instruction_sets) or machine.system


def fingerprint(machine: Machine) -> str:
    """A short digest of a machine. Latencies are comparable only between machines with the same one.

    Args:
        machine: The machine's description.
    """
    return hashlib.sha256(machine.model_dump_json().encode()).hexdigest()[:16]


# Of the sets that a host has, the first of these names it in short: it decides most about latency and int8.
_TELLING = (
    "amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "sve", "i8mm", "asimddp", "asimd",
)  # fmt: skip


def short_kind(machine: Machine) -> str:
    """Name the kind of host by its most telling instruction set, such as `avx512_vnni`.

    Args:
        machine: The machine's description.
    """
    return next((name for name in _TELLING if name in machine.instruction_sets), machine.system)


def unmeasured(kinds: str | None) -> str:
    """Describe the lack of evidence from this kind of host.

    Args:
        kinds: The kinds of host that a version was measured on, from its tag `instruction_sets`: separated by "; ".
            None if nothing was recorded.

    Returns:
        A sentence, or "" if there is evidence from this kind of host.
    """
    here = kind(describe())
    if kinds is None:
        return f"no record of the kind of host that this was measured on; this host: {here}"
    known = [measured.strip() for measured in kinds.split(";")]
    return "" if here in known else f"no evidence from this kind of host ({here}); measured on {kinds}"


def accelerators() -> list[str]:
    """List the NVIDIA GPUs, each with driver and memory; if nvidia-smi fails, the only entry says so."""
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
    """`brand_raw` and `flags`, as py-cpuinfo names them.

    py-cpuinfo takes a second, which would slow down every `dvc repro`. Linux on x86 has the same facts in a file, which
    is read instead.
    """
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
