"""Whether another server may join requests to batches, and to which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onward.registry.other_servers.exported import Exported, Tensor

# Batches must raise the throughput by this factor, because each request in a batch waits for the others.
GAIN = 1.1
# The largest batch of a version that documents none and was not swept. It is the default of Triton's `auto-complete`.
UNKNOWN = 4


@dataclass(frozen=True)
class Batching:
    """How requests are joined.

    Attributes:
        most: the largest batch; 0 if requests cannot be joined.
        reason: why not; "" if they can.
        preferred: the sizes that the server waits for; empty for no dynamic batching.
        delay_us: how long a request may wait for others, in µs.
    """

    most: int
    reason: str = ""
    preferred: Sequence[int] = ()
    delay_us: int = 0


def plan(version: Exported) -> Batching:
    """Decide from the documented inputs and outputs, and from the benchmark's batch sweep.

    Dynamic batching is used if some batch has at least 1.1 times the throughput of single samples. Then the server
    prefers the swept sizes up to the knee, and no request waits longer than one sample takes to compute.

    Args:
        version: the version.
    """
    tensors = [*version.inputs, *version.outputs]
    if reason := version.without_batches or _fault(tensors):
        return Batching(0, reason)
    name = str(version.inputs[0].shape[0])
    least, documented, factor = version.sizes.get(name, (1, 0, 1))
    if least > 1 or factor > 1:
        return Batching(0, f"batches have {f'multiples of {factor}' if factor > 1 else f'at least {least}'} samples")
    points = {size: point for point in version.sweep if (size := point.sizes.get(name, 0)) > 0}
    most = documented or max(points, default=UNKNOWN)
    fitting = {size: point for size, point in points.items() if size <= most}
    knee = (version.knee or {}).get(name) or max(fitting, default=0)
    preferred = sorted(size for size in fitting if 1 < size <= knee)
    if 1 not in fitting or not preferred:
        return Batching(most)
    best = max(fitting[size].throughput for size in preferred)
    if best < GAIN * fitting[1].throughput:
        return Batching(most)
    return Batching(most, "", preferred, max(1, round(fitting[1].p50_ms * 1000)))


def _fault(tensors: Sequence[Tensor]) -> str:
    """Why the first axis of all tensors does not count the same samples; "" if it does."""
    names = set()
    for tensor in tensors:
        if tensor.samples != 0:
            where = "no axis" if tensor.samples is None else f"axis {tensor.samples}"
            return f"{tensor.name} has its samples on {where}"
        size = tensor.shape[0]
        if isinstance(size, int):
            return f"the graph fixes the first size of {tensor.name} to {size}"
        if size is not None or not tensor.described:
            names.add(size)
    if len(names) != 1 or None in names:
        found = ", ".join(sorted(str(name or "an unknown size") for name in names)) or "unknown sizes"
        return f"the first sizes of inputs and outputs differ: {found}"
    return ""
