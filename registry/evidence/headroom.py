"""How near a variant is to what its host can do."""

from __future__ import annotations

from onward.registry.evidence.records import Record


class OperatorShare(Record):
    """The share of one operator type in the time of a call.

    Attributes:
        operator: The operator's type, as the runtime names it.
        share: Its share of the time in all operators.
        products: Whether the time goes to multiplications with weights, which `Headroom.peak_gmacs` limits.
    """

    operator: str
    share: float
    products: bool


class Headroom(Record):
    """The latency of the fastest acceptable variant beside the least time that the host would need for its work.

    The least time is that of all multiplications with weights at the measured peak, or of reading all weights at the
    measured bandwidth, whichever is longer (the roofline model, Williams et al. 2009). Products of two activations and
    everything else count as no work, so that a share of 1 cannot be reached.

    Attributes:
        variant: The variant.
        runtime: The runtime that it ran on.
        precision: The precision of its multiplications.
        size: The size, as in the latencies.
        p50_ms: Its median latency in ms.
        multiplications: Multiplications with weights in one call.
        bytes: Bytes of its weights.
        peak_gmacs: The most multiplications that this host did in this precision on this runtime, in 10^9 per second,
            in a product of two square matrices.
        bandwidth_gbs: The most bytes that this host read and wrote on this runtime, in 10^9 per second.
        bound_ms: The least time in ms.
        share: `bound_ms` / `p50_ms`.
        operators: The types of operators by their share of the time, the largest first; empty if the runtime does not
            tell.
    """

    variant: str
    runtime: str
    precision: str
    size: str
    p50_ms: float
    multiplications: int
    bytes: int
    peak_gmacs: float
    bandwidth_gbs: float
    bound_ms: float
    share: float
    operators: list[OperatorShare] = []

    def __str__(self) -> str:
        rest = [f"{one.operator} {one.share:.0%}" for one in self.operators if not one.products][:3]
        most = [f"{one.operator} {one.share:.0%}" for one in self.operators if one.products][:3]
        where = f"; of the time, products take: {', '.join(most) or 'nothing'}" if self.operators else ""
        where += f"; the rest: {', '.join(rest)}" if rest else ""
        return (
            f"{self.variant} on {self.runtime} at {self.size} takes {self.p50_ms:.3g} ms, {self.share:.0%} of the "
            f"speed at which this host computes its products alone ({self.bound_ms:.3g} ms at {self.peak_gmacs:.3g} "
            f"{self.precision} GMAC/s and {self.bandwidth_gbs:.3g} GB/s){where}"
        )
