"""Checks whether a cluster has the machines that a fleet needs, and makes this machine one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from onward.registry import processors
from onward.registry.errors import NotReady
from onward.registry.evidence.host_class import HostClass
from onward.registry.host import hardware
from onward.registry.ray_cluster import has_token, require_ray
from onward.stages.fleet import hosts as classes


def require_hosts(nodes: Iterable[Mapping[str, Any]], hosts: Iterable[str], processors: int) -> None:
    """Check that the cluster has machines for every kind of task; otherwise Ray would wait for them without an end.

    Args:
        nodes: The machines of the cluster, as `ray.nodes()` lists them.
        hosts: The names of the classes that measurements run on.
        processors: The number of CPUs of a task that is not a measurement.

    Raises:
        NotReady: There are none.
    """
    offers = [node["Resources"] for node in nodes if node["Alive"]]
    start = "start its machines with `onward fleet node`"
    ours = [offer for offer in offers if offer.get(classes.NODE, 0) >= 1]
    if not ours:
        raise NotReady(f"no machine of the cluster offers the resource {classes.NODE}: {start}")
    if not any(offer.get("CPU", 0) >= processors for offer in ours):
        most = max(int(offer.get("CPU", 0)) for offer in ours)
        raise NotReady(f"no machine of the cluster has {processors} CPUs (--cpus); the largest has {most}")
    for host in hosts:
        if not any(offer.get(classes.resource_of(host), 0) > 0 for offer in ours):
            raise NotReady(f"hosts.{host}: no machine of the cluster is of this class: {start} on one that is")


def join(address: str | None, hosts: Mapping[str, HostClass], arguments: Iterable[str]) -> int:
    """Run this machine as a node of a cluster until it is stopped.

    Args:
        address: The head's address, HOST:PORT; None to run the head.
        hosts: The classes of params.yaml.
        arguments: More arguments of `ray start`.

    Returns:
        The exit code of Ray.

    Raises:
        NotReady: Ray is not installed, or this machine has no token of the cluster.
    """
    if not has_token() and address is None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, check=False, capture_output=True)
        print("wrote ~/.ray/auth_token: copy it to all machines of the cluster, and to those that use the cluster")
    elif not has_token():
        raise NotReady("there is no token for the cluster: copy ~/.ray/auth_token from its head to this machine")
    require_ray()
    offered = classes.offered(hardware.describe(), hosts)
    place = ["--head"] if address is None else ["--address", address]
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--block", "--num-cpus", str(processors.count()),
        "--resources", json.dumps(offered), *arguments,
    ]  # fmt: skip
    return subprocess.call(command)
