"""Classes of machines: a version is measured on each of them, and served on each with what won there."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from onward.registry.evidence.records import Machine
from onward.registry.text import suggestion

# The instruction sets that decide which kernels ONNX Runtime and PyTorch use, and so what int8 computes.
INSTRUCTION_SETS = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


class HostClass(BaseModel):
    """What the machines of a class have in common.

    Attributes:
        instruction_sets: Instruction sets that the CPU has, such as `avx512_vnni`; all of them.
        cores: The exact number of physical cores; None for any.
        cpu: A text that the name of the CPU contains; empty for any.
        accelerator: A text that the name of an accelerator contains; empty for any, or none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    instruction_sets: Annotated[list[str], BeforeValidator(_words)] = []
    cores: Annotated[int, Field(ge=1)] | None = None
    cpu: str = ""
    accelerator: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> HostClass:
        for name in self.instruction_sets:
            if name not in INSTRUCTION_SETS:
                raise ValueError(f"instruction_sets: there is no {name!r}" + suggestion(name, INSTRUCTION_SETS))
        if not (self.instruction_sets or self.cores or self.cpu or self.accelerator):
            raise ValueError("name at least one of instruction_sets, cores, cpu and accelerator")
        return self

    def lacks(self, machine: Machine) -> str:
        """Say what a machine lacks to be of this class.

        Args:
            machine: The machine's description.

        Returns:
            The differences, separated by commas; empty if it is of this class.
        """
        found = [f"{name} is missing" for name in self.instruction_sets if name not in machine.instruction_sets]
        if self.cores is not None and self.cores != machine.cores:
            found.append(f"it has {machine.cores} cores and not {self.cores}")
        if self.cpu.lower() not in machine.cpu.lower():
            found.append(f"its CPU is {machine.cpu} and not {self.cpu}")
        if self.accelerator and not any(self.accelerator.lower() in name.lower() for name in machine.accelerators):
            found.append(f"it has no accelerator {self.accelerator}")
        return ", ".join(found)
