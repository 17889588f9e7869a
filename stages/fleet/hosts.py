"""Which machines of a cluster offer what: the custom resources of Ray that a fleet's tasks ask for.

Every machine of a fleet offers one unit of NODE. A measurement takes all of it, so it runs alone on its machine; every
other task takes a small part. A machine of a class of params.yaml's `hosts` also offers one unit of that class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.records import Machine
from onward.stages.fleet.phases import MEASURE

NODE = "onward_node"
# Ray counts in ten-thousandths. So up to 1000 tasks share a machine, more than Ray gives CPUs for.
PART = 0.001


def resource_of(host: str) -> str:
    """The name of the resource that machines of a class offer."""
    return f"onward_host_{host}"


def offered(machine: Machine, hosts: Mapping[str, HostClass]) -> dict[str, float]:
    """List the resources that a machine offers to fleets.

    Args:
        machine: The machine's description.
        hosts: The classes of params.yaml, by name.

    Returns:
        The amount of each resource.
    """
    return {NODE: 1.0, **{resource_of(name): 1.0 for name, host in hosts.items() if not host.lacks(machine)}}


def wanted(phase: str, host: str | None, processors: int) -> dict[str, Any]:
    """The options of the Ray task of a phase.

    Args:
        phase: The phase.
        host: The name of the class that a measurement runs on; None for any machine.
        processors: The number of CPUs of a task that is not a measurement.

    Returns:
        `num_cpus` and `resources`.
    """
    if phase != MEASURE:
        return {"num_cpus": processors, "resources": {NODE: PART}}
    return {"num_cpus": 0, "resources": {NODE: 1.0, **({resource_of(host): PART} if host else {})}}
